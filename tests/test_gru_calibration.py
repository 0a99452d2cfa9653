"""GRUs and plain RNNs are sampled, calibrated, recorded and trained as LSTMs are; the reference is written out here."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import btcompress
from btcompress.calibration import on_inputs, sampling
from btcompress.calibration.request import SampleInputs
from btcompress.calibration.sampling import samples_of
from btcompress.calibration.sources import sources_of
from btcompress.checkpoint import from_state_dict, read
from btcompress.errors import BTCompressError, CheckpointError, ShapeError
from btcompress.finetune.data import Arrays, open_data
from btcompress.finetune.networks import Recurrent, stored_tensors
from btcompress.finetune.user import build_student
from btcompress.packing import Integers
from tuning import SMALL, draw, tune

HIDDEN, INPUTS, N, STEPS = 4, 6, 4, 5
LENGTHS = [3, 5, 1, 4]


def step(kind, z, v, state):
    """The next state of a cell, from the input part and the recurrent part of its sums."""
    if kind == "lstm":
        i, f, g, o = (z + v).chunk(4)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if kind == "gru":
        r, u = (torch.sigmoid(each) for each in (z + v)[: 2 * HIDDEN].chunk(2))
        n = torch.tanh(z[2 * HIDDEN :] + r * v[2 * HIDDEN :])
        return ((1 - u) * n + u * state[0],)
    return (torch.relu(z + v) if kind == "relu" else torch.tanh(z + v),)


def run(kind, entry, tensors, sequence, states, nudges=None, met=None):
    """Hidden states of all steps of a sequence, one step after another, shape ``(T, directions * H)``.

    ``nudges[key]`` is added to what the matrix gives at each step, and ``met[key]`` gets what it meets.
    """

    def product(key, vector, t):
        if met is not None:
            met.setdefault(f"{entry.prefix}{key}", []).append(vector)
        bias = tensors.get(key.replace("weight", "bias"), 0)
        return tensors[f"{entry.prefix}{key}"] @ vector + bias + (0 if nudges is None else nudges[key][t])

    for layer in range(entry.num_layers):
        outputs = []
        for place, direction in enumerate(("", "_reverse")[: 1 + entry.bidirectional]):
            suffix = f"_l{layer}{direction}"
            state = [each[layer * (1 + entry.bidirectional) + place] for each in states]
            given = [None] * len(sequence)
            for t in range(len(sequence))[:: -1 if direction else 1]:
                z, v = product(f"weight_ih{suffix}", sequence[t], t), product(f"weight_hh{suffix}", state[0], t)
                state = step(kind, z, v, state)
                given[t] = state[0]
            outputs.append(given)
        sequence = [torch.cat(each) for each in zip(*outputs, strict=True)]
    return torch.stack(sequence)


CASES = {
    "gru": (nn.GRU, "gru", {}, None, False),
    "gru, deep, both directions, lengths, states": (
        nn.GRU,
        "gru",
        {"num_layers": 2, "bidirectional": True},
        LENGTHS,
        True,
    ),
    "gru without bias": (nn.GRU, "gru", {"num_layers": 2, "bias": False}, LENGTHS, False),
    "rnn, both directions, states": (nn.RNN, "tanh", {"bidirectional": True}, LENGTHS, True),
    "rnn, relu": (nn.RNN, "relu", {"num_layers": 2, "nonlinearity": "relu"}, None, False),
    "lstm": (nn.LSTM, "lstm", {"num_layers": 2, "bidirectional": True}, LENGTHS, True),
}


def made(build, arguments, lengths, started, copies=1):
    """A dense checkpoint, its entry, and sequences of its inputs, which may start from states."""
    torch.manual_seed(0)
    module = build(INPUTS, HIDDEN, **arguments).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(3.0 if "hh" in name else 1.5)  # so that what comes back by U counts
    dense = from_state_dict(module.state_dict()).with_nonlinearity(arguments.get("nonlinearity"))
    (entry,) = dense.recurrent()
    random = np.random.default_rng(0)
    x = random.normal(size=(N, STEPS, INPUTS))
    size = (entry.n_states, N, len(entry.suffixes), HIDDEN)
    states = random.normal(size=size) if started else np.zeros(size)
    given = dict(zip(("h0", "c0"), (np.tile(each, (copies, 1, 1)) for each in states), strict=False))
    n_steps = None if lengths is None else np.tile(lengths, copies)
    data = Arrays("x", np.tile(x, (copies, 1, 1)), None, n_steps, 1.0, **given if started else {})
    sequences = [torch.from_numpy(each[: lengths[n] if lengths else None]) for n, each in enumerate(x)]
    return dense, entry, data, list(zip(sequences, torch.from_numpy(states).transpose(0, 1), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_outputs_count_is_how_the_hidden_states_move_with_them(case, monkeypatch):
    build, kind, arguments, lengths, started = CASES[case]
    monkeypatch.setattr(sampling, "_LEAST_WEIGHT", 0.0)
    dense, entry, data, sequences = made(build, arguments, lengths, started)
    found = samples_of(dense, entry, data, data, torch.float64, batch_size=N)
    # The random numbers that hidden states are multiplied by, which are drawn first of all, in the order of packing.
    packed = pack_padded_sequence(torch.from_numpy(data.x), torch.tensor(lengths or [STEPS] * N), True, False)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(packed.data), entry.n_outputs, generator=generator, dtype=torch.float64)
    probe, _ = pad_packed_sequence(PackedSequence(drawn, *packed[1:]), batch_first=True)
    squares, size = {}, 0.0
    for n, (sequence, states) in enumerate(sequences):
        nudges = {
            key: torch.zeros(len(sequence), len(dense.tensors[key]), dtype=torch.float64, requires_grad=True)
            for key in entry.matrix_keys
        }
        hidden = run(kind, entry, dense.tensors, sequence, states, nudges)
        (hidden * probe[n, : len(sequence)]).sum().backward()
        size += float(hidden.detach().square().sum())
        for key, nudge in nudges.items():
            squares[key] = squares.get(key, 0) + nudge.grad.square().sum(0)
    assert found.keys() == squares.keys() == set(entry.matrix_keys)
    for key, square in squares.items():
        torch.testing.assert_close(found[key].weights, (square / size).sqrt(), rtol=1e-9, atol=0)
    # A GRU's reset gate lets errors of U count less in the new gate; all other sums are of the two alike.
    ours, theirs = (found[f"weight_{which}_l0"].weights for which in ("hh", "ih"))
    alike = 2 * HIDDEN if kind == "gru" else len(ours)
    torch.testing.assert_close(ours[:alike], theirs[:alike])
    assert (ours[alike:] < theirs[alike:]).all()


def test_what_outputs_of_a_gru_count_is_what_the_jacobian_says(monkeypatch):
    # Many copies of the same sequences, so that the random numbers average out.
    dense, entry, data, sequences = made(nn.GRU, {}, None, True, copies=300)
    monkeypatch.setattr(sampling, "_PROBED", len(data))
    found = samples_of(dense, entry, data, data, torch.float64, batch_size=len(data))
    squares, size = dict.fromkeys(entry.matrix_keys, 0.0), 0.0
    for sequence, states in sequences:

        def outputs(*nudges, sequence=sequence, states=states):
            return run("gru", entry, dense.tensors, sequence, states, dict(zip(entry.matrix_keys, nudges, strict=True)))

        zeros = torch.zeros(STEPS, 3 * HIDDEN, dtype=torch.float64)
        jacobians = torch.autograd.functional.jacobian(outputs, (zeros, zeros), vectorize=True)
        for key, jacobian in zip(entry.matrix_keys, jacobians, strict=True):
            squares[key] += jacobian.square().sum((0, 1, 2))
        size += float(outputs(zeros, zeros).square().sum())
    for key, square in squares.items():
        assert found[key].weights == pytest.approx((square / size).sqrt(), rel=0.15)


@pytest.mark.parametrize("case", CASES)
def test_rows_stand_for_what_the_matrices_of_each_direction_meet(case):
    build, kind, arguments, lengths, started = CASES[case]
    dense, entry, data, sequences = made(build, arguments, lengths, started)
    found, met = samples_of(dense, entry, data, data, torch.float64, batch_size=3), {}
    for sequence, states in sequences:
        run(kind, entry, dense.tensors, sequence, states, met=met)
    assert found.keys() == met.keys()
    for key, vectors in met.items():
        rows = torch.stack(vectors)
        for given in (found[key].inputs, found[key].held):
            torch.testing.assert_close(given.T @ given, rows.T @ rows / len(rows))


# Recording

BUILDS = {
    "gru": lambda: nn.GRU(INPUTS, HIDDEN, 2, bidirectional=True),
    "gru, batch first": lambda: nn.GRU(INPUTS, HIDDEN, batch_first=True),
    "rnn, relu": lambda: nn.RNN(INPUTS, HIDDEN, 2, nonlinearity="relu", bias=False),
}


def hidden_again(model, path):
    """The hidden states that a model gives on its recorded sequences, one tensor for each."""
    checkpoint = from_state_dict(model.state_dict())
    (entry,) = checkpoint.recurrent()
    if entry.type == "rnn":
        (entry,) = checkpoint.with_nonlinearity(model.nonlinearity).recurrent()
    data = open_data(str(path))
    batch = data.batch(torch.arange(len(data))).to(torch.device("cpu"), torch.float64)
    hidden, *_ = Recurrent(entry, checkpoint.tensors, {}, torch.float64)(batch.x, batch.lengths, batch.state)
    return [own[:n].detach() for own, n in zip(hidden, batch.lengths, strict=True)]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["batch", "one by one", "packed"])
@pytest.mark.parametrize("started", [False, True], ids=["from zeros", "from states"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_calls_are_recorded_with_the_one_state_that_they_begin_with(build, started, layout, tmp_path):
    torch.manual_seed(0)
    model = build().double()
    rows = [torch.randn(n, INPUTS).double() for n in (LENGTHS if layout != "batch" else [STEPS] * N)]
    states = torch.randn(model.num_layers * (1 + model.bidirectional), N, HIDDEN).double() if started else None
    with btcompress.recording(model, tmp_path / "x.npz") as recorded:
        if layout == "batch":
            axis = 0 if model.batch_first else 1
            expected = model(torch.stack(rows, axis), states)[0].unbind(axis)
        elif layout == "packed":
            padded, lengths = pad_packed_sequence(model(pack_sequence(rows, enforce_sorted=False), states)[0], True)
            expected = [own[:n] for own, n in zip(padded, lengths, strict=True)]
        else:
            expected = [model(row, None if states is None else states[:, n])[0] for n, row in enumerate(rows)]
    assert_same(hidden_again(model, tmp_path / "x.npz"), expected)
    assert recorded.layers[""].has_states == started
    with np.load(tmp_path / "x.npz") as arrays:
        assert {*arrays} == {"x", "lengths", "has_states"} | ({"h0"} if started else set())


@pytest.mark.parametrize("build", [nn.GRUCell, nn.RNNCell, nn.GRU, nn.RNN])
def test_a_stream_that_goes_on_with_its_state_is_one_sequence(build, tmp_path):
    model = build(INPUTS, HIDDEN).double()
    x, state, outputs = torch.randn(STEPS, N, INPUTS).double(), None, []
    with btcompress.recording(model, tmp_path / "x.npz") as recorded:
        for each in x:
            if build in (nn.GRU, nn.RNN):
                _, state = model(each[None], state)
                outputs.append(state[0])
            else:
                state = model(each, state)
                outputs.append(state)
    assert (recorded.layers[""].sequences, recorded.layers[""].steps) == (N, N * STEPS)
    assert_same(hidden_again(model, tmp_path / "x.npz"), torch.stack(outputs, 1))


def test_states_are_as_many_as_the_layer_has(tmp_path):
    states = draw(N, 1, HIDDEN)
    np.savez(tmp_path / "x.npz", x=draw(N, STEPS, INPUTS), h0=states, c0=states)
    dense = from_state_dict(nn.GRU(INPUTS, HIDDEN).state_dict())
    with pytest.raises(ShapeError, match="c0 is there, but the GRU, of the class GRU, starts from h0 alone"):
        sources_of(dense, [SampleInputs(str(tmp_path / "x.npz"))])


# Layers under several names

FORMS = {
    "block terms": {"cp_rank": 1, "tucker_rank": 1, "max_sweeps": 1},
    "block terms in 4 bits": {"cp_rank": 1, "tucker_rank": 1, "max_sweeps": 1, "bits": 4},
    "rounded": {"bits": 4},
}


def tied(path, **options):
    """A GRU under two names, calibrated on a file of inputs."""
    torch.manual_seed(0)
    gru = nn.GRU(INPUTS, HIDDEN)
    np.savez(path, x=draw(30, STEPS, INPUTS))
    return gru, btcompress.factorize(nn.ModuleDict({"a": gru, "b": gru}), **options)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("layer", [None, "b"])
def test_a_layer_under_two_names_is_calibrated_once_by_any_of_them(layer, form, tmp_path):
    inputs = [SampleInputs(str(tmp_path / "x.npz"), layer)]
    options = {"matrices": ["recurrent"], "calibration": inputs, "calibration_epochs": 1}
    gru, result = tied(tmp_path / "x.npz", **options, **form)
    (step,) = (each for each in result.history if each["step"] == "calibrate")
    assert step["lstm"] == (layer or "a")
    assert step["activation_errors"].keys() == {f"{layer or 'a'}.weight_hh_l0"}
    if form is FORMS["block terms"]:
        assert not torch.equal(result.tensors["a.bias_hh_l0"], gru.bias_hh_l0)
    for name, tensor in result.tensors.items():
        assert tensor is result.tensors[f"a{name[1:]}"], name
    assert result.chosen == ("a.weight_hh_l0", "b.weight_hh_l0")
    assert result.precisions_of_matrix("b.weight_hh_l0")[0] == (Integers(4) if "bits" in form else torch.float32)


def test_a_layer_under_two_names_is_trained_under_both(tmp_path):
    gru, result = tied(tmp_path / "x.npz", **FORMS["block terms"])
    torch.save({f"{name}.{key}": each for name in "ab" for key, each in gru.state_dict().items()}, tmp_path / "m.pt")
    btcompress.save(result, tmp_path / "m.bt.safetensors")
    tune(tmp_path, tmp_path / "m.bt.safetensors", tmp_path / "x.npz", tmp_path / "m.pt", replace(SMALL, epochs=1))
    tuned = btcompress.load(tmp_path / "tuned.safetensors").tensors
    assert not torch.equal(tuned["a.bias_hh_l0"], gru.bias_hh_l0)
    assert all(tensor.data_ptr() == tuned[f"a{name[1:]}"].data_ptr() for name, tensor in tuned.items())


def test_inputs_of_one_layer_under_both_of_its_names_are_refused(tmp_path):
    inputs = [SampleInputs(str(tmp_path / "x.npz"), name) for name in "ab"]
    with pytest.raises(BTCompressError, match="both for a and b, which are one and the same layer"):
        tied(tmp_path / "x.npz", calibration=inputs)


# Training and measuring


class Tagger(nn.Module):
    """A recurrent layer and its head, called with a batch first."""

    def __init__(self, build=nn.GRU, **options):
        super().__init__()
        self.rnn = build(INPUTS, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(HIDDEN * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x, lengths=None):
        return self.head(self.rnn(x)[0])


LAYERS = {
    "gru": (nn.GRU, {"num_layers": 2}),
    "gru, both directions": (nn.GRU, {"bidirectional": True}),
    "rnn, relu": (nn.RNN, {"nonlinearity": "relu"}),
    "rnn": (nn.RNN, {"num_layers": 2, "bias": False}),
}


def model_of(case):
    torch.manual_seed(0)
    build, options = LAYERS[case]
    return Tagger(build, **options), options.get("nonlinearity")


def saved(folder, model, nonlinearity, **options):
    """A model's checkpoint, dense and compressed, and a file of inputs of its recurrent layer with its states."""
    torch.save(model.state_dict(), folder / "m.pt")
    n = model.rnn.num_layers * (1 + model.rnn.bidirectional)
    np.savez(folder / "x.npz", x=draw(40, STEPS, INPUTS), h0=draw(40, n, HIDDEN, seed=1))
    options = {"cp_rank": 1, "tucker_rank": 2, "max_sweeps": 2, **options}
    if options.pop("calibrated", False):
        options["calibration"] = [SampleInputs(str(folder / "x.npz"))]
    matrices = ["input", "recurrent", "linear"]
    result = btcompress.factorize(
        folder / "m.pt", nonlinearity=nonlinearity, matrices=matrices, allow_growth=True, **options
    )
    btcompress.save(result, folder / "m.bt.safetensors")
    return result


def hidden_states(model, tensors, path):
    """What the recurrent layer gives on a file with other weights, by torch's own module, and what its head decides."""
    again = copy.deepcopy(model)
    again.load_state_dict(tensors)
    with np.load(path) as arrays:
        x, h = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["h0"]).transpose(0, 1).contiguous()
    hidden = again.rnn(x, h)[0].detach()
    return hidden, again.head(hidden).argmax(-1)


@pytest.mark.parametrize("case", LAYERS)
def test_a_report_measures_hidden_states_and_decisions_from_the_states_given(case, tmp_path):
    model, nonlinearity = model_of(case)
    saved(tmp_path, model, nonlinearity)
    dense, result = read(tmp_path / "m.pt"), btcompress.load(tmp_path / "m.bt.safetensors")
    (found,) = on_inputs(result, dense, [SampleInputs(str(tmp_path / "x.npz"))]).reports()
    theirs, wanted = hidden_states(model, model.state_dict(), tmp_path / "x.npz")
    ours, given = hidden_states(model, btcompress.to_dense(result), tmp_path / "x.npz")
    assert found.hidden_state_error == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-4)
    assert found.agreement.steps == pytest.approx(float((given == wanted).float().mean()))
    assert 0 < found.hidden_state_error < 1


@pytest.mark.parametrize("case", ["gru", "rnn, relu"])
def test_calibrating_brings_hidden_states_nearer_to_those_of_the_dense_layer(case, tmp_path):
    model, nonlinearity = model_of(case)
    result = saved(tmp_path, model, nonlinearity, calibrated=True, calibration_epochs=2)
    (step,) = (each for each in result.history if each["step"] == "calibrate")
    assert step["layer_epochs"] == 1 * 2 * (model.rnn.num_layers > 1)
    assert step["epochs"] == 2
    assert step["hidden_state_error_after"] < min(step["hidden_state_error_before"], 0.9)
    weights = {key for key in model.state_dict() if "weight" in key}
    assert step["weighted_activation_errors"].keys() == weights
    before, refitted = (step[f"weighted_activation_errors_{when}"] for when in ("before", "refitted"))
    assert sum(refitted.values()) < sum(before.values())


@pytest.mark.parametrize("case", ["gru, both directions", "rnn"])
def test_training_without_labels_ends_at_the_error_of_the_file(case, tmp_path):
    model, nonlinearity = model_of(case)
    saved(tmp_path, model, nonlinearity)
    data = tmp_path / "x.npz"
    step = tune(tmp_path, tmp_path / "m.bt.safetensors", data, tmp_path / "m.pt", held=str(data))
    theirs, _ = hidden_states(model, model.state_dict(), tmp_path / "x.npz")
    for when, file in (("before", "m.bt.safetensors"), ("after", "tuned.safetensors")):
        ours, _ = hidden_states(model, btcompress.to_dense(tmp_path / file), tmp_path / "x.npz")
        assert step[when] == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=1e-4)
    assert step["after"] < step["before"]


@pytest.mark.parametrize("own", [False, True], ids=["a simple model", "a network of the user's"])
def test_labels_train_a_gru_with_its_head(own, tmp_path, monkeypatch):
    model, _ = model_of("gru")
    saved(tmp_path, model, None)
    x, y = draw(40, STEPS, INPUTS), np.arange(40 * STEPS).reshape(40, STEPS) % 3
    x[..., :3] += 2 * np.eye(3)[y]
    np.savez(tmp_path / "y.npz", x=x, y=y)
    monkeypatch.setattr("test_gru_calibration.network", lambda: model_of("gru")[0])
    more = {"model": "test_gru_calibration:network"} if own else {}
    config = replace(SMALL, epochs=3, learning_rate=5e-2)
    step = tune(tmp_path, tmp_path / "m.bt.safetensors", tmp_path / "y.npz", tmp_path / "m.pt", config, **more)
    assert (step["metric"], step["way"]) == ("accuracy", "own model" if own else "labels")
    assert step["after"] > step["before"]


def network():
    """A network of the user's, as a test has it."""
    raise NotImplementedError


def test_a_cell_runs_over_the_sequence(tmp_path):
    torch.manual_seed(0)
    cell = nn.GRUCell(INPUTS, HIDDEN)
    torch.save(cell.state_dict(), tmp_path / "m.pt")
    np.savez(tmp_path / "x.npz", x=draw(20, STEPS, INPUTS))
    result = btcompress.factorize(tmp_path / "m.pt", cp_rank=1, tucker_rank=2, max_sweeps=2, allow_growth=True)
    (found,) = on_inputs(result, read(tmp_path / "m.pt"), [SampleInputs(str(tmp_path / "x.npz"))]).reports()
    ours, theirs = (copy.deepcopy(cell) for _ in range(2))
    ours.load_state_dict(btcompress.to_dense(result))
    states = [torch.zeros(20, HIDDEN)] * 2
    missed = size = 0.0
    for x in torch.from_numpy(draw(20, STEPS, INPUTS)).unbind(1):
        states = [each(x, state).detach() for each, state in zip((ours, theirs), states, strict=True)]
        missed, size = missed + (states[0] - states[1]).square().sum(), size + states[1].square().sum()
    assert found.hidden_state_error == pytest.approx(float((missed / size).sqrt()), rel=1e-4)


# Networks of the user's with layers that are no plain ones


class NormedCell(nn.GRUCell):
    """A cell with a norm of its inputs."""

    def __init__(self):
        super().__init__(INPUTS, HIDDEN)
        self.norm = nn.LayerNorm(INPUTS)

    def forward(self, x, state=None):
        return super().forward(self.norm(x), state)


def test_a_cell_with_siblings_is_not_trained_in_block_terms_but_is_where_it_stays_dense():
    def build():
        return nn.ModuleDict({"cell": NormedCell(), "head": nn.Linear(HIDDEN, 3)})

    model = build()
    few = {"cp_rank": 1, "tucker_rank": 1, "max_sweeps": 1}
    with pytest.raises(CheckpointError, match=r"cell is no plain GRUCell .*norm\.weight.*--layer '!NAME'"):
        build_student("x:build", build, btcompress.factorize(model, **few))
    for options in ({"matrices": ["linear"], **few}, {"matrices": ["input"], "bits": 4}):
        result = btcompress.factorize(model, **options)
        student = build_student("x:build", build, result)
        assert stored_tensors(student, result).keys() == result.tensors.keys()


class Dropped(nn.Module):
    """A GRU of which some recurrent weights are dropped at each call."""

    def __init__(self, keeps_last):
        super().__init__()
        self.module = nn.GRU(INPUTS, HIDDEN)
        self.weight_hh_l0_raw = nn.Parameter(self.module.weight_hh_l0.data.clone())
        if not keeps_last:
            del self.module._parameters["weight_hh_l0"]


@pytest.mark.parametrize("keeps_last", [False, True])
def test_a_network_whose_weights_are_dropped_is_trained_by_its_raw_weights(keeps_last):
    def build():
        return nn.ModuleDict({"rnn": Dropped(keeps_last), "head": nn.Linear(HIDDEN, 3)})

    source = build()
    with torch.no_grad():
        source["rnn"].weight_hh_l0_raw.add_(1)
    few = {"cp_rank": 1, "tucker_rank": 1, "max_sweeps": 1}
    result = btcompress.factorize(source.state_dict(), matrices=["linear"], **few)
    student = build_student("x:build", build, result)
    tensors = stored_tensors(student, result)
    assert tensors.keys() == result.tensors.keys()
    assert torch.equal(tensors["rnn.module.weight_hh_l0"], source["rnn"].weight_hh_l0_raw)
    assert student.file_tensors()["rnn.module.weight_hh_l0"] is student.model["rnn"].weight_hh_l0_raw
