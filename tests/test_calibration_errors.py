import math

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import SampleInputs, activation_errors, on_inputs
from btcompress.calibration import errors as room
from btcompress.checkpoint import RecurrentEntry, find_recurrent, from_state_dict
from btcompress.errors import BTCompressError, CheckpointError, ShapeError
from btcompress.finetune.data import Arrays
from btcompress.fit import samples

QUICK = {"max_sweeps": 2}


def pair(module, matrices=("input", "recurrent")):
    """A module's checkpoint, dense and compressed."""
    dense = from_state_dict(module.state_dict())
    options = {"cp_rank": 2, "tucker_rank": 2, "allow_growth": True, **QUICK}
    return dense, btcompress.factorize(module, matrices=matrices, **options)


def entry_of(dense, name=""):
    return next(
        entry for entry in find_recurrent(dense.tensors) if isinstance(entry, RecurrentEntry) and entry.name == name
    )


def sequences(n, steps, inputs, lengths=None, seed=0, state=None):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, steps, inputs))
    h0, c0 = (None, None) if state is None else (random.normal(size=(n, *size)) for size in state)
    return Arrays("made up", x, None, None if lengths is None else np.array(lengths), 1.0, h0=h0, c0=c0)


def steps_of(entry, tensors, suffix, sequence, h, c):
    """The inputs of ``U`` and of a projection at each step of one sequence, and the hidden states, by the equations."""
    w, u = (tensors[f"{entry.prefix}weight_{part}{suffix}"] for part in ("ih", "hh"))
    project = tensors.get(f"{entry.prefix}weight_hr{suffix}")
    bias = sum(tensors[f"{entry.prefix}bias_{part}{suffix}"] for part in ("ih", "hh")) if entry.bias else 0
    before, whole, hidden = [], [], []
    for x in sequence:
        before.append(h)
        i, f, g, o = (w @ x + u @ h + bias).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        whole.append(h)
        h = h if project is None else project @ h
        hidden.append(h)
    return before, whole, hidden


def weights_of(entry, seed=1):
    """Any weights for the outputs of each matrix of an LSTM."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {key: entry.shapes[key][0] for key in entry.matrix_keys}
    return {key: torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 for key, n in sizes.items()}


def errors_of(compressed, dense, data, name="", **arguments):
    entry = entry_of(dense, name)
    (errors,) = activation_errors([compressed], dense, entry, data, weights_of(entry), **arguments)
    return errors


def step_by_step(entry, dense, compressed, data):
    """What activation_errors should give: one sequence, one step and one matrix after another."""
    approximate, sums = compressed.dense_state_dict(), {}
    for n, x in enumerate(torch.from_numpy(data.x)):
        sequence = list(x[: data.lengths[n]] if data.lengths is not None else x)
        directions = 1 + entry.bidirectional
        for layer in range(entry.num_layers):
            outputs = []
            for place, suffix in enumerate(entry.suffixes[layer * directions : (layer + 1) * directions]):
                turn = -1 if suffix.endswith("_reverse") else 1
                zeros = [x.new_zeros(entry.proj_size or entry.hidden_size), x.new_zeros(entry.hidden_size)]
                states = zeros
                if data.h0 is not None:
                    states = [torch.from_numpy(each[n, layer * directions + place]) for each in (data.h0, data.c0)]
                before, whole, hidden = steps_of(entry, dense.tensors, suffix, sequence[::turn], *states)
                for part, inputs in (("ih", sequence), ("hh", before), ("hr", whole)):
                    key = f"{entry.prefix}weight_{part}{suffix}"
                    for value in inputs if key in compressed.matrices else ():
                        sum_of = sums.setdefault(key, [0.0] * 4)
                        wanted = dense.tensors[key] @ value
                        missed, weight = wanted - approximate[key] @ value, weights_of(entry)[key]
                        for which, vector in enumerate((weight * missed, weight * wanted, missed, wanted)):
                            sum_of[which] += float(vector.square().sum())
                outputs.append(hidden[::turn])
            sequence = [torch.cat(states) for states in zip(*outputs, strict=True)]
    return {key: (math.sqrt(a / b), math.sqrt(c / d)) for key, (a, b, c, d) in sums.items()}


@pytest.mark.parametrize(
    ("make", "lengths"),
    [
        (lambda: nn.LSTM(12, 5), None),
        (lambda: nn.LSTM(12, 5), [3, 7, 1, 6]),
        (lambda: nn.LSTM(12, 5, num_layers=3, bias=False), [7, 2, 5, 5]),
        (lambda: nn.LSTM(12, 5, num_layers=2, bidirectional=True), None),
        (lambda: nn.LSTM(12, 5, num_layers=2, bidirectional=True), [4, 1, 7, 2]),
        (lambda: nn.LSTM(12, 6, num_layers=2, bidirectional=True, proj_size=5), [4, 1, 6, 2]),
        (lambda: nn.LSTMCell(12, 5), [7, 3, 2, 1]),
    ],
    ids=["plain", "lengths", "deep", "both directions", "both directions, lengths", "projected", "cell"],
)
@pytest.mark.parametrize("started", [False, True], ids=["from zeros", "from states"])
def test_activation_errors_are_those_of_a_computation_step_by_step(make, lengths, started):
    dense, compressed = pair(make().double())
    entry = entry_of(dense)
    n_states = entry.num_layers * (1 + entry.bidirectional)
    sizes = [(n_states, entry.proj_size or entry.hidden_size), (n_states, entry.hidden_size)]
    data = sequences(4, 7, 12, lengths, state=sizes if started else None)
    wanted = step_by_step(entry, dense, compressed, data)
    given = errors_of(compressed, dense, data, batch_size=3)
    assert given.keys() == wanted.keys() == set(entry.matrix_keys)
    for key, errors in wanted.items():
        assert min(errors) > 0.05
        assert (given[key].weighted, given[key].plain) == pytest.approx(errors, rel=1e-12), key


def test_numbers_beyond_the_end_of_a_sequence_do_not_count():
    dense, compressed = pair(nn.LSTM(12, 5, bidirectional=True).double())
    data = sequences(3, 6, 12, [2, 6, 3])
    errors = errors_of(compressed, dense, data)
    data.x[0, 2:], data.x[2, 3:] = 1000.0, -1000.0
    assert errors_of(compressed, dense, data) == errors


def test_matrices_that_stayed_dense_are_left_out():
    lstm = nn.LSTM(12, 6, proj_size=5).double()
    dense, compressed = pair(lstm, matrices=("recurrent",))
    assert errors_of(compressed, dense, sequences(2, 3, 12)).keys() == {"weight_hh_l0", "weight_hr_l0"}


def test_matrices_whose_products_are_all_zero_have_no_error():
    dense, compressed = pair(nn.LSTM(12, 5).double())
    silent = Arrays("zeros", np.zeros((2, 3, 12)), None, None, 1.0)
    assert errors_of(compressed, dense, silent).keys() == {"weight_hh_l0"}


def test_forms_are_measured_on_the_same_inputs_in_the_order_given():
    dense, compressed = pair(nn.LSTM(12, 5).double())
    key = "weight_ih_l0"
    own = compressed.parts(key)
    zeros = tuple(type(part)(part.shape, part.cores * 0, part.factors) for part in own)
    forms = {key: [zeros, own], "strange": [own], "weight_hh_l0": []}
    entry, data = entry_of(dense), sequences(4, 7, 12)
    errors = room.errors_of_forms(forms, dense, entry, data, weights_of(entry), torch.float64)
    nothing, given = errors[key]
    assert (nothing.weighted, nothing.plain) == (pytest.approx(1), pytest.approx(1))
    assert given == errors_of(compressed, dense, data)[key]
    assert errors["weight_hh_l0"] == ()
    assert errors.keys() == {key, "weight_hh_l0"}


def test_forming_a_matrix_changes_its_error_by_rounding_only(monkeypatch):
    dense, compressed = pair(nn.LSTM(12, 5).double())
    data = sequences(4, 7, 12)
    formed = errors_of(compressed, dense, data)
    counted = []
    product = btcompress.BlockTerm.matmul
    monkeypatch.setattr(btcompress.BlockTerm, "matmul", lambda *given: counted.append(1) or product(*given))
    assert errors_of(compressed, dense, data) == formed
    assert not counted
    monkeypatch.setattr(samples, "_FORMED_ENTRIES", 0)
    factored = errors_of(compressed, dense, data)
    assert counted
    assert factored.keys() == formed.keys()
    for key, errors in formed.items():
        assert (factored[key].weighted, factored[key].plain) == pytest.approx(
            (errors.weighted, errors.plain), rel=1e-12
        )


def test_inputs_on_which_nothing_can_be_measured_are_refused_before_anything_is(tmp_path):
    module = nn.ModuleDict({"a": nn.LSTM(12, 5), "b": nn.LSTM(12, 5), "c": nn.LSTM(12, 5, num_layers=2)})
    dense = from_state_dict(module.state_dict())
    compressed = btcompress.factorize(module, layers=["a.*", "b.*"], allow_growth=True, **QUICK)
    right, wrong = str(tmp_path / "right.npy"), str(tmp_path / "wrong.npy")
    np.save(right, sequences(2, 3, 12).x)
    np.save(wrong, sequences(2, 3, 13).x)
    with pytest.raises(BTCompressError, match=r"a \(12 inputs\), b \(12 inputs\)\. Name one of them: NAME="):
        on_inputs(compressed, dense, [SampleInputs(right)])
    with pytest.raises(BTCompressError, match="no LSTM or linear layer named 'strange'"):
        on_inputs(compressed, dense, [SampleInputs(right, "strange")])
    with pytest.raises(ShapeError, match="12 inputs at each step"):
        on_inputs(compressed, dense, [SampleInputs(wrong, "a")])
    with pytest.raises(CheckpointError, match="b"):
        on_inputs(compressed, from_state_dict({"a": torch.ones(2)}), [SampleInputs(right, "b")])
    only_head = nn.ModuleDict({"lstm": nn.LSTM(12, 5), "head": nn.Linear(40, 30)})
    unchanged = btcompress.factorize(only_head, matrices=("linear",), allow_growth=True, **QUICK)
    with pytest.raises(BTCompressError, match="no compressed matrices to measure"):
        on_inputs(unchanged, from_state_dict(only_head.state_dict()), [SampleInputs(right)])


def test_inputs_are_scaled_and_only_the_lstm_named_is_measured(tmp_path):
    module = nn.ModuleDict({"a": nn.LSTM(12, 5), "b": nn.LSTM(12, 5)}).double()
    dense, compressed = pair(module)
    data = sequences(2, 3, 12)
    np.save(tmp_path / "x.npy", data.x / 4)
    measure = on_inputs(compressed, dense, [SampleInputs(str(tmp_path / "x.npy"), "b", 4.0)])
    given = measure({key: [compressed.parts(key)] for key in compressed.matrices})
    wanted = errors_of(compressed, dense, data, "b")
    assert {key: errors[0].plain for key, errors in given.items()} == {
        key: pytest.approx(errors.plain, rel=1e-12) for key, errors in wanted.items()
    }
    assert all(key.startswith("b.") for key in given)
