import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import btcompress
from btcompress.demo import CLASS_NAMES, FULL, SMALL, DemoSize, make_clips, run_demo
from btcompress.demo.story import draw_clips
from btcompress.demo.video.dense import SCALE, ClipClassifier, accuracy, train_dense
from btcompress.finetune.data import open_data, split
from btcompress.modes import ShapeRequest, choose_shape

TINY = DemoSize(12, 16, 300, 200, 0.2, 16, 2, 2, 6, 2e-2, 3, 1e-2)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    stages = []
    return run_demo(folder, TINY, seed=3, on_progress=stages.append), stages


def dense_model(path):
    model = ClipClassifier(12 * 16 * 3, 16, len(CLASS_NAMES))
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def test_accuracies_are_those_of_the_files_on_clips_that_no_training_saw(told):
    result, _ = told
    clips = make_clips(500, height=12, width=16, generator=torch.Generator().manual_seed(3))
    test = clips.split(300, 200)[1]
    assert result.dense_accuracy == accuracy(dense_model(result.files.dense), test)
    for path, measured in (
        (result.files.factorized, result.factorized_accuracy),
        (result.files.tuned, result.tuned_accuracy),
    ):
        assert measured == accuracy(btcompress.apply(dense_model(result.files.dense), path), test)
    assert len({result.dense_accuracy, result.factorized_accuracy, result.tuned_accuracy}) == 3
    assert result.n_test == 200


def test_curves_start_before_training_and_end_where_the_metrics_do(told):
    result, stages = told
    dense, tuned = result.curves
    assert len(dense.accuracies) == 1 + TINY.dense_epochs
    rows = [json.loads(line) for line in (result.files.folder / "tuned.bt.metrics.jsonl").read_text().splitlines()]
    assert list(tuned.accuracies[1:]) == [row["metric"] for row in rows]
    last = result.report.finetuned[-1]
    assert tuned.accuracies[0] == last.before
    assert last.after == max(tuned.accuracies)
    assert last.dense == max(dense.accuracies)
    epochs = [stage.epoch.epoch for stage in stages if stage.epoch is not None]
    assert epochs == [*range(1, TINY.dense_epochs + 1), *range(1, TINY.tuning_epochs + 1)]


def test_examples_show_each_class_once_and_pictures_are_drawn(told):
    result, _ = told
    assert result.examples.y.tolist() == list(range(len(CLASS_NAMES)))
    for path in (result.files.clips, result.files.curves):
        with Image.open(path) as picture:
            assert picture.width > 400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_same_seed_writes_the_same_files(tmp_path):
    small = DemoSize(8, 8, 60, 40, 0.2, 4, 1, 2, 1, 3e-3, 1, 1e-2)
    results = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        results.append(run_demo(tmp_path / name, small, seed=1))
    for first, second in zip(results[0].files.all, results[1].files.all, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name


def test_dense_model_learns_and_is_given_back_at_its_best_epoch(tmp_path):
    size = replace(TINY, height=24, width=32, n_train=600, dense_epochs=8, dense_learning_rate=1e-2)
    data = tmp_path / "train.npz"
    draw_clips(data, size, seed=0)
    enabled = torch.backends.mkldnn.enabled
    model, curve = train_dense(data, size, seed=0)
    assert torch.backends.mkldnn.enabled == enabled
    held = split(open_data(str(data), SCALE), size.held_fraction, seed=0)[1]
    batch = held.batch(torch.arange(len(held)))
    assert float((model(batch.x).argmax(1) == batch.y).double().mean()) == pytest.approx(max(curve))
    assert max(curve) > curve[0] + 0.1


def test_full_size_is_that_of_the_paper():
    n_inputs = FULL.height * FULL.width * 3
    assert n_inputs == 57_600
    request = ShapeRequest(FULL.cp_rank, FULL.tucker_rank, input_shape=(FULL.height, FULL.width, 3))
    shape = choose_shape(request, "weight_ih_l0", 4 * FULL.hidden_size, n_inputs).shape
    assert shape.dense_params == 58_982_400
    assert shape.ratio >= 17_388
    assert SMALL.dense_config(4).seed == SMALL.tuning_config(4).seed == 4
