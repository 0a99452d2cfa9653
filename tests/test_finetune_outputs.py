"""Whole networks without labels: learning to give the dense network's outputs."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.data import Batch
from btcompress.finetune.tasks import TeacherOutputs
from tuning import SMALL, draw, saved_pair, tune

USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.lstm = nn.LSTM(24, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x, lengths=None):
        hidden, _ = self.lstm(self.embed(x[..., 0].long()))
        return {"scores": self.head(hidden), "kept": (hidden.mean(1), [x[..., 0].long()])}

class Silent(Net):
    def forward(self, x, lengths=None):
        return super().forward(x)["kept"][1]
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "mine.py").write_text(USER_CODE)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    import mine

    torch.manual_seed(1)
    model = mine.Net()
    with torch.no_grad():
        model.lstm.weight_ih_l0.mul_(4)
    x = np.random.default_rng(0).integers(30, size=(200, 5, 1))
    lengths = np.arange(200) % 5 + 1
    np.savez(tmp_path / "data.npz", x=x[40:], lengths=lengths[40:])
    np.savez(tmp_path / "val.npz", x=x[:40], lengths=lengths[:40])
    options = {"model": "mine:Net", "folder": folder, "held": str(tmp_path / "val.npz")}
    yield model, *saved_pair(tmp_path, model), tmp_path / "data.npz", options
    sys.modules.pop("mine", None)


def outputs_of(model, x, lengths):
    """Scores of the steps that count, and the means of all."""
    given = model(torch.from_numpy(x))
    return given["scores"].detach().numpy()[np.arange(5) < lengths[:, None]], given["kept"][0].detach().numpy()


def test_network_learns_to_give_the_outputs_of_the_dense_one(user, tmp_path):
    model, dense, compressed, data, options = user
    config = replace(SMALL, epochs=6, learning_rate=2e-2)
    step = tune(tmp_path, compressed, data, dense, config, **options)
    assert (step["way"], step["metric"], step["dense"]) == ("own model", "output error", 0.0)
    assert 0 < step["after"] < 0.8 * step["before"]
    val = np.load(tmp_path / "val.npz")
    wanted = outputs_of(model, val["x"], val["lengths"])
    for path, when in ((compressed, "before"), (tmp_path / "tuned.safetensors", "after")):
        given = outputs_of(btcompress.apply(type(model)(), path), val["x"], val["lengths"])
        agreement = step[f"agreement_{when}"]
        assert agreement == {
            "steps": pytest.approx((given[0].argmax(1) == wanted[0].argmax(1)).mean()),
            "ends": None,
            "n_steps": int(val["lengths"].sum()),
            "n_ends": 0,
        }
        errors = [np.square(ours - theirs).sum() for ours, theirs in zip(given, wanted, strict=True)]
        sizes = [np.square(theirs).sum() for theirs in wanted]
        low, high = sorted(error / size for error, size in zip(errors, sizes, strict=True))
        assert low**0.5 * 0.99 < step[when] < high**0.5 * 1.01
    assert step["agreement_after"]["steps"] > step["agreement_before"]["steps"]
    report = btcompress.report(btcompress.load(tmp_path / "tuned.safetensors"))
    assert report.finetuned[0].agreement_after.steps == step["agreement_after"]["steps"]
    rows = map(json.loads, (tmp_path / "tuned.metrics.jsonl").read_text().splitlines())
    (curve,) = report.finetuned[0].learning_curves
    assert curve.metrics == pytest.approx([step["before"], *(row["metric"] for row in rows)], rel=1e-3)


def test_without_labels_a_loss_or_a_teacher_there_is_nothing_to_learn(user, tmp_path):
    _, dense, compressed, data, options = user
    with pytest.raises(BTCompressError, match=r"no labels y.*--teacher"):
        tune(tmp_path, compressed, data, **options)
    with pytest.raises(BTCompressError, match="no floating-point tensors"):
        tune(tmp_path, compressed, data, dense, **{**options, "model": "mine:Silent"})


def test_resumed_network_ends_in_the_same_bytes(user, tmp_path):
    _, dense, compressed, data, options = user

    def stop(epoch):
        raise InterruptedError

    tune(tmp_path, compressed, data, dense, name="whole", **options)
    with pytest.raises(InterruptedError):
        tune(tmp_path, compressed, data, dense, name="cut", on_epoch=stop, **options)
    tune(tmp_path, compressed, data, dense, name="cut", resume=True, **options)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


class Giving(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x, lengths, state):
        return self.outputs


def batch_of(n_steps=3, lengths=(3, 1)):
    return Batch(torch.zeros(2, n_steps, 5), lengths=torch.tensor(lengths))


def task_of(outputs, batch=None):
    return TeacherOutputs(Giving(outputs), batch or batch_of())


def test_output_error_of_one_tensor_is_its_relative_error():
    ours, theirs = (torch.from_numpy(draw(2, 7, seed=seed)) for seed in (0, 1))
    task = task_of(theirs)
    metric = task.finish(*map(float, task.measure(ours, batch_of())))
    assert metric == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-6)


def test_tensors_of_outputs_count_alike_whatever_their_scale():
    small, large = torch.from_numpy(draw(2, 7)) * 1e-3, torch.from_numpy(draw(2, 9, seed=1)) * 1e3
    task = task_of({"b": (small, torch.arange(3)), "a": [large]})
    for factors in ((1.1, 1), (1, 1.1)):
        outputs = {"b": (small * factors[0], torch.arange(3)), "a": [large * factors[1]]}
        total, weight = task.loss(outputs, batch_of())
        n_small, n_large = small.numel(), large.numel()
        share = (n_small, n_large)[factors.index(1.1)] / (n_small + n_large)
        assert float(total / weight) == pytest.approx(0.01 * share, rel=1e-4)


@pytest.mark.parametrize("axis", [1, 2], ids=["steps second", "steps last"])
def test_steps_beyond_lengths_count_for_nothing_in_outputs(axis):
    theirs = torch.from_numpy(draw(2, 3, 4))
    ours = theirs + 0.1
    ours[1, 1:] = 99
    as_given = (ours, theirs) if axis == 1 else (ours.mT, theirs.mT)
    total, weight = task_of(as_given[1]).loss(as_given[0], batch_of())
    counts = torch.cat([theirs[0], theirs[1, :1]])
    assert float(total / weight) == pytest.approx(float(0.01 * counts.numel() / counts.square().sum()), rel=1e-4)


def test_entries_that_are_infinite_in_the_dense_model_count_for_nothing():
    theirs = torch.tensor([[1.0, -torch.inf], [2.0, 1.0]])
    ours = torch.tensor([[1.0, -torch.inf], [2.0, 2.0]], requires_grad=True)
    total, weight = task_of(theirs).loss(ours, Batch(torch.zeros(2, 5)))
    (total / weight).backward()
    assert float((total / weight).detach()) == pytest.approx(1 / 6)
    assert torch.isfinite(ours.grad).all()


def test_parts_of_a_batch_add_up_to_the_whole():
    class Echo(nn.Module):
        def forward(self, x, lengths, state):
            return x, x[:, 0]

    x, noise = (torch.from_numpy(draw(6, 3, 5, seed=seed)) for seed in (0, 1))
    lengths = torch.tensor([1, 2, 3, 3, 2, 1])
    task = TeacherOutputs(Echo(), Batch(x[:3], lengths=lengths[:3]))

    def sums(rows):
        given = x[rows] + noise[rows]
        return torch.stack(task.loss((given, given[:, 0]), Batch(x[rows], lengths=lengths[rows])))

    torch.testing.assert_close(sums(slice(0, 2)) + sums(slice(2, 6)), sums(slice(0, 6)))


def test_networks_that_give_other_tensors_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 7\).*\(2, 6\)"):
        task_of(torch.ones(2, 6)).loss(torch.ones(2, 7), batch_of())
    with pytest.raises(BTCompressError, match="only zeros"):
        task_of(torch.zeros(2, 6))
