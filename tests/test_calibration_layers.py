"""Calibrating several layers of one checkpoint, each on its own inputs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import CalibrationRequest, SampleInputs, calibrate, gather_samples
from btcompress.errors import BTCompressError, ShapeError
from btcompress.factorization import factorize_as_planned, open_weights
from btcompress.finetune import TrainConfig
from btcompress.fit import FitOptions
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan
from btcompress.shapes import BlockTermShape, MatrixShape
from tuning import draw

CONFIG = TrainConfig(epochs=4, batch_size=8, seed=1, learning_rate=3e-3, cpu=True)
KINDS = ("input", "recurrent", "linear")


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(10, 8, batch_first=True)
        self.decoder = nn.LSTM(9, 8, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, x, y):
        return self.head(self.decoder(y, self.encoder(x)[1])[0])


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = EncoderDecoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def low_rank(model, rank=2, kinds=KINDS, layers=()):
    """Matrices of a model as low-rank ones."""
    dense = open_weights(model)
    plan = make_plan(dense, ShapeRequest(), layers, matrices=kinds, allow_growth=True)
    forms = []
    for planned in plan.matrices:
        rows, columns = dense.tensors[planned.name].shape
        shape = BlockTermShape.low_rank(rows, columns, rank, n_gates=planned.shape.part.n_gates)
        forms.append(replace(planned, shape=MatrixShape(shape, "fused")))
    return dense, factorize_as_planned(dense, replace(plan, matrices=tuple(forms)), FitOptions(max_sweeps=0))


def inputs_of(folder, model, n=80, states=True):
    """Files of what both LSTMs of a model get, and one of both as the recorder writes it."""
    x, y = draw(n, 6, 10, seed=1) @ np.diag(np.arange(10, 0, -1) / 5), draw(n, 5, 9, seed=2)
    x, y = x.astype(np.float32), y.astype(np.float32)
    with torch.no_grad():
        h, c = (state.transpose(0, 1).numpy() for state in model.encoder(torch.from_numpy(x))[1])
    given = {"h0": h, "c0": c} if states else {}
    np.savez(folder / "encoder.npz", x=x)
    np.savez(folder / "decoder.npz", x=y, **given)
    both = {"encoder/x": x, "decoder/x": y, **{f"decoder/{name}": value for name, value in given.items()}}
    np.savez(folder / "both.npz", **both)
    return x, y, h, c


def request_of(folder, *layers, **options):
    return CalibrationRequest(tuple(SampleInputs(str(folder / f"{name}.npz"), name) for name in layers), **options)


def steps_of(result, kind="calibrate"):
    return {step.get("lstm", step.get("layer")): step for step in result.history if step["step"] == kind}


def held_of(n):
    return torch.randperm(n, generator=torch.Generator().manual_seed(CONFIG.seed))[: round(0.2 * n)].sort().values


def test_each_lstm_gets_nearer_to_its_own_hidden_states(model, tmp_path):
    x, y, h, c = inputs_of(tmp_path, model)
    dense, compressed = low_rank(model)
    result = calibrate(compressed, dense, request_of(tmp_path, "decoder", "encoder"), CONFIG)
    steps = steps_of(result)
    assert list(steps) == ["decoder", "encoder"]
    after = btcompress.apply(copy.deepcopy(model), result)
    held = held_of(len(x))
    with torch.no_grad():
        for name, values, state in (("encoder", x, None), ("decoder", y, (h, c))):
            state = state and tuple(torch.from_numpy(each[held]).transpose(0, 1).contiguous() for each in state)
            wanted, given = (getattr(each, name)(torch.from_numpy(values[held]), state)[0] for each in (model, after))
            error = float((given - wanted).norm() / wanted.norm())
            step = steps[name]
            assert step["hidden_state_error_after"] == pytest.approx(error, rel=1e-5)
            assert error < 0.9 * step["hidden_state_error_before"]
            assert step["epochs"] == 4
            assert step["layer_epochs"] == 0


def test_a_recorded_file_of_all_layers_says_itself_whose_inputs_they_are(model, tmp_path):
    inputs_of(tmp_path, model)
    dense, compressed = low_rank(model)
    apart = calibrate(compressed, dense, request_of(tmp_path, "encoder", "decoder"), CONFIG)
    together = calibrate(compressed, dense, CalibrationRequest((SampleInputs(str(tmp_path / "both.npz")),)), CONFIG)
    assert [step["step"] for step in together.history[1:]] == ["calibrate", "calibrate"]
    assert all(torch.equal(apart.tensors[name], together.tensors[name]) for name in apart.tensors)


def test_the_states_that_a_decoder_starts_from_are_part_of_what_it_is_calibrated_to(model, tmp_path):
    y, h, c = draw(80, 5, 9), draw(80, 1, 8, seed=5) / 2, 3 * draw(80, 1, 8, seed=6)
    dense, compressed = low_rank(model, kinds=("input", "recurrent"), layers=["decoder.*"])
    held = held_of(len(y))
    state = tuple(torch.from_numpy(each[held]).transpose(0, 1).contiguous() for each in (h, c))
    errors, reported = {}, {}
    for name, states in (("states", {"h0": h, "c0": c}), ("zeros", {})):
        np.savez(tmp_path / "decoder.npz", x=y, **states)
        result = calibrate(compressed, dense, request_of(tmp_path, "decoder"), replace(CONFIG, epochs=10))
        with torch.no_grad():
            wanted = model.decoder(torch.from_numpy(y[held]), state)[0]
            given = btcompress.apply(copy.deepcopy(model), result).decoder(torch.from_numpy(y[held]), state)[0]
        errors[name] = float((given - wanted).norm() / wanted.norm())
        reported[name] = steps_of(result)["decoder"]["hidden_state_error_after"]
    assert reported["states"] == pytest.approx(errors["states"], rel=1e-5)
    assert reported["zeros"] != pytest.approx(errors["zeros"], rel=0.05)
    assert errors["states"] < errors["zeros"]


def test_a_layer_without_inputs_stays_as_fitted_and_one_without_block_terms_is_passed_over(model, tmp_path):
    inputs_of(tmp_path, model)
    dense, compressed = low_rank(model, layers=["encoder.*"])
    result = calibrate(compressed, dense, request_of(tmp_path, "encoder", "decoder"), CONFIG)
    assert list(steps_of(result)) == ["encoder"]
    assert "decoder has sample inputs, but no compressed matrices" in " ".join(result.notices)
    with pytest.raises(BTCompressError, match="decoder has no compressed matrices to calibrate"):
        calibrate(compressed, dense, request_of(tmp_path, "decoder"), CONFIG)
    dense, compressed = low_rank(model)
    result = calibrate(compressed, dense, request_of(tmp_path, "encoder"), CONFIG)
    changed = {name for name in result.tensors if not torch.equal(result.tensors[name], compressed.tensors[name])}
    assert changed
    assert all(name.startswith("encoder.") for name in changed)


def test_a_head_is_fitted_to_the_outputs_of_its_lstm(model, tmp_path):
    _, y, h, c = inputs_of(tmp_path, model)
    dense, compressed = low_rank(model, kinds=("linear",))
    result = calibrate(compressed, dense, request_of(tmp_path, "decoder"), CONFIG)
    changed = {name for name in result.tensors if not torch.equal(result.tensors[name], compressed.tensors[name])}
    assert all(name.startswith("head.weight.") for name in changed)  # an LSTM as it was has nothing to learn
    held = held_of(len(y))
    rest = [n for n in range(len(y)) if n not in set(held.tolist())]
    weight, given = model.head.weight.detach(), btcompress.to_dense(result)["head.weight"]

    def outputs(rows):
        state = tuple(torch.from_numpy(each[rows]).transpose(0, 1).contiguous() for each in (h, c))
        return model.decoder(torch.from_numpy(y[rows]), state)[0].detach().flatten(0, 1)

    missed = float((outputs(rest) @ (weight - given).T).square().sum())
    least = float(torch.linalg.svdvals((outputs(rest) @ weight.T).double())[2:].square().sum())
    assert missed == pytest.approx(least, rel=1e-4)
    step = steps_of(result)["decoder"]
    errors = outputs(held) @ (weight - given).T
    plain = float(errors.norm() / (outputs(held) @ weight.T).norm())
    assert step["activation_errors"]["head.weight"] == pytest.approx(plain, rel=1e-4)
    assert step["activation_errors"]["head.weight"] < step["activation_errors_before"]["head.weight"]


def test_a_linear_layer_with_inputs_of_its_own_is_fitted_to_them(model, tmp_path):
    x = draw(50, 4, 8) @ np.diag(np.arange(8, 0, -1) / 4).astype(np.float32)
    lengths = np.random.default_rng(0).integers(1, 5, 50)
    np.savez(tmp_path / "head.npz", x=x, lengths=lengths)
    dense, compressed = low_rank(model, kinds=("linear",))
    result = calibrate(compressed, dense, request_of(tmp_path, "head"), CONFIG)
    assert [step["step"] for step in result.history] == ["factorize", "refit"]
    step = result.history[-1]
    held = set(held_of(50).tolist())
    fitted_to, measured_on = (
        torch.cat([torch.from_numpy(x[n, : lengths[n]]) for n in range(50) if (n in held) == wanted])
        for wanted in (False, True)
    )
    weight, given = model.head.weight.detach(), btcompress.to_dense(result)["head.weight"]
    least = float(torch.linalg.svdvals((fitted_to @ weight.T).double())[2:].square().sum())
    assert float((fitted_to @ (weight - given).T).square().sum()) == pytest.approx(least, rel=1e-4)
    plain = float((measured_on @ (weight - given).T).norm() / (measured_on @ weight.T).norm())
    assert step["activation_errors"] == {"head.weight": pytest.approx(plain, rel=1e-4)}
    assert step["weighted_activation_errors"] == {"head.weight": pytest.approx(plain, rel=1e-4)}
    assert (step["layer"], step["n_train"], step["n_held"]) == ("head", 40, 10)


def test_errors_of_the_same_size_in_different_layers_cost_the_same(model, tmp_path):
    inputs_of(tmp_path, model)
    dense = open_weights(model)
    samples = gather_samples(dense, CalibrationRequest((SampleInputs(str(tmp_path / "both.npz")),)), CONFIG.seed)
    assert samples.keys() == {
        *(f"{name}.weight_{kind}_l0" for name in ("encoder", "decoder") for kind in ("ih", "hh")),
        "head.weight",
    }
    head = samples["head.weight"]
    size = float((head.inputs @ dense.tensors["head.weight"].double().T * head.weights).square().sum())
    assert size == pytest.approx(1)


def test_projections_are_fitted_to_what_is_projected(tmp_path):
    torch.manual_seed(0)
    model = nn.LSTM(10, 9, proj_size=6, batch_first=True).double()
    x = draw(60, 5, 10).astype(np.float64)
    np.savez(tmp_path / "x.npz", x=x)
    dense, compressed = low_rank(model)
    request = CalibrationRequest((SampleInputs(str(tmp_path / "x.npz")),), train=False)
    samples = gather_samples(dense, request, CONFIG.seed)
    assert samples["weight_hr_l0"].inputs.shape[1] == 9
    step = calibrate(compressed, dense, request, CONFIG, samples=samples).history[-1]
    before, after = (step[f"weighted_activation_errors{when}"]["weight_hr_l0"] for when in ("_before", "_refitted"))
    assert after < before


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            [("encoder", "middle")],
            "no LSTM or linear layer named 'middle'.*decoder .9 inputs., encoder .10 inputs., he",
        ),
        ([("encoder", None)], "not clear which LSTM .*decoder .9 inputs., encoder"),
        ([("both", None), ("decoder", "decoder")], "are both for decoder"),
        ([("encoder", "decoder")], "9 inputs at each step"),
        ([("encoder", "head")], "head takes 8 inputs"),
        ([("strange", None)], "none of them is a layer of the checkpoint"),
    ],
    ids=["no such layer", "several LSTMs", "two for one", "sizes", "sizes of a linear layer", "recorded elsewhere"],
)
def test_inputs_that_do_not_belong_to_a_layer_are_refused_in_words(inputs, words, model, tmp_path):
    inputs_of(tmp_path, model)
    np.savez(tmp_path / "strange.npz", **{"other/x": draw(9, 4, 10), "another/x": draw(9, 4, 10)})
    request = CalibrationRequest(tuple(SampleInputs(str(tmp_path / f"{file}.npz"), name) for file, name in inputs))
    with pytest.raises(BTCompressError, match=words):
        gather_samples(open_weights(model), request)
    dense, compressed = low_rank(model)
    with pytest.raises(BTCompressError, match=words):
        calibrate(compressed, dense, request, CONFIG)
    assert issubclass(ShapeError, BTCompressError)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CalibrationRequest(()), "no sample inputs"),
        (lambda: CalibrationRequest((SampleInputs("a", "b"), SampleInputs("c", "b"))), "two sample inputs for b"),
        (lambda: CalibrationRequest((SampleInputs("a"),), held_fraction=1.0), "between 0 and 1"),
        (lambda: SampleInputs(""), "the name is empty"),
        (lambda: SampleInputs("a", scale=float("nan")), "a number other than 0"),
    ],
)
def test_a_request_is_checked_when_it_is_made(make, words):
    with pytest.raises(BTCompressError, match=words):
        make()


def test_progress_counts_all_that_is_done_and_ends_at_the_end(model, tmp_path):
    inputs_of(tmp_path, model)
    dense, compressed = low_rank(model)
    gathering, calibrating = [], []
    request = CalibrationRequest((SampleInputs(str(tmp_path / "both.npz")),))
    samples = gather_samples(dense, request, CONFIG.seed, on_progress=gathering.append)
    calibrate(compressed, dense, request, CONFIG, calibrating.append, samples)
    for seen in (gathering, calibrating):
        done = [each.index + each.share for each in seen]
        assert done == sorted(done)
        assert done[-1] == seen[0].count == len({each.what for each in seen})
        assert seen[0].seconds_left is None
        assert all(each.seconds_left >= 0 for each in seen[1:] if each.seconds_left is not None)
        assert seen[-1].seconds_left == 0
    assert [each.what for each in gathering if not each.share] == [
        f"running the dense {name} over {tmp_path}/both.npz" for name in ("decoder", "encoder")
    ]
    for what in ("fitting encoder.weight_hh_l0", "fitting head.weight", "calibrating decoder", "measuring encoder"):
        assert any(each.what.startswith(what) for each in calibrating)


def test_the_report_shows_the_errors_of_all_layers_that_were_calibrated_last(model, tmp_path):
    inputs_of(tmp_path, model)
    np.savez(tmp_path / "head.npz", x=draw(50, 4, 8))
    dense, compressed = low_rank(model)
    request = request_of(tmp_path, "encoder", "head", train=False)
    result = calibrate(compressed, dense, request, CONFIG)
    errors = {row.name: row.activation_error for row in btcompress.report(result).matrices}
    calibrated, refitted = steps_of(result)["encoder"], steps_of(result, "refit")["head"]
    assert errors == {
        **dict.fromkeys(("decoder.weight_ih_l0", "decoder.weight_hh_l0")),
        **calibrated["activation_errors"],
        **refitted["activation_errors"],
    }
    trained = result.with_step({"step": "finetune", **dict.fromkeys(("before", "after"), 0.1)})
    assert {step["step"] for step in trained.history} == {"factorize", "calibrate", "refit", "finetune"}
