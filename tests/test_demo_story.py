"""Laws of the demonstration: what it measures is what its files do, whatever the task."""

import json

import pytest
import torch
from PIL import Image

import btcompress
from btcompress.demo import FULL, SMALL, Size, Training, run_demo
from btcompress.demo.video import Video, make_clips
from btcompress.demo.video.dense import SCALE, accuracy
from btcompress.finetune.data import open_data, split
from btcompress.modes import ShapeRequest, choose_shape

_ONCE = Training(1, 1e-2)
TINY = Video(
    12,
    16,
    Size(400, 200, 16, 2, 2, dense=Training(8, 2e-2), tuning=Training(3, 1e-2), scratch=_ONCE, calibration=_ONCE),
)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    stages = []
    return run_demo(folder, TINY, seed=3, on_progress=stages.append), stages


def dense_model(path):
    model = TINY.model()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def test_scores_are_those_of_the_files_on_clips_that_no_training_saw(told):
    result, _ = told
    clips = make_clips(600, height=12, width=16, generator=torch.Generator().manual_seed(3))
    test = clips.split(400, 200)[1]
    assert (result.drawn.test.x == test.x).all()
    files = result.files
    measured = [outcome.scores for outcome in result.outcomes]
    results = (files.factorized, files.calibrated, files.tuned, files.scratch)
    models = [dense_model(files.dense), *(btcompress.apply(dense_model(files.dense), path) for path in results)]
    assert measured == [(accuracy(model, test),) for model in models]
    assert len(set(measured)) == 5


def test_weights_and_bytes_are_counted_on_the_tensors(told):
    result, _ = told
    (name,) = btcompress.load(result.files.tuned).matrices
    dense = dense_model(result.files.dense).state_dict()[name]
    parts = [
        tensor for key, tensor in btcompress.load(result.files.tuned).tensors.items() if key.startswith(f"{name}.")
    ]
    assert (result.dense.n_weights, result.dense.n_bytes) == (dense.numel(), dense.nbytes)
    for outcome in result.outcomes[1:]:
        assert outcome.n_weights == sum(part.numel() for part in parts)
        assert outcome.n_bytes == sum(part.nbytes for part in parts)


def test_curves_start_before_training_and_end_where_the_metrics_do(told):
    result, stages = told
    dense, tuned, scratch = result.curves
    epochs = [TINY.size.dense.epochs, TINY.size.tuning.epochs, TINY.size.scratch.epochs]
    assert [len(curve.values) for curve in result.curves] == [1 + count for count in epochs]
    for curve, path in ((tuned, "tuned.bt.metrics.jsonl"), (scratch, "scratch.bt.metrics.jsonl")):
        rows = [json.loads(line) for line in (result.files.folder / path).read_text().splitlines()]
        assert list(curve.values[1:]) == [row["metric"] for row in rows]
    last = result.report.finetuned[-1]
    assert tuned.values[0] == last.before
    assert last.after == max(tuned.values)
    assert last.dense == max(dense.values)
    seen = [stage.epoch.epoch for stage in stages if stage.epoch is not None]
    assert seen == [epoch for count in epochs for epoch in range(1, count + 1)]


def test_pictures_are_drawn(told):
    result, _ = told
    for path in (result.files.examples, result.files.curves):
        with Image.open(path) as picture:
            assert picture.width > 400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_same_seed_writes_the_same_files(told, tmp_path):
    enabled = torch.backends.mkldnn.enabled
    again = run_demo(tmp_path, TINY, seed=3)
    assert torch.backends.mkldnn.enabled == enabled
    for first, second in zip(told[0].files.all, again.files.all, strict=True):
        assert first.exists() == second.exists() == (first.name != "inputs.npz")
        assert not first.exists() or first.read_bytes() == second.read_bytes(), first.name


def test_dense_model_learns_and_is_left_at_its_best_epoch(told):
    result, _ = told
    model, curve = dense_model(result.files.dense), result.curves[0].values
    held = split(open_data(str(result.files.data), SCALE), TINY.size.held_fraction, seed=3)[1]
    batch = held.batch(torch.arange(len(held)))
    assert float((model(batch.x).argmax(1) == batch.y).double().mean()) == pytest.approx(max(curve))
    assert max(curve) > curve[0] + 0.1


def test_full_size_of_video_is_that_of_the_paper():
    full = FULL["video"]
    n_inputs = full.height * full.width * 3
    assert n_inputs == 57_600
    request = ShapeRequest(full.size.cp_rank, full.size.tucker_rank, input_shape=full.input_shape)
    shape = choose_shape(request, "weight_ih_l0", 4 * full.size.hidden_size, n_inputs).shape
    assert shape.dense_params == 58_982_400
    assert shape.ratio >= 17_388


def test_trainings_have_the_seed_that_is_given():
    for task in (*SMALL.values(), *FULL.values()):
        size = task.size
        for training in (size.dense, size.tuning, size.scratch, size.calibration):
            assert training.config(4).seed == 4
