import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import CalibrationRequest, SampleInputs, activation_errors, calibrate
from btcompress.calibration.refit import refit
from btcompress.calibration.sampling import samples_of
from btcompress.checkpoint import find_recurrent
from btcompress.errors import BTCompressError, ShapeError
from btcompress.factorization import factorize_as_planned, open_weights
from btcompress.finetune import TrainConfig
from btcompress.finetune.config import rate_from
from btcompress.finetune.data import open_data
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan
from btcompress.shapes import BlockTermShape, MatrixShape
from tuning import draw

CONFIG = TrainConfig(epochs=4, batch_size=8, seed=1, cpu=True)


def request_of(path, layer=None, **options):
    return CalibrationRequest((SampleInputs(str(path), layer),), **options)


def calibrated(folder, model, *, config=CONFIG, x=None, on_progress=None, request=None, **arguments):
    """The dense checkpoint, its factorized form, and that calibrated."""
    np.savez(folder / "x.npz", x=draw(240, 6, 24) if x is None else x)
    dense = open_weights(model)
    options = {"cp_rank": 2, "tucker_rank": 2, "allow_growth": True, **arguments}
    compressed = btcompress.factorize(model, **options)
    request = request or request_of(folder / "x.npz")
    return dense, compressed, calibrate(compressed, dense, request, config, on_progress)


def low_rank(model, gates, rank):
    """Every W and U of an LSTM as a plain low-rank matrix, or four."""
    checkpoint = open_weights(model)
    plan = make_plan(checkpoint, ShapeRequest(), matrices=("input", "recurrent"), allow_growth=True)
    forms = []
    for planned in plan.matrices:
        rows, columns = checkpoint.tensors[planned.name].shape
        n_parts = 4 if gates == "separate" else 1
        part = BlockTermShape.low_rank(rows // n_parts, columns, rank, n_gates=4 // n_parts)
        forms.append(replace(planned, shape=MatrixShape(part, gates)))
    return factorize_as_planned(checkpoint, replace(plan, matrices=tuple(forms)))


def hidden_state_error(model, compressed, x):
    wanted = model(x)[0]
    given = btcompress.apply(copy.deepcopy(model), compressed)(x)[0]
    return float((given - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("arguments", "matrices"),
    [
        ({}, ("input",)),
        ({"num_layers": 3}, ("input", "recurrent")),
        ({"num_layers": 2, "bidirectional": True}, ("input",)),
        ({"num_layers": 2, "bidirectional": True}, ("input", "recurrent")),
    ],
    ids=["one layer", "three layers", "two directions, input", "two directions"],
)
def test_hidden_states_come_nearer_to_the_dense_ones_on_sequences_never_seen(arguments, matrices, tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(24, 6, batch_first=True, **arguments)
    _, before, after = calibrated(tmp_path, model, matrices=matrices)
    fresh = torch.from_numpy(draw(50, 6, 24, seed=7))
    with torch.no_grad():
        assert hidden_state_error(model, after, fresh) < 0.9 * hidden_state_error(model, before, fresh)


def test_what_is_reported_is_what_the_result_does(tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(24, 6, num_layers=2, batch_first=True).double()
    x = draw(60, 6, 24).astype(np.float64)
    dense, before, after = calibrated(tmp_path, model, x=x)
    step = after.history[-1]
    assert (step["n_train"], step["n_held"]) == (48, 12)
    held = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:12]
    inputs = torch.from_numpy(x[held])
    with torch.no_grad():
        for name, compressed in (("before", before), ("after", after)):
            assert step[f"hidden_state_error_{name}"] == pytest.approx(hidden_state_error(model, compressed, inputs))
        weight = model.weight_ih_l0
        difference = (weight - btcompress.to_dense(after)["weight_ih_l0"]) @ inputs.reshape(-1, 24).T
        error = float(difference.norm() / (weight @ inputs.reshape(-1, 24).T).norm())
    report = btcompress.report(after)
    assert report.matrices[0].activation_error == pytest.approx(error)
    for row in report.matrices:
        wanted, given = dense.tensors[row.name], btcompress.to_dense(after)[row.name]
        assert row.weight_error == pytest.approx(float((wanted - given).norm() / wanted.norm()))


def test_layers_are_trained_in_order_and_then_together(tmp_path):
    seen = []
    _, _, after = calibrated(tmp_path, nn.LSTM(24, 6, num_layers=2), on_progress=seen.append)
    epochs = [(each.what.removeprefix("calibrating "), each.state.split(",")[0]) for each in seen if each.state]
    assert epochs == [
        *(("layer 0 of the LSTM", f"epoch {number} of 2") for number in (1, 2)),
        *(("layer 1 of the LSTM", f"epoch {number} of 2") for number in (1, 2)),
        *(("all layers of the LSTM", f"epoch {number} of 4") for number in (1, 2, 3, 4)),
    ]
    (told,) = btcompress.report(after).calibrated
    assert [(curve.layer, len(curve.metrics)) for curve in told.learning_curves] == [(0, 3), (1, 3), (None, 5)]
    assert min(told.learning_curves[-1].metrics) == pytest.approx(told.hidden_state_error_after, rel=1e-3)


def test_result_is_never_worse_than_the_fit_on_the_sequences_held_back(tmp_path):
    torch.manual_seed(0)
    _, _, after = calibrated(tmp_path, nn.LSTM(24, 6), config=replace(CONFIG, learning_rate=50.0, epochs=1))
    step = after.history[-1]
    assert step["hidden_state_error_after"] <= (1 + 1e-6) * step["hidden_state_error_before"]


@pytest.mark.parametrize("rank", [2, 20])
def test_the_learning_rate_follows_where_the_fit_to_the_inputs_stands_unless_it_is_given(rank, tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(24, 24)
    compressed, dense = low_rank(model, "fused", rank), open_weights(model)
    np.savez(tmp_path / "x.npz", x=draw(40, 6, 24))
    configs = (replace(CONFIG, epochs=1), replace(CONFIG, epochs=1, learning_rate=3e-2))
    step, given = (calibrate(compressed, dense, request_of(tmp_path / "x.npz"), each).history[-1] for each in configs)
    start = min(step["hidden_state_error_refitted"], step["hidden_state_error_before"])
    assert step["config"]["learning_rate"] == rate_from(start)
    assert given["config"]["learning_rate"] == 3e-2
    assert rate_from(start) < 3e-3 if rank == 20 else rate_from(start) == 3e-3


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "two directions"])
def test_refit_low_rank_has_the_least_weighted_activation_error_of_its_rank(gates, bidirectional, tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(12, 5, num_layers=2, batch_first=True, bidirectional=bidirectional).double()
    x = (draw(40, 6, 12) @ draw(12, 12, seed=5)).astype(np.float64)
    np.savez(tmp_path / "x.npz", x=x)
    compressed, dense = low_rank(model, gates, rank=2), open_weights(model)
    entry = find_recurrent(compressed.outline())[0]
    data = open_data(str(tmp_path / "x.npz"))
    samples = samples_of(dense, entry, data, data, torch.float64, batch_size=7)
    after = refit(compressed, dense, samples)
    inputs = torch.from_numpy(x)
    for suffix in entry.suffixes[:2] if bidirectional else ("_l0",):
        key = f"weight_ih{suffix}"
        weight, scale = model.get_parameter(key).detach(), samples[key].weights
        products = (inputs.reshape(-1, 12) @ weight.T * scale).unflatten(1, (4 if gates == "separate" else 1, -1))
        least = sum(float(torch.linalg.svdvals(part)[2:].square().sum()) for part in products.unbind(1))
        given = btcompress.to_dense(after)[key]
        error = float((inputs.reshape(-1, 12) @ (weight - given).T * scale).square().sum())
        assert error == pytest.approx(least)
    weights = {key: sample.weights for key, sample in samples.items()}
    before, now = activation_errors([compressed, after], dense, entry, data, weights)
    assert len(before) == 4 * (1 + bidirectional)
    assert all(now[key].weighted < before[key].weighted for key in before)


def test_without_training_only_the_matrices_change(tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(12, 5, batch_first=True)
    compressed = low_rank(model, "fused", rank=2)
    request = request_of(tmp_path / "x.npz", train=False)
    np.savez(tmp_path / "x.npz", x=draw(40, 6, 12))
    unlucky = calibrate(compressed, open_weights(model), request, CONFIG)
    step = unlucky.history[-1]  # up to rounding, as the scale is spread evenly once more
    assert step["hidden_state_error_after"] <= (1 + 1e-6) * step["hidden_state_error_before"]
    np.savez(tmp_path / "x.npz", x=draw(40, 6, 3) @ draw(3, 12, seed=5))
    after = calibrate(compressed, open_weights(model), request, CONFIG)
    changed = {name for name in after.tensors if not torch.equal(compressed.tensors[name], after.tensors[name])}
    assert changed == {f"weight_{kind}_l0.factors.{k}" for kind in ("ih", "hh") for k in (0, 1)}
    step = after.history[-1]
    assert step["epochs"] == 0
    for errors in ("activation_errors", "weighted_activation_errors"):
        assert step[errors] == step[f"{errors}_refitted"]
    assert step["hidden_state_error_after"] < step["hidden_state_error_before"]


def test_frozen_tensors_stay_and_others_change(tmp_path):
    _, before, after = calibrated(tmp_path, nn.LSTM(24, 6), config=replace(CONFIG, freeze=("weight_hh_*", "bias_*")))
    changed = {name for name in before.tensors if not torch.equal(before.tensors[name], after.tensors[name])}
    assert changed == {name for name in before.tensors if name.startswith("weight_ih_l0.")}


def test_same_seed_gives_the_same_tensors(tmp_path):
    model = nn.LSTM(24, 6)
    first, again = (calibrated(tmp_path, model)[2] for _ in range(2))
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)


def test_what_does_not_fit_is_refused_in_words(tmp_path):
    with pytest.raises(ShapeError, match="24 inputs at each step"):
        calibrated(tmp_path, nn.LSTM(24, 6), x=draw(30, 5, 23))
    two = nn.ModuleDict({"a": nn.LSTM(24, 6), "b": nn.LSTM(24, 6)})
    with pytest.raises(BTCompressError, match=r"a \(24 inputs\), b"):
        calibrated(tmp_path, two)
    _, _, after = calibrated(tmp_path, two, request=request_of(tmp_path / "x.npz", "b"))
    assert after.history[-1]["lstm"] == "b"
    with pytest.raises(BTCompressError, match="no LSTM or linear layer named 'c'"):
        calibrated(tmp_path, two, request=request_of(tmp_path / "x.npz", "c"))


@pytest.mark.parametrize(
    ("x", "without"),
    [(np.zeros((30, 5, 24)), "weight_ih_l0: all inputs"), (draw(30, 1, 24), "weight_hh_l0, weight_hh_l1: all inputs")],
    ids=["zeros", "one step"],
)
def test_matrices_that_meet_only_zeros_are_named_and_do_not_stop_others(x, without, tmp_path):
    model = nn.LSTM(24, 6, num_layers=2)
    with pytest.raises(BTCompressError, match=without):
        calibrated(tmp_path, model, x=x, matrices=("input", "recurrent"))
    others = {"matrices": ("recurrent",)} if "ih" in without else {"matrices": ("input",)}
    _, _, after = calibrated(tmp_path, model, x=x, **others)
    assert after.history[-1]["hidden_state_error_after"] < after.history[-1]["hidden_state_error_before"]
