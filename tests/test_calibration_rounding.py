"""Calibrating what is stored in fewer bits: rounded by what it gives on inputs, then trained through the rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import CalibrationRequest, SampleInputs, calibrate, on_inputs
from btcompress.calibration.errors import hidden_state_error
from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.factorization import open_weights
from btcompress.finetune import TrainConfig
from btcompress.finetune.data import open_data, split
from btcompress.finetune.networks import choose_dense_lstm
from btcompress.packing import Integers, Packed
from tuning import draw

CONFIG = TrainConfig(epochs=4, batch_size=8, seed=1, learning_rate=1e-3, cpu=True)


class Model(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.lstm = nn.LSTM(20, 8, batch_first=True, **arguments)
        n_outputs = (arguments.get("proj_size") or 8) * (2 if arguments.get("bidirectional") else 1)
        self.head = nn.Linear(n_outputs, 3)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTMCell(20, 8)
        self.head = nn.Linear(8, 3)


def request_of(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)
    return CalibrationRequest((SampleInputs(str(folder / "x.npz"), "lstm"),))


def inputs(n=120):
    # Inputs whose directions differ, so that there is something to feed errors back by.
    return (draw(n, 6, 20) @ draw(20, 20, seed=5) / 4).astype(np.float32)


def started(model, kinds):
    """A model with block terms in these kinds of matrices; none at all where there are no kinds."""
    dense = open_weights(model)
    if not kinds:
        return dense, CompressedCheckpoint.of(dense, {}, {})
    return dense, btcompress.factorize(model, matrices=kinds, cp_rank=2, tucker_rank=3, allow_growth=True)


TRAINED = {
    "one layer": (Model, ()),
    "two layers, two directions": (lambda: Model(num_layers=2, bidirectional=True), ()),
    "projections": (lambda: Model(proj_size=5), ()),
    "cell": (Cell, ()),
    "mixed": (lambda: Model(num_layers=2), ("input",)),
    "block terms": (lambda: Model(bidirectional=True), ("input", "recurrent", "linear")),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("one layer", "block terms") for how in (Integers(3, 8), Integers(2, 16))),
        ("two layers, two directions", Integers(3, 8)),
        ("projections", Integers(2, 16)),
        ("cell", Integers(3, 8)),
        ("mixed", Integers(2, 16)),
        ("mixed", torch.float16),
        ("two layers, two directions", torch.float16),
    ],
    ids=str,
)
def test_training_goes_on_through_the_rounding_and_the_result_does_what_is_said(name, how, tmp_path):
    make, kinds = TRAINED[name]
    torch.manual_seed(0)
    dense, compressed = started(make(), kinds)
    request = request_of(tmp_path, x=inputs())
    keys = [key for key in dense.tensors if "weight" in key]
    after = calibrate(compressed, dense, request, CONFIG, precisions=dict.fromkeys(keys, how))
    step = after.history[-1]
    assert step["hidden_state_error_after"] <= step["hidden_state_error_rounded"]
    if isinstance(how, Integers):
        assert step["hidden_state_error_after"] < 0.9 * step["hidden_state_error_before"]
    assert set(after.chosen) == set(keys)
    assert set(after.rounded) == set(keys) - set(compressed.matrices)
    for key in keys:
        assert after.precisions_of_matrix(key) == (how,)
    btcompress.save(after, tmp_path / "result.safetensors")
    again = btcompress.load(tmp_path / "result.safetensors")
    _, held = split(open_data(str(tmp_path / "x.npz"), layer="lstm"), request.held_fraction, CONFIG.seed)
    entry = choose_dense_lstm(dense, "lstm", "")
    error = hidden_state_error(again, dense, entry, held, CONFIG.batch_size)
    assert error == pytest.approx(step["hidden_state_error_after"], rel=1e-5)
    formed = btcompress.to_dense(again)
    for key, matrix in again.rounded.items():
        wanted = dense.tensors[key]
        assert matrix.weight_error == pytest.approx(float((wanted - formed[key]).norm() / wanted.norm()), rel=1e-4)


def test_errors_on_inputs_are_those_of_the_matrices_as_stored(tmp_path):
    torch.manual_seed(0)
    model = Model().double()
    dense, compressed = started(model, ())
    x = inputs().astype(np.float64)
    request = request_of(tmp_path, x=x)
    keys = ("lstm.weight_ih_l0", "head.weight")
    after = calibrate(compressed, dense, request, CONFIG, precisions=dict.fromkeys(keys, Integers(3, 8)))
    hidden = model.lstm(torch.from_numpy(x))[0].detach()
    measured = on_inputs(after, dense, request.inputs)({key: [after.tensors[key]] for key in keys})
    for key, given in zip(keys, (torch.from_numpy(x), hidden), strict=True):
        given = given.reshape(-1, given.shape[-1])
        missed = (given @ (dense.tensors[key] - after.tensors[key]).T).norm()
        assert measured[key][0].plain == pytest.approx(float(missed / (given @ dense.tensors[key].T).norm()))
    held = torch.randperm(120, generator=torch.Generator().manual_seed(1))[:24]
    own = torch.from_numpy(x[held]).reshape(-1, 20)
    weight, given = dense.tensors[keys[0]], after.tensors[keys[0]]
    error = float((own @ (weight - given).T).norm() / (own @ weight.T).norm())
    assert after.history[-1]["activation_errors"][keys[0]] == pytest.approx(error)


def test_errors_fed_back_are_smaller_on_inputs_than_those_of_the_nearest(tmp_path):
    torch.manual_seed(0)
    dense, compressed = started(Model(), ())
    keys = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight")
    request = replace(request_of(tmp_path, x=inputs()), train=False)
    step = calibrate(compressed, dense, request, CONFIG, precisions=dict.fromkeys(keys, Integers(3, 8))).history[-1]
    for key in keys:
        assert step["activation_errors"][key] < 0.95 * step["activation_errors_before"][key]
    assert (step["epochs"], step["hidden_state_error_after"]) == (0, step["hidden_state_error_rounded"])


def test_linear_layer_with_inputs_of_its_own_is_rounded_by_them(tmp_path):
    torch.manual_seed(0)
    dense, compressed = started(nn.Sequential(nn.Linear(20, 9)), ())
    np.savez(tmp_path / "x.npz", x=inputs())
    request = CalibrationRequest((SampleInputs(str(tmp_path / "x.npz"), "0"),))
    after = calibrate(compressed, dense, request, CONFIG, precisions={"0.weight": Integers(3, 8)})
    step = after.history[-1]
    assert step["activation_errors"]["0.weight"] < 0.95 * step["activation_errors_before"]["0.weight"]
    assert isinstance(after.stored["0.weight"], Packed)
    assert after.rounded.keys() == {"0.weight"}


def test_what_was_rounded_before_stays_so_and_is_trained_on(tmp_path):
    torch.manual_seed(0)
    model = Model()
    dense, compressed = started(model, ())
    request = request_of(tmp_path, x=inputs())
    keys = ("lstm.weight_ih_l0", "lstm.weight_hh_l0")
    first = calibrate(
        compressed, dense, replace(request, train=False), CONFIG, precisions=dict.fromkeys(keys, Integers(2, 8))
    )
    second = calibrate(first, dense, request, CONFIG)
    one, two = (each.history[-1] for each in (first, second))
    assert two["hidden_state_error_before"] == pytest.approx(one["hidden_state_error_after"])
    assert two["hidden_state_error_after"] < two["hidden_state_error_before"]
    assert "hidden_state_error_rounded" not in two
    for key in keys:
        assert second.stored[key].integers == Integers(2, 8)
        assert not torch.equal(second.stored[key].scales, first.stored[key].scales)


def test_frozen_matrices_stay_as_they_were_rounded(tmp_path):
    torch.manual_seed(0)
    dense, compressed = started(Model(num_layers=2), ())
    request = request_of(tmp_path, x=inputs())
    bits = {key: Integers(3, 8) for key in dense.tensors if "weight_" in key}
    rounded = calibrate(compressed, dense, replace(request, train=False), CONFIG, precisions=bits)
    trained = calibrate(compressed, dense, request, replace(CONFIG, freeze=("*weight_hh*",)), precisions=bits)
    for key in bits:
        same = torch.equal(rounded.stored[key].scales, trained.stored[key].scales)
        assert same == ("weight_hh" in key)


def test_what_no_integers_can_stand_for_stays_and_is_said_to(tmp_path):
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.lstm.weight_hh_l0.mul_(1e-6)
    dense, compressed = started(model, ())
    bits = dict.fromkeys(("lstm.weight_ih_l0", "lstm.weight_hh_l0"), Integers(3, 8))
    after = calibrate(compressed, dense, request_of(tmp_path, x=inputs()), CONFIG, precisions=bits)
    assert after.rounded.keys() == {"lstm.weight_ih_l0"}
    assert sum("lstm.weight_hh_l0 stays as it was" in notice for notice in after.notices) == 1


def test_same_seed_gives_the_same_codes(tmp_path):
    torch.manual_seed(0)
    dense, compressed = started(Model(num_layers=2), ())
    request = request_of(tmp_path, x=inputs())
    bits = {key: Integers(3, 8) for key in dense.tensors if "weight_" in key}
    first, second = (calibrate(compressed, dense, request, CONFIG, precisions=bits) for _ in range(2))
    for key, how in first.stored.items():
        assert torch.equal(how.codes, second.stored[key].codes)
        assert torch.equal(how.scales, second.stored[key].scales)
