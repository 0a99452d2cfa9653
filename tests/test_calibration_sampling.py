"""Samples of what matrices meet in a model: their inputs, and what their outputs count."""

import numpy as np
import pytest
import torch
from torch import nn

from btcompress.calibration import sampling
from btcompress.calibration.sampling import samples_of
from btcompress.checkpoint import RecurrentEntry, find_recurrent, from_state_dict
from btcompress.errors import MemoryLimitError
from btcompress.finetune.data import Arrays
from btcompress.memory import limited


def given(module, n=4, steps=5, inputs=6, lengths=None, **arguments):
    dense = from_state_dict(module.state_dict())
    entry = next(entry for entry in find_recurrent(dense.tensors) if isinstance(entry, RecurrentEntry))
    x = np.random.default_rng(0).normal(size=(n, steps, inputs))
    data = Arrays("made up", x, None, None if lengths is None else np.array(lengths), 1.0)
    return entry, data, samples_of(dense, entry, data, data, torch.float64, **arguments)


def run(entry, tensors, sequence, nudges, states):
    """Hidden states of all steps, one sequence and step after another, from states.

    ``nudges[suffix]`` is added to each ``z``, and ``nudges["hr" + suffix]`` to each projected ``h``.
    """
    for layer in range(entry.num_layers):
        outputs = []
        for place, direction in enumerate(("", "_reverse")[: 1 + entry.bidirectional]):
            suffix = f"_l{layer}{direction}"
            w, u = tensors[f"weight_ih{suffix}"], tensors[f"weight_hh{suffix}"]
            bias = tensors[f"bias_ih{suffix}"] + tensors[f"bias_hh{suffix}"] if entry.bias else 0
            project = tensors.get(f"weight_hr{suffix}")
            h, c = (state[layer * (1 + entry.bidirectional) + place] for state in states)
            given = [None] * len(sequence)
            order = range(len(sequence))[:: -1 if direction else 1]
            for t in order:
                i, f, g, o = (w @ sequence[t] + u @ h + bias + nudges[suffix][t]).chunk(4)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                h = h if project is None else project @ h + nudges["hr" + suffix][t]
                given[t] = h
            outputs.append(given)
        sequence = [torch.cat(each) for each in zip(*outputs, strict=True)]
    return torch.cat(sequence)


MODELS = {
    "plain": ({}, None),
    "deep, lengths": ({"num_layers": 2}, [5, 2, 4, 1]),
    "both directions, lengths": ({"num_layers": 2, "bidirectional": True}, [3, 5, 1, 4]),
    "projected, without bias": ({"proj_size": 3, "bias": False}, None),
    "projected, both directions": ({"proj_size": 3, "num_layers": 2, "bidirectional": True}, [3, 5, 1, 4]),
}


@pytest.mark.parametrize("started", [False, True], ids=["from zeros", "from states"])
@pytest.mark.parametrize(("arguments", "lengths"), MODELS.values(), ids=MODELS)
def test_what_outputs_count_is_what_the_jacobian_of_the_hidden_states_says(arguments, lengths, started, monkeypatch):
    monkeypatch.setattr(sampling, "_LEAST_WEIGHT", 0.0)
    hidden = 4
    module = nn.LSTM(6, hidden, **arguments).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(3.0 if "hh" in name or "hr" in name else 1.0)  # so that what comes back by U counts
    # Many copies of the same sequences, so that the random numbers average out.
    copies = 400
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 5, 6))
    dense = from_state_dict(module.state_dict())
    entry = find_recurrent(dense.tensors)[0]
    sizes = [(len(entry.suffixes), size) for size in (entry.proj_size or hidden, hidden)]
    states = [2 * random.normal(size=(4, *size)) if started else np.zeros((4, *size)) for size in sizes]
    given = {"h0": np.tile(states[0], (copies, 1, 1)), "c0": np.tile(states[1], (copies, 1, 1))} if started else {}
    n_steps = None if lengths is None else np.tile(lengths, copies)
    data = Arrays("x", np.tile(x, (copies, 1, 1)), None, n_steps, 1.0, **given)
    monkeypatch.setattr(sampling, "_PROBED", len(data))
    samples = samples_of(dense, entry, data, data, torch.float64, batch_size=len(data))
    rows = dict.fromkeys(entry.suffixes, 4 * hidden)
    rows |= {f"hr{suffix}": entry.proj_size for suffix in entry.suffixes if entry.proj_size}
    squares = {name: torch.zeros(n, dtype=torch.float64) for name, n in rows.items()}
    size = 0.0
    for n, sequence in enumerate(torch.from_numpy(x)):
        steps = list(sequence[: lengths[n]] if lengths else sequence)
        nudges = {name: torch.zeros(len(steps), n, dtype=torch.float64) for name, n in rows.items()}
        names = list(nudges)
        own = [torch.from_numpy(state[n]) for state in states]

        def outputs(*values, steps=steps, names=names, own=own):
            return run(entry, dense.tensors, steps, dict(zip(names, values, strict=True)), own)

        jacobians = torch.autograd.functional.jacobian(outputs, tuple(nudges.values()))
        for suffix, jacobian in zip(names, jacobians, strict=True):
            squares[suffix] += jacobian.square().sum((0, 1))
        size += float(outputs(*nudges.values()).square().sum())
    for suffix in entry.suffixes:
        for kind, name in (("ih", suffix), ("hh", suffix), *([("hr", f"hr{suffix}")] if entry.proj_size else ())):
            wanted = (squares[name] / size).sqrt()
            assert samples[f"weight_{kind}{suffix}"].weights == pytest.approx(wanted, rel=0.15)


def test_rows_stand_for_the_mean_over_all_steps_that_count():
    module = nn.LSTM(6, 4, num_layers=2).double()
    _, data, samples = given(module, lengths=[5, 2, 4, 1], batch_size=3)
    hidden = {0: [], 1: []}
    before = {0: [], 1: []}
    rows = []
    for n, length in enumerate(data.lengths):
        x = torch.from_numpy(data.x[n, :length])
        rows.append(x)
        for layer in (0, 1):
            part = nn.LSTM(6, 4, num_layers=layer + 1).double()
            part.load_state_dict({k: v for k, v in module.state_dict().items() if k in part.state_dict()})
            states = part(x)[0].detach()
            hidden[layer].append(states)
            before[layer].append(torch.cat([states.new_zeros(1, 4), states[:-1]]))
    wanted = {
        "weight_ih_l0": torch.cat(rows),
        "weight_hh_l0": torch.cat(before[0]),
        "weight_ih_l1": torch.cat(hidden[0]),
        "weight_hh_l1": torch.cat(before[1]),
    }
    assert samples.keys() == wanted.keys()
    for key, inputs in wanted.items():
        for given_rows in (samples[key].inputs, samples[key].held):
            assert torch.allclose(given_rows.T @ given_rows, inputs.T @ inputs / len(inputs))
            assert len(given_rows) <= inputs.shape[1]


def test_of_many_inputs_steps_are_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(sampling, "_MOST_MOMENTS", 5)
    monkeypatch.setattr(sampling, "_DRAWN_ENTRIES", 36)
    monkeypatch.setattr(sampling, "_HELD_ENTRIES", 24)
    module = nn.LSTM(6, 4).double()
    _, data, samples = given(module, lengths=[5, 2, 4, 1], batch_size=2)
    drawn = samples["weight_ih_l0"]
    every = {tuple(row) for n, length in enumerate(data.lengths) for row in data.x[n, :length].round(9).tolist()}
    for rows, n in ((drawn.inputs, 6), (drawn.held, 4)):
        assert len(rows) == n
        found = {tuple(row) for row in (rows * n**0.5).numpy().round(9).tolist()}
        assert len(found) == n
        assert found <= every
    again = given(module, lengths=[5, 2, 4, 1], batch_size=2)[2]["weight_ih_l0"]
    other = given(module, lengths=[5, 2, 4, 1], batch_size=2, seed=1)[2]["weight_ih_l0"]
    assert torch.equal(drawn.inputs, again.inputs)
    assert not torch.equal(drawn.inputs, other.inputs)


def test_no_output_counts_for_nothing():
    module = nn.LSTM(6, 4).double()
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    weights = given(module)[2]["weight_ih_l0"].weights
    assert weights.min() > 0
    assert weights.min() >= 1e-3 * weights.max()
    silent = nn.LSTM(6, 4, bias=False).double()
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    weights = given(silent)[2]["weight_ih_l0"].weights
    assert (weights > 0).all()


def test_samples_that_would_not_fit_in_memory_are_refused_before_the_lstm_runs():
    with limited(1000), pytest.raises(MemoryLimitError, match="samples of what its matrices meet would take"):
        given(nn.LSTM(6, 4, batch_first=True))
