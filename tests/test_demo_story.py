import pytest
import torch

import btcompress
from btcompress.demo import make_clips, run_demo, story


@pytest.fixture
def small(monkeypatch):
    sizes = {
        "_N_TRAIN": 300,
        "_N_TEST": 200,
        "_EPOCHS": 6,
        "_TUNE_EPOCHS": 3,
        "_HEIGHT": 12,
        "_WIDTH": 16,
        "_HIDDEN": 16,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(story, name, value)


def test_accuracies_are_those_of_the_files_on_clips_that_no_training_saw(tmp_path, small):
    result = run_demo(tmp_path, seed=3)
    clips = make_clips(500, height=12, width=16, generator=torch.Generator().manual_seed(3))
    test = clips.split(300, 200)[1]

    def dense_model():
        model = story.ClipClassifier(12 * 16 * 3, 16, len(clips.class_names))
        model.load_state_dict(torch.load(result.dense_path, weights_only=True))
        return model

    assert result.dense_accuracy == story._accuracy(dense_model(), test)
    for path, accuracy in (
        (result.compressed_path, result.factorized_accuracy),
        (result.tuned_path, result.tuned_accuracy),
    ):
        assert accuracy == story._accuracy(btcompress.apply(dense_model(), path), test)
    assert len({result.dense_accuracy, result.factorized_accuracy, result.tuned_accuracy}) > 1


def test_same_seed_writes_the_same_files(tmp_path, small):
    results = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        results.append(run_demo(tmp_path / name, seed=1))
    assert results[0].compressed_path.read_bytes() == results[1].compressed_path.read_bytes()
    assert results[0].tuned_accuracy == results[1].tuned_accuracy
