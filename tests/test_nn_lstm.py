"""BTLSTM computes what nn.LSTM computes: at full rank with the teacher's weights, else with its own dense ones."""

import copy
import itertools
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from btcompress.errors import BTCompressError
from btcompress.fit import FitOptions
from btcompress.nn import BTLSTM, recurrence
from btcompress.nn.conversion import fill_factorized
from btcompress.nn.ways import Way
from btcompress.nn.weight import BTWeight
from btcompress.shapes import BlockTermShape, MatrixShape

INPUTS, H, P, T, B = 6, 5, 3, 4, 3
FULL = 10**6
METHODS = ("auto", "factored", "dense")
LOOP, KERNEL = Way("loop", "factors", "dense"), Way("kernel", "factors", "dense")
STEPS, FACTORS_IN_LOOP = Way("definition", "factors", "factors"), Way("loop", "factors", "factors")

ARGUMENTS = [
    {"num_layers": layers, "bias": bias, "bidirectional": bidirectional, "proj_size": proj_size}
    for layers, bias, bidirectional, proj_size in itertools.product([1, 2], [True, False], [False, True], [0, P])
]
KINDS = (("input",), ("recurrent",), ("input", "recurrent"))
LAYOUTS = ("time first", "batch first", "unbatched", "unbatched, batch first", "packed", "packed, unsorted")


def label(arguments):
    return ",".join(f"{name}={value}" for name, value in arguments.items())


@cache
def teacher_and_students(items, **options):
    """An nn.LSTM and a BTLSTM for every method, made once for each set of arguments."""
    arguments = dict(items)
    torch.manual_seed(0)
    teacher = nn.LSTM(INPUTS, H, **arguments, dtype=torch.float64)
    return teacher, [BTLSTM.from_dense(teacher, method=method, **options) for method in METHODS]


def make_input(layout, arguments, with_state, generator):
    """An input and a state, and the leaves that gradients are asked of."""

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    batch = () if layout.startswith("unbatched") else (B,)
    n_states = arguments["num_layers"] * (1 + arguments["bidirectional"])
    state = (draw(n_states, *batch, arguments["proj_size"] or H), draw(n_states, *batch, H))
    data = draw(*((B, T) if layout == "batch first" else (T, *batch)), INPUTS)
    lengths = {"packed": [4, 2, 1], "packed, unsorted": [2, 4, 1]}.get(layout)
    inputs = data if lengths is None else pack_padded_sequence(data, lengths, enforce_sorted=layout == "packed")
    return inputs, state if with_state else None, [data, *(state if with_state else ())]


def results(module, *arguments):
    outputs, (h, c) = module(*arguments)
    return [outputs.data if isinstance(outputs, PackedSequence) else outputs, h, c]


def gradients(values, leaves):
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]
    return torch.autograd.grad(values, leaves, directions, retain_graph=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("matrices", [KINDS[0], KINDS[2]], ids=",".join)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=label)
def test_full_rank_changes_nothing(arguments, matrices, layout, generator):
    arguments = {**arguments, "batch_first": "batch first" in layout}
    teacher, students = teacher_and_students(tuple(arguments.items()), cp_rank=1, tucker_rank=FULL, matrices=matrices)
    factorized = ("weight_ih",) if matrices == ("input",) else ("weight_",)
    shared = [name for name, _ in teacher.named_parameters() if not name.startswith(factorized)]
    assert {name for name, _ in students[0].named_parameters() if "." not in name} == set(shared)
    for student, with_state in itertools.product(students, [True, False]):
        inputs, state, leaves = make_input(layout, arguments, with_state, generator.manual_seed(0))
        expected, actual = results(teacher, inputs, state), results(student, inputs, state)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            gradients(actual, leaves + [getattr(student, name) for name in shared]),
            gradients(expected, leaves + [getattr(teacher, name) for name in shared]),
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_low_rank_equals_the_dense_lstm_with_the_same_matrices(layout, gates, matrices, generator):
    arguments = {"num_layers": 2, "bias": True, "bidirectional": True, "proj_size": P}
    arguments["batch_first"] = "batch first" in layout
    teacher, students = teacher_and_students(
        tuple(arguments.items()), cp_rank=2, tucker_rank=2, gates=gates, matrices=matrices
    )
    for student in students:
        inputs, state, leaves = make_input(layout, arguments, True, generator.manual_seed(0))
        leaves = [*leaves, *student.parameters()]
        weights = {name: matrix.to_dense() for name, matrix in student.named_children()}
        weights |= {name: parameter for name, parameter in student.named_parameters() if "." not in name}
        expected = results(partial(functional_call, teacher, weights), (inputs, state))
        actual = results(student, inputs, state)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, leaves), gradients(expected, leaves))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_low_rank_differs_from_the_teacher(bidirectional, generator):
    arguments = {"num_layers": 1, "bias": True, "bidirectional": bidirectional, "proj_size": 0}
    teacher, students = teacher_and_students(tuple(arguments.items()), cp_rank=1, tucker_rank=1)
    inputs, state, _ = make_input("time first", arguments, True, generator)
    for student in students:
        assert (results(student, inputs, state)[0] - results(teacher, inputs, state)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["time first", "batch first", "packed"])
def test_dropout_in_training_draws_what_torch_draws(layout, generator):
    arguments = {"num_layers": 3, "bias": True, "bidirectional": True, "proj_size": 0, "dropout": 0.4}
    arguments["batch_first"] = layout == "batch first"
    teacher, students = teacher_and_students(tuple(arguments.items()), cp_rank=1, tucker_rank=FULL)
    inputs, state, _ = make_input(layout, arguments, True, generator)
    quiet = results(teacher.eval(), inputs, state)
    torch.manual_seed(7)
    expected = results(teacher.train(), inputs, state)
    for student in students:
        torch.testing.assert_close(results(student.eval(), inputs, state), quiet)
        torch.manual_seed(7)
        torch.testing.assert_close(results(student.train(), inputs, state), expected)
        assert (expected[0] - quiet[0]).abs().max() > 1e-2


def test_batch_without_sequences_gives_none():
    teacher, students = teacher_and_students(tuple({**ARGUMENTS[-1], "batch_first": False}.items()), cp_rank=2)
    for student in students:
        for module in (teacher, student):
            outputs, (h, c) = module(torch.zeros(T, 0, INPUTS, dtype=torch.float64))
            assert [outputs.shape, h.shape, c.shape] == [(T, 0, 2 * P), (4, 0, P), (4, 0, H)]


def test_matrices_without_a_shape_stay_dense(generator):
    chosen = BTLSTM(INPUTS, H, 2, bidirectional=True).shapes
    shapes = {
        "weight_ih_l0": chosen["weight_ih_l0"],
        "weight_ih_l0_reverse": None,
        "weight_ih_l1": chosen["weight_ih_l1"],
    }
    mixed = BTLSTM(INPUTS, H, 2, bidirectional=True, dtype=torch.float64, shapes=shapes)
    assert mixed.shapes.keys() == {"weight_ih_l0", "weight_ih_l1"}
    assert isinstance(mixed.weight_ih_l0_reverse, nn.Parameter)
    assert mixed.weight_ih_l1_reverse.shape == (4 * H, 2 * H)
    inputs = torch.randn(T, B, INPUTS, generator=generator, dtype=torch.float64)
    dense = mixed.to_dense()
    for method in METHODS:
        mixed.method = method
        torch.testing.assert_close(results(mixed, inputs), results(dense, inputs))


def test_padding_never_reaches_the_output(generator):
    teacher = nn.LSTM(7, 7, dtype=torch.float64)
    padded = BlockTermShape((3, 3), (12, 3), (9, 9), in_size=7, out_size=28, n_gates=4)
    student = BTLSTM(7, 7, dtype=torch.float64, shapes={"weight_ih_l0": MatrixShape(padded)})
    fill_factorized(student, teacher, FitOptions())
    inputs = torch.randn(T, B, 7, generator=generator, dtype=torch.float64)
    for student.method in METHODS:
        torch.testing.assert_close(results(student, inputs), results(teacher, inputs))


def test_modes_go_to_the_matrices_they_multiply_to():
    student = BTLSTM(12, 6, 2, in_modes=(3, 4), out_modes=(8, 3), tucker_rank=2)
    assert student.shapes["weight_ih_l0"].part.in_modes == (3, 4)
    assert student.shapes["weight_ih_l1"].part.in_modes != (3, 4)
    assert {shape.part.out_modes for shape in student.shapes.values()} == {(8, 3)}


@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_results_do_not_depend_on_the_recurrence(matrices, generator, monkeypatch):
    arguments = {"num_layers": 2, "bias": True, "bidirectional": True, "proj_size": P}
    _, (student, factored, _) = teacher_and_students(
        tuple(arguments.items()), cp_rank=2, tucker_rank=2, matrices=matrices
    )
    student = copy.deepcopy(factored if matrices == ("input",) else student)
    inputs, state, leaves = make_input("packed, unsorted", arguments, True, generator)
    leaves = [*leaves, *student.parameters()]
    inside = recurrence_taken(monkeypatch)
    found = []
    for way in (LOOP, KERNEL, STEPS):
        student.choice.pin(way)
        values = results(student, inputs, state)
        found.append((values, gradients(values, leaves)))
    assert inside == ["loop_over_steps"] * 2 + ["kernel_layer"] * 2 + ["recur_by_steps"] * 2
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[1])


def recurrence_taken(monkeypatch):
    """A list that grows by the name of what takes the steps of each layer."""
    taken = []
    for name in ("loop_over_steps", "kernel_layer", "recur_by_steps"):
        run = getattr(recurrence, name)

        def noted(*arguments, name=name, run=run, **options):
            taken.append(name)
            return run(*arguments, **options)

        monkeypatch.setattr(recurrence, name, noted)
    return taken


def plain_low_rank(arguments, generator, *, kinds=("weight_ih", "weight_hh", "weight_hr"), ordered=False):
    """A BTLSTM with matrices of low rank, random."""
    plain = nn.LSTM(INPUTS, H, **arguments, device="meta")
    shapes = {
        name: MatrixShape(
            BlockTermShape.low_rank(*p.shape, 2, n_gates=1 if name.startswith("weight_hr") else 4).ordered(
                ("row_order", "column_order") if ordered else ()
            )
        )
        for name, p in plain.named_parameters()
        if name.startswith(kinds)
    }
    student = BTLSTM(INPUTS, H, **arguments, dtype=torch.float64, shapes=shapes)
    student.reset_parameters(generator)
    for name, order in student.named_buffers():
        order.copy_(torch.randperm(len(order), generator=generator))
        assert name.endswith("_order")
    return student


def loops_taken(monkeypatch):
    """A list that grows by each layer that goes by the loop, with the lengths of its chains."""
    taken, loop = [], recurrence.loop_over_steps
    monkeypatch.setattr(
        recurrence,
        "loop_over_steps",
        lambda z, state, weights, sizes: (
            taken.append([[len(chain) for chain in own] for own in weights]) or loop(z, state, weights, sizes)
        ),
    )
    return taken


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("proj_size", [0, P])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_low_rank_layers_in_a_loop_equal_the_dense_lstm_with_the_same_matrices(
    layout, proj_size, ordered, generator, monkeypatch
):
    arguments = {"num_layers": 2, "bidirectional": True, "proj_size": proj_size, "batch_first": "batch first" in layout}
    student = plain_low_rank(arguments, generator, ordered=ordered)
    student.choice.pin(FACTORS_IN_LOOP)
    teacher = nn.LSTM(INPUTS, H, **arguments, dtype=torch.float64)
    inputs, state, leaves = make_input(layout, arguments, True, generator)
    leaves = [*leaves, *student.parameters()]
    weights = {name: matrix.to_dense() for name, matrix in student.named_children()}
    weights |= {name: parameter for name, parameter in student.named_parameters() if "." not in name}
    expected = results(partial(functional_call, teacher, weights), (inputs, state))
    taken = loops_taken(monkeypatch)
    actual = results(student, inputs, state)
    assert taken == [[[2, 2] if proj_size else [2]] * 2] * 2
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, leaves), gradients(expected, leaves))


@pytest.mark.parametrize("layout", ["time first", "batch first", "packed, unsorted"])
def test_layers_in_a_loop_drop_out_train_save_and_copy_as_those_of_the_kernel(layout, generator, monkeypatch):
    arguments = {"num_layers": 3, "bidirectional": True, "dropout": 0.4, "batch_first": layout == "batch first"}
    student = plain_low_rank(arguments, generator)
    with torch.no_grad():
        inputs, state, _ = make_input(layout, arguments | {"proj_size": 0}, True, generator)

    def trained(way):
        own = copy.deepcopy(student)
        own.choice.pin(way)
        optimizer = torch.optim.AdamW(own.parameters(), lr=0.01)
        torch.manual_seed(3)
        for _ in range(3):
            optimizer.zero_grad()
            results(own, inputs, state)[0].square().sum().backward()
            optimizer.step()
        return own

    taken = loops_taken(monkeypatch)
    by_kernel = trained(KERNEL)
    assert not taken
    looped, again = trained(FACTORS_IN_LOOP), trained(FACTORS_IN_LOOP)
    assert len(taken) == 2 * 3 * 3
    torch.testing.assert_close(looped.state_dict(), by_kernel.state_dict())
    assert all(torch.equal(own, other) for own, other in zip(looped.parameters(), again.parameters(), strict=True))
    loaded = plain_low_rank(arguments, generator)
    loaded.load_state_dict(looped.state_dict())
    loaded.choice.pin(FACTORS_IN_LOOP)
    assert torch.equal(results(loaded.eval(), inputs, state)[0], results(looped.eval(), inputs, state)[0])


@pytest.mark.parametrize(
    ("in_size", "modes", "rank", "n_rows", "dense"),
    [
        (57_600, {"in_modes": (8, 20, 20, 18)}, 4, 1, False),
        (57_600, {"in_modes": (8, 20, 20, 18)}, 4, 10_000, False),
        (256, {"in_modes": (16, 16)}, 4, 1, False),
        (256, {"in_modes": (16, 16)}, 64, 1_000, True),
        (256, {"in_modes": (16, 16)}, 64, 1, False),
    ],
)
def test_cheaper_way_is_chosen_by_sizes(in_size, modes, rank, n_rows, dense):
    lstm = BTLSTM(in_size, 256, cp_rank=2, tucker_rank=rank, **modes, device="meta")
    weight = lstm.weight_ih_l0
    assert isinstance(weight, BTWeight)
    assert weight.prefers_dense(n_rows, "auto") == dense
    assert weight.prefers_dense(n_rows, "dense")
    assert not weight.prefers_dense(n_rows, "factored")


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_matrices_of_every_step_are_formed_once_in_a_call(monkeypatch):
    formed = []
    to_dense = BTWeight.to_dense
    monkeypatch.setattr(BTWeight, "to_dense", lambda weight: formed.append(weight) or to_dense(weight))
    lstm = BTLSTM(INPUTS, H, proj_size=P, bidirectional=True, matrices=("recurrent",))
    lstm(torch.zeros(T, B, INPUTS))
    assert len(formed) == len({id(weight) for weight in formed}) == 4


def test_projections_have_no_gates_to_separate():
    shapes = BTLSTM(INPUTS, H, proj_size=P, matrices=("recurrent",), gates="separate").shapes
    assert {name: shape.n_parts for name, shape in shapes.items()} == {"weight_hh_l0": 4, "weight_hr_l0": 1}


def test_kinds_that_an_lstm_does_not_have_are_refused():
    with pytest.raises(BTCompressError, match="input, recurrent, but linear was given"):
        BTLSTM(INPUTS, H, matrices=("linear",))
