"""Every way to run a layer gives what the dense LSTM with the same matrices gives, in value and gradient."""

import itertools
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from btcompress.benching.machine import onednn
from btcompress.nn import BTLSTM, BTLSTMCell, plainsteps, prediction
from btcompress.nn.choice import Place
from btcompress.nn.prediction import Prediction
from btcompress.nn.recurrence import Trained
from btcompress.nn.ways import Way, possible_ways
from btcompress.shapes import BlockTermShape, MatrixShape

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

INPUTS, H, P = 6, 5, 3
ORDERS = ("row_order", "column_order")
PREDICTING = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def with_dtypes(in_float64, in_float32):
    return [(torch.float64, each) for each in in_float64] + [(torch.float32, each) for each in in_float32]


def low_rank(rows, columns, n_gates):
    return MatrixShape(BlockTermShape.low_rank(rows, columns, 2, n_gates))


def padded_low_rank(rows, columns, n_gates):
    """Rows of several gates cannot be padded in this form."""
    sizes = {"in_size": columns, "out_size": rows, "n_gates": n_gates}
    padded = rows if n_gates > 1 else rows + 2
    return MatrixShape(BlockTermShape((columns + 1, 1), (1, padded), (2, 2), core="identity", **sizes))


def block_terms(rows, columns, n_gates):
    """Modes that pad what they cannot divide, unequal ranks, three blocks."""
    in_modes, out_modes = (2, (columns + 1) // 2), (n_gates, -(-rows // n_gates))
    return MatrixShape(BlockTermShape(in_modes, out_modes, (2, 1), 3, in_size=columns, out_size=rows, n_gates=n_gates))


def padded_block_terms(rows, columns, n_gates):
    sizes = {"in_size": columns, "out_size": rows, "n_gates": n_gates}
    return MatrixShape(BlockTermShape((3, 3), (n_gates * 2, rows // n_gates // 2 + 1), (2, 3), 2, **sizes))


def ordered(form):
    return lambda rows, columns, n_gates: form(rows, columns, n_gates).ordered(ORDERS)


def separate(form):
    def of_gates(rows, columns, n_gates):
        return MatrixShape(form(rows // n_gates, columns, 1).part, "separate" if n_gates > 1 else "fused")

    return of_gates


def alternating(*forms):
    """One form after the other, from matrix to matrix: those of both directions differ, as do those of one."""
    turns = itertools.cycle(forms)
    return lambda *sizes: (form := next(turns)) and form(*sizes)


ALL = ("weight_ih", "weight_hh", "weight_hr")
#: What makes the form of a matrix of its sizes, and of which matrices.
FORMS = {
    "low rank": lambda: (low_rank, ALL),
    "low rank, padded": lambda: (padded_low_rank, ALL),
    "low rank, in other orders": lambda: (ordered(low_rank), ALL),
    "low rank, padded, in other orders": lambda: (ordered(padded_low_rank), ALL),
    "low rank, W only": lambda: (low_rank, ALL[:1]),
    "low rank, U only": lambda: (low_rank, ALL[1:2]),
    "low rank, P only": lambda: (low_rank, ALL[2:]),
    "block terms": lambda: (block_terms, ALL),
    "block terms, padded": lambda: (padded_block_terms, ALL),
    "block terms, in other orders": lambda: (ordered(block_terms), ALL),
    "block terms, W only": lambda: (block_terms, ALL[:1]),
    "block terms, U only": lambda: (padded_block_terms, ALL[1:2]),
    "separate gates": lambda: (separate(block_terms), ALL),
    "separate gates of low rank": lambda: (separate(padded_low_rank), ALL),
    "separate gates in other orders": lambda: (separate(ordered(low_rank)), ALL),
    "mixed": lambda: (alternating(low_rank, block_terms, None, low_rank, separate(low_rank)), ALL),
    "low rank or dense": lambda: (alternating(low_rank, None, None), ALL),
}
ARGUMENTS = [
    {"bias": True},
    {"bidirectional": True, "bias": False, "batch_first": True},
    {"num_layers": 2, "proj_size": P, "bias": False},
    {"num_layers": 2, "proj_size": P, "bidirectional": True, "batch_first": True},
]
#: Steps, sequences, and how they are given.
TASKS = [(1, 1, ""), (1, 3, ""), (5, 1, ""), (5, 3, ""), (5, 3, "packed"), (3, 1, "packed"), (4, 1, "unbatched")]


def make_lstm(form, generator, dtype=torch.float64, inputs=INPUTS, hidden=H, **arguments):
    """A BTLSTM with matrices of a form, random, and its orders too."""
    make, kinds = FORMS[form]() if isinstance(form, str) else (form, ALL)
    plain = nn.LSTM(inputs, hidden, **arguments, device="meta")
    shapes = {
        name: make(*parameter.shape, 1 if name.startswith("weight_hr") else 4)
        for name, parameter in plain.named_parameters()
        if name.startswith(kinds)
    }
    module = BTLSTM(inputs, hidden, **arguments, dtype=torch.float64, shapes=shapes)
    fill(module, generator)
    return module.to(dtype)


def fill(module, generator):
    module.reset_parameters(generator)
    for _, order in module.named_buffers():
        order.copy_(torch.randperm(len(order), generator=generator))


def dense_weights(module):
    """The matrices and biases of the dense LSTM, formed in float64; differentiable."""
    weights = {name: matrix.to_dense() for name, matrix in module.named_children()}
    weights |= dict(module.named_parameters(recurse=False))
    return {name: weight.double() for name, weight in weights.items()}


def dense_lstm(module, weights):
    """The function that the dense LSTM of these matrices is."""
    names = ("num_layers", "bias", "batch_first", "bidirectional", "proj_size")
    arguments = {name: getattr(module, name) for name in names}
    plain = nn.LSTM(module.input_size, module.hidden_size, **arguments, dtype=torch.float64)
    return lambda inputs, state: functional_call(plain, weights, (inputs, state))


def make_task(module, task, generator, dtype=torch.float64):
    """An input and a state, and the leaves that gradients are asked of."""
    steps, batch, layout = task

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    own = () if layout == "unbatched" else (batch,)
    n_states = module.num_layers * (1 + module.bidirectional)
    state = (draw(n_states, *own, module.proj_size or module.hidden_size), draw(n_states, *own, module.hidden_size))
    data = draw(*((*own, steps) if module.batch_first and own else (steps, *own)), module.input_size)
    inputs = data
    if layout == "packed":
        lengths = [steps, 2, 4][:batch]
        inputs = pack_padded_sequence(data, lengths, batch_first=module.batch_first, enforce_sorted=False)
    return inputs, state, [data, *state]


def in_double(inputs, state):
    """The same in float64, in the same graph."""
    return inputs.double(), state and tuple(each.double() for each in state)


def flat(results):
    outputs, (h, c) = results
    return [outputs.data if isinstance(outputs, PackedSequence) else outputs, h, c]


def gradients(values, leaves):
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in values]
    pairs = zip(values, directions, strict=True)
    total = sum((value * direction).sum() for value, direction in pairs)
    return torch.autograd.grad(total, leaves, retain_graph=True)


def assert_near(actual, expected, dtype=torch.float64):
    actual, expected = ([each.to(dtype) for each in given] for given in (actual, expected))
    torch.testing.assert_close(actual, expected)


def ways_of(module):
    """All ways in which one of the tasks that the module has met can be done."""
    found = {way for task in module.choice.tasks.values() for way in possible_ways(task, "auto")}
    return sorted(found, key=str)


def each_way(module, inputs, state, trains):
    """Pin one way after the other; where oneDNN is disabled, those that it computes where it is not."""
    module.choice.unpin()
    module.choice.tasks.clear()
    with torch.set_grad_enabled(trains):
        module(inputs, state)
    for way in ways_of(module):
        if torch.backends.mkldnn.enabled or way.steps == "kernel":
            module.choice.unpin()
            module.choice.pin(way)
            yield way


@pytest.fixture
def ran(monkeypatch):
    """The ways in which layers were run, and by what."""
    found = []
    for kind in (Prediction, Trained):
        run = kind.run
        monkeypatch.setattr(
            kind,
            "run",
            lambda layer, *given, run=run, **options: (
                found.append((type(layer), layer.way)) or run(layer, *given, **options)
            ),
        )
    return found


@pytest.fixture
def halves(monkeypatch):
    """Products with a single column are done in halves, as those of large matrices are; and steps are turned."""
    monkeypatch.setattr(plainsteps, "_HALVED_FROM", 1)
    monkeypatch.setattr(plainsteps, "_LAID_OUT_IN_HALVES_FROM", 1)
    monkeypatch.setattr(prediction, "_TURNED_FROM", 1)


def kernels(dtype):
    """Torch's kernels: oneDNN's is for float32 alone."""
    return [nullcontext, partial(onednn, enabled=False)] if dtype == torch.float32 else [nullcontext]


@pytest.mark.parametrize(
    ("dtype", "arguments"), with_dtypes(ARGUMENTS[2:3], [ARGUMENTS[n] for n in (0, 1, 3)]), ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_every_way_predicts_what_the_dense_lstm_gives(form, arguments, dtype, generator, ran):
    module = make_lstm(form, generator, dtype, **arguments)
    with torch.no_grad():
        dense = dense_lstm(module, dense_weights(module))
        for task in TASKS:
            inputs, state, _ = make_task(module, task, generator, dtype)
            expected = [flat(dense(*in_double(inputs, given))) for given in (state, None)]
            for kernel in kernels(dtype):
                with kernel():
                    for way in each_way(module, inputs, state, trains=False):
                        for _ in range(2):
                            ran.clear()
                            assert_near(flat(module(inputs, state)), expected[0], dtype)
                            assert way in {taken for _, taken in ran}
                            assert {kind for kind, _ in ran} == {Trained if task[2] == "packed" else Prediction}
                        assert_near(flat(module(inputs)), expected[1], dtype)


@pytest.mark.parametrize("arguments", [ARGUMENTS[3]], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_products_in_halves_predict_what_the_dense_lstm_gives(form, arguments, halves, generator):
    module = make_lstm(form, generator, **arguments)
    with torch.no_grad():
        dense = dense_lstm(module, dense_weights(module))
        for task in TASKS[:4]:
            inputs, state, _ = make_task(module, task, generator)
            expected = flat(dense(inputs, state))
            for _ in each_way(module, inputs, state, trains=False):
                for _ in range(2):
                    assert_near(flat(module(inputs, state)), expected)


@pytest.mark.parametrize(("dtype", "arguments"), with_dtypes(ARGUMENTS[::3], ARGUMENTS[1:2]), ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_way_trains_as_the_dense_lstm_does(form, arguments, dtype, generator, ran):
    module = make_lstm(form, generator, dtype, **arguments)
    dense = dense_lstm(module, dense_weights(module))
    for task in (TASKS[0], TASKS[3], TASKS[4]):
        inputs, state, leaves = make_task(module, task, generator, dtype)
        leaves = [*leaves, *module.parameters()]
        expected = flat(dense(*in_double(inputs, state)))
        expected_gradients = gradients(expected, leaves)
        for kernel in kernels(dtype):
            with kernel():
                for way in each_way(module, inputs, state, trains=True):
                    for _ in range(2):
                        ran.clear()
                        values = flat(module(inputs, state))
                        assert (Trained, way) in ran
                        assert_near(values, expected, dtype)
                        assert_near(gradients(values, leaves), expected_gradients, dtype)


LARGE = {
    # The left factors are large, and those of an even number of rows are halved.
    "low rank": (lambda *sizes: MatrixShape(BlockTermShape.low_rank(*sizes[:2], 130, sizes[2])), 258, 128, 0),
    # The right factor of W has an odd number of rows, where it is laid out.
    "odd rank": (lambda *sizes: MatrixShape(BlockTermShape.low_rank(*sizes[:2], 131, sizes[2])), 251, 65, 0),
    "dense, odd projection": (lambda *sizes: None, 67, 260, 127),
    "block terms": (block_terms, 130, 91, 0),
}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("large", LARGE)
def test_large_layers_predict_the_same_every_way_of_any_strides(large, directions, generator, ran, monkeypatch):
    monkeypatch.setattr(plainsteps, "_HALVED_FROM", 2**13)
    form, n_inputs, hidden, proj_size = LARGE[large]
    arguments = {"bidirectional": directions == 2, "proj_size": proj_size}
    module = make_lstm(form, generator, torch.float32, inputs=n_inputs, hidden=hidden, **arguments)
    with torch.no_grad():
        dense = dense_lstm(module, dense_weights(module))
        for steps, batch in [(1, 1), (1, 3), (1, 90), (3, 1), (3, 2)]:
            tight = make_task(module, (steps, batch, ""), generator, torch.float32)[:2]
            expected = flat(dense(*in_double(*tight)))
            for inputs, state in (tight, as_columns(*tight), as_every_other(*tight)):
                for way in each_way(module, inputs, state, trains=False):
                    for _ in range(2):
                        assert_near(flat(module(inputs, state)), expected, torch.float32)
                    assert way in {taken for _, taken in ran}


def as_columns(inputs, state):
    """The same numbers, their last axis first in memory."""
    return tuple_of(lambda each: each.transpose(0, 2).contiguous().transpose(0, 2), inputs, state)


def as_every_other(inputs, state):
    """The same numbers, with others between them in memory."""
    return tuple_of(lambda each: torch.stack([each, torch.full_like(each, 9)], dim=-1)[..., 0], inputs, state)


def tuple_of(make, inputs, state):
    return make(inputs), tuple(make(each) for each in state)


@pytest.mark.parametrize("task", [(1, 1), (1, 3), (4, 1), (4, 3)], ids=str)
@pytest.mark.parametrize("arguments", ARGUMENTS[:3], ids=str)
def test_results_are_memory_of_their_own(arguments, task, generator):
    module = make_lstm("low rank", generator, torch.float32, **arguments)
    inputs, state, leaves = make_task(module, (*task, ""), generator, torch.float32)
    for way in each_way(module, inputs, state, trains=False):
        with torch.no_grad():
            module(inputs, state)
            results = flat(module(inputs, state))
            before = [each.clone() for each in (*results, *leaves)]
            places = [each.untyped_storage().data_ptr() for each in (*results, *leaves, *module.parameters())]
            assert len(set(places[:3])) == 3, way
            assert not set(places[:3]) & set(places[3:]), way
            # A call after it writes over nothing that was given out or taken in.
            module(inputs + 1, tuple(each + 1 for each in state))
        assert all(torch.equal(one, other) for one, other in zip((*results, *leaves), before, strict=True)), way


@pytest.mark.parametrize("first", PREDICTING)
@pytest.mark.parametrize("arguments", ARGUMENTS[:3], ids=str)
def test_what_one_mode_keeps_serves_the_other_and_trains(arguments, first, generator):
    module = make_lstm("low rank", generator, torch.float32, **arguments)
    for task in TASKS[:4]:
        inputs, state, _ = make_task(module, task, generator, torch.float32)
        for _ in each_way(module, inputs, state, trains=False):
            module.drop_formed()
            with torch.no_grad():
                expected = flat(dense_lstm(module, dense_weights(module))(*in_double(inputs, state)))
            for mode in (first, *PREDICTING, *PREDICTING):
                with PREDICTING[mode]():
                    assert_near(flat(module(inputs, state)), expected, torch.float32)
            values = flat(module(inputs, state))
            assert_near(values, expected, torch.float32)
            gradients(values, [*state, *module.parameters()])


@pytest.mark.parametrize("form", ["low rank, in other orders", "block terms", "mixed"])
def test_every_way_is_the_same_where_nothing_is_kept(form, generator):
    module = make_lstm(form, generator, torch.float32, **ARGUMENTS[1])
    module.keeps_formed = False
    with torch.no_grad():
        dense = dense_lstm(module, dense_weights(module))
        for task in TASKS:
            inputs, state, _ = make_task(module, task, generator, torch.float32)
            expected = flat(dense(*in_double(inputs, state)))
            for _ in each_way(module, inputs, state, trains=False):
                for _ in range(2):
                    assert_near(flat(module(inputs, state)), expected, torch.float32)
                assert module.formed_bytes == 0


CELL_FORMS = {
    "low rank": (low_rank, low_rank),
    "padded, in other orders": (ordered(padded_low_rank), ordered(low_rank)),
    "W only": (low_rank, None),
    "U only": (None, low_rank),
    "block terms": (block_terms, padded_block_terms),
    "block terms and low rank": (ordered(padded_block_terms), low_rank),
    "separate gates": (separate(block_terms), separate(low_rank)),
    "dense": (None, None),
}


def make_cell(form, generator, dtype, bias=True):
    sizes = {"weight_ih": (4 * H, INPUTS, 4), "weight_hh": (4 * H, H, 4)}
    forms = zip(sizes, CELL_FORMS[form], strict=True)
    shapes = {name: make and make(*sizes[name]) for name, make in forms}
    cell = BTLSTMCell(INPUTS, H, bias, dtype=torch.float64, shapes=shapes)
    fill(cell, generator)
    return cell.to(dtype)


# Every two of form, bias and dtype meet.
@pytest.mark.parametrize(
    ("form", "bias", "dtype"),
    [
        (form, (dtype == torch.float32) == bool(n % 2), dtype)
        for n, form in enumerate(CELL_FORMS)
        for dtype in (torch.float64, torch.float32)
    ],
    ids=str,
)
def test_every_way_steps_as_the_dense_cell_does(form, bias, dtype, generator, ran):
    cell = make_cell(form, generator, dtype, bias)
    plain = nn.LSTMCell(INPUTS, H, bias, dtype=torch.float64)
    for batch in ((), (1,), (3,)):

        def draw(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        inputs, state = draw(*batch, INPUTS), (draw(*batch, H), draw(*batch, H))
        leaves = [inputs, *state, *cell.parameters()]
        for given in (state, None):
            expected = functional_call(plain, dense_weights(cell), in_double(inputs, given))
            expected_gradients = gradients(expected, [inputs, *cell.parameters()])
            for kernel in kernels(dtype):
                with kernel():
                    for trains, modes in ((False, PREDICTING.values()), (True, [nullcontext])):
                        for way in each_way(cell, inputs, given, trains):
                            ran.clear()
                            for mode in (*modes, *modes):
                                with mode():
                                    values = cell(inputs, given)
                                assert_near(values, expected, dtype)
                                if trains:
                                    actual = gradients(values, [inputs, *cell.parameters()])
                                    assert_near(actual, expected_gradients, dtype)
                            assert way in {taken for _, taken in ran}
        if batch:
            assert_near(
                gradients(cell(inputs, state), leaves), gradients(plain_cell(plain, cell, inputs, state), leaves), dtype
            )


def plain_cell(plain, cell, inputs, state):
    return functional_call(plain, dense_weights(cell), in_double(inputs, state))


def test_a_way_that_is_pinned_is_taken_where_it_is_possible_and_else_the_cheapest(generator, ran):
    module = make_lstm("block terms", generator)
    inputs, state, _ = make_task(module, (4, 3, ""), generator)
    with torch.no_grad():
        module(inputs, state)
        (_, cheapest) = ran.pop()
        for way in (Way("definition", "dense", "factors"), Way("loop", "dense", "dense")):
            module.choice.pin(way)
            module(inputs, state)
            assert ran.pop() == (Prediction, way)
        assert list(module.choice.pinned.values()) == [way]
        # A loop takes no such factors.
        module.choice.pin(Way("loop", "factors", "factors"))
        module(inputs, state)
        assert ran.pop() == (Prediction, cheapest)
        module.choice.unpin()
        module(inputs, state)
        assert ran.pop() == (Prediction, cheapest)
        assert not module.choice.pinned


def test_a_pin_of_one_place_is_for_it_alone(generator, ran):
    module = make_lstm("low rank", generator, num_layers=2)
    inputs, state, _ = make_task(module, (4, 3, ""), generator)
    everywhere, here = Way("definition", "dense", "dense"), Way("loop", "factors", "dense")
    module.choice.pin(everywhere)
    module.choice.pin(here, Place("l1", 4, 3, False))
    with torch.no_grad():
        module(inputs, state)
        module(inputs[:3], state)
    module(inputs, state)
    taken = [way for _, way in ran]
    assert taken == [everywhere, here, everywhere, everywhere, everywhere, everywhere]


def test_a_matrix_of_another_form_is_run_in_a_way_of_its_own(generator):
    module, other = (make_lstm(form, generator) for form in ("low rank", "block terms"))
    module.choice.pin(Way("loop", "factors", "factors"))
    inputs, state, _ = make_task(module, (4, 3, ""), generator)
    for mode in (torch.no_grad, nullcontext):
        with mode():
            module(inputs, state)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        setattr(module, name, getattr(other, name))
        expected = flat(dense_lstm(module, dense_weights(module))(inputs, state))
        for mode in (torch.no_grad, nullcontext):
            with mode():
                assert_near(flat(module(inputs, state)), expected)
