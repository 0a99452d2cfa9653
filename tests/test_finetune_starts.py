"""Where fine-tuning starts: the learning rate that suits it, and how often decisions agree before and after."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.checkpoint import read, read_compressed
from btcompress.finetune import TrainConfig
from btcompress.finetune.data import open_data
from btcompress.finetune.decisions import agreement_on
from btcompress.finetune.networks import choose_lstm
from btcompress.results import CalibrationReport, FineTuneReport
from tuning import SMALL, Classifier, draw, saved_pair, tune

PLAIN = TrainConfig(epochs=1, batch_size=20, cpu=True)
CALIBRATED = {"step": "calibrate", **asdict(CalibrationReport("lstm", 0.5, 0.2, 10, 80, 20, 1.0))}
TUNED = {"step": "finetune", **asdict(FineTuneReport("hidden-state error", False, 0.0, 0.5, 0.2, 9, 8, 80, 20, 1.0))}


def npz(folder, name="data.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


def with_history(path, *steps):
    """The same result after these steps, the first one again for None, in a file of its own."""
    compressed = btcompress.load(path)
    for step in steps:
        compressed = compressed.with_step(step or compressed.history[0])
    btcompress.save(compressed, path.with_name("later.bt.safetensors"))
    return path.with_name("later.bt.safetensors")


@pytest.mark.parametrize(
    ("steps", "rate"),
    [
        ([], 1e-2),
        ([CALIBRATED], 1e-3),
        ([{**CALIBRATED, "lstm": "other"}], 1e-2),
        ([TUNED], 1e-3),
        ([{**CALIBRATED, "hidden_state_error_after": 0.25 / 4}], 3e-3 / 8),
        ([{**TUNED, "after": 0.25 / 16}], 3e-3 / 64),
        ([{**TUNED, "metric": "accuracy", "after": 0.25 / 16}], 1e-3),
        ([{**TUNED, "lstm": "other"}], 1e-2),
        ([CALIBRATED, None], 1e-2),
    ],
    ids=[
        "factorized",
        "calibrated",
        "another calibrated",
        "tuned",
        "calibrated well",
        "tuned well",
        "tuned on labels",
        "another tuned",
        "factorized since",
    ],
)
def test_default_learning_rate_for_hidden_states_follows_where_the_file_stands(steps, rate, tmp_path):
    dense, compressed = saved_pair(tmp_path, Classifier())
    start = with_history(compressed, *steps)
    step = tune(tmp_path, start, npz(tmp_path, x=draw(20, 3, 24)), dense, PLAIN)
    assert (step["config"]["learning_rate"], step["lstm"]) == (rate, "lstm")


def test_default_learning_rate_for_labels_follows_where_the_file_stands(tmp_path):
    _, compressed = saved_pair(tmp_path, Classifier())
    data = npz(tmp_path, x=draw(20, 3, 24), y=np.arange(20) % 3)
    assert tune(tmp_path, compressed, data, config=PLAIN)["config"]["learning_rate"] == 1e-2
    start = with_history(compressed, CALIBRATED)
    assert tune(tmp_path, start, data, config=PLAIN, name="again")["config"]["learning_rate"] == 3e-3


def test_fine_tuning_by_default_does_not_undo_what_training_has_reached(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6))
    data = npz(tmp_path, x=draw(400, 5, 24))
    config = TrainConfig(epochs=20, batch_size=8, cpu=True)
    reached = tune(tmp_path, compressed, data, dense, config, "first.safetensors")["after"]
    step = tune(tmp_path, tmp_path / "first.safetensors", data, dense, config)
    metrics = [json.loads(line)["metric"] for line in (tmp_path / "tuned.metrics.jsonl").read_text().splitlines()]
    assert step["before"] == pytest.approx(reached, rel=1e-5)
    assert max(metrics) < 1.01 * reached
    assert step["after"] < reached


@pytest.mark.parametrize("layer", [None, "lstm"], ids=["the only one", "named"])
def test_agreement_is_recorded_for_hidden_states_with_the_head_that_the_file_has(layer, tmp_path):
    torch.manual_seed(0)
    model = Classifier(bidirectional=True)
    nn.init.zeros_(model.head.bias)
    dense, compressed = saved_pair(tmp_path, model)
    held = npz(tmp_path, "val.npz", x=draw(30, 5, 24, seed=1), lengths=np.arange(30) % 5 + 1)
    data = npz(tmp_path, x=draw(300, 5, 24))
    step = tune(tmp_path, compressed, data, dense, held=str(held), layer=layer)
    for path, when in ((compressed, "before"), (tmp_path / "tuned.safetensors", "after")):
        result = read_compressed(path)
        expected = agreement_on(result, read(dense), choose_lstm(result, None), open_data(str(held)))
        assert {**step[f"agreement_{when}"]} == {name: getattr(expected, name) for name in expected.__slots__}
    assert step["agreement_before"]["steps"] < step["agreement_after"]["steps"] < 1


@pytest.mark.parametrize("per_step", [False, True], ids=["once", "each step"])
def test_agreement_is_recorded_for_labels_beside_a_teacher(per_step, tmp_path):
    torch.manual_seed(0)
    model = Classifier()
    dense, compressed = saved_pair(tmp_path, model)
    x = draw(120, 3, 24)  # as many steps as classes
    hidden, (h, _) = model.lstm(torch.from_numpy(x))
    y = model.head(hidden if per_step else h[-1]).argmax(-1).numpy()
    held = npz(tmp_path, "val.npz", x=x[:40], y=y[:40])
    step = tune(tmp_path, compressed, npz(tmp_path, x=x[40:], y=y[40:]), dense, held=str(held))
    for when in ("before", "after"):  # the labels are the dense model's decisions, so accuracy is agreement
        agreement = step[f"agreement_{when}"]
        assert agreement["steps" if per_step else "ends"] == pytest.approx(step[when])
        assert agreement["ends" if per_step else "steps"] is None
        assert (agreement["n_steps"], agreement["n_ends"]) == ((120, 0) if per_step else (0, 40))


def test_agreement_is_not_recorded_where_nothing_decides_or_nobody_teaches(tmp_path):
    dense, compressed = saved_pair(tmp_path, Classifier())
    x = draw(40, 3, 24)
    values = npz(tmp_path, "values.npz", x=x, y=draw(40, 3))
    classes = npz(tmp_path, "classes.npz", x=x, y=np.arange(40) % 3)
    for n, (data, teacher) in enumerate(((values, dense), (classes, None))):
        step = tune(tmp_path, compressed, data, teacher, name=f"{n}")
        assert step["agreement_before"] is None is step["agreement_after"]
    bare = tmp_path / "bare"
    bare.mkdir()
    dense, compressed = saved_pair(bare, nn.LSTM(24, 6))
    assert tune(bare, compressed, npz(bare, x=x), dense)["agreement_after"] is None


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(24, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])

def loss(outputs, y):
    return nn.functional.cross_entropy(outputs, y)
"""


@pytest.mark.parametrize("loss", [None, "own:loss"], ids=["labels", "own loss"])
def test_agreement_is_recorded_for_a_network_of_the_users(loss, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text(OWN)
    torch.manual_seed(0)
    model = Classifier()
    dense, compressed = saved_pair(tmp_path, model)
    x = draw(120, 5, 24)
    held = npz(tmp_path, "val.npz", x=x[:40], y=np.zeros(40, int))
    options = {"held": str(held), "model": "own:Net", "folder": tmp_path, "loss": loss}
    data = npz(tmp_path, x=x[40:], y=np.arange(80) % 3)
    step = tune(tmp_path, compressed, data, dense, SMALL, **options)
    inputs = torch.from_numpy(x[:40])
    for path, when in ((compressed, "before"), (tmp_path / "tuned.safetensors", "after")):
        alike = btcompress.apply(Classifier(), path)(inputs).argmax(1) == model(inputs).argmax(1)
        expected = {"steps": None, "ends": pytest.approx(float(alike.float().mean())), "n_steps": 0, "n_ends": 40}
        assert step[f"agreement_{when}"] == expected
    sys.modules.pop("own", None)
