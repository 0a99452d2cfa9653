"""GRUs and plain RNNs are sampled, calibrated, recorded and trained as LSTMs are; the reference is written out here."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from btcompress.calibration import sampling
from btcompress.calibration.sampling import samples_of
from btcompress.checkpoint import from_state_dict
from btcompress.finetune.data import Arrays

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
