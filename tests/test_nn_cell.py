import itertools

import pytest
import torch
from torch import nn

from btcompress.errors import ShapeError
from btcompress.modes import ShapeRequest
from btcompress.nn import BTLSTMCell, BTWeight
from btcompress.shapes import BlockTermShape, MatrixShape

KINDS = (("input",), ("recurrent",), ("input", "recurrent"))
METHODS = ("auto", "factored", "dense")


def draw(*size, generator):
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def gradients(values, leaves):
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad(
        values, leaves, [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (3,), (0,)], ids=str)
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_full_rank_changes_nothing(bias, batch, matrices, generator):
    cell = nn.LSTMCell(6, 5, bias, dtype=torch.float64)
    student = BTLSTMCell.from_dense(cell, cp_rank=1, tucker_rank=10**6, matrices=matrices)
    inputs = draw(*batch, 6, generator=generator)
    state = (draw(*batch, 5, generator=generator), draw(*batch, 5, generator=generator))
    shared = [name for name, _ in student.named_parameters() if "." not in name]
    for student.method, given in itertools.product(METHODS, [None, state]):
        leaves = [inputs, *(given or ())]
        expected, actual = cell(inputs, given), student(inputs, given)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            gradients(actual, leaves + [getattr(student, name) for name in shared]),
            gradients(expected, leaves + [getattr(cell, name) for name in shared]),
        )


@pytest.mark.parametrize("gates", ["fused", "separate"])
@pytest.mark.parametrize("matrices", KINDS, ids=",".join)
def test_low_rank_equals_the_cell_with_the_same_matrices(gates, matrices, generator):
    cell = nn.LSTMCell(12, 10, dtype=torch.float64)
    student = BTLSTMCell.from_dense(cell, cp_rank=2, tucker_rank=2, gates=gates, matrices=matrices)
    factorized = {name for name, child in student.named_children() if isinstance(child, BTWeight)}
    assert factorized == {{"input": "weight_ih", "recurrent": "weight_hh"}[kind] for kind in matrices}
    inputs, state = (
        draw(3, 12, generator=generator),
        (draw(3, 10, generator=generator), draw(3, 10, generator=generator)),
    )
    leaves = [inputs, *student.parameters()]
    weights = {name: matrix.to_dense() for name, matrix in student.named_children()}
    weights |= dict(student.named_parameters(recurse=False))
    expected = torch.func.functional_call(cell, weights, (inputs, state))
    expected_gradients = gradients(expected, leaves)
    for student.method in METHODS:
        actual = student(inputs, state)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(actual, leaves), expected_gradients)
    torch.testing.assert_close(student.to_dense()(inputs, state), expected)
    assert (student(inputs, state)[0] - cell(inputs, state)[0]).abs().max() > 1e-3


def test_names_of_parameters():
    cell = BTLSTMCell(6, 5, shape=MatrixShape(BlockTermShape((2, 3), (5, 1), (1, 1)), "separate"))
    gates = {f"weight_ih.gate_{g}.{name}" for g in "ifgo" for name in ("cores", "factors.0", "factors.1")}
    assert set(cell.state_dict()) == gates | {"weight_hh", "bias_ih", "bias_hh"}
    assert set(BTLSTMCell(6, 5, bias=False).state_dict()) == {
        "weight_ih.cores",
        "weight_ih.factors.0",
        "weight_ih.factors.1",
        "weight_hh",
    }


@pytest.mark.parametrize(
    ("inputs", "state"),
    [
        ((2, 4), None),
        ((4,), None),
        ((2, 2, 6), None),
        ((2, 6), [(3, 5), (3, 5)]),
        ((2, 6), [(2, 4), (2, 5)]),
        ((2, 6), [(2, 5), (2, 4)]),
        ((2, 6), [(2, 5), (1, 5)]),
        ((2, 6), [(5,), (5,)]),
        ((6,), [(1, 5), (1, 5)]),
        ((2, 6), [(2, 1, 5), (2, 5)]),
    ],
)
def test_wrong_arguments_raise_what_torch_raises(inputs, state):
    arguments = (torch.zeros(inputs), state and tuple(torch.zeros(size) for size in state))
    with pytest.raises((ValueError, RuntimeError)) as expected:
        nn.LSTMCell(6, 5)(*arguments)
    with pytest.raises(expected.type):
        BTLSTMCell(6, 5)(*arguments)


def test_initial_matrices_have_the_variance_of_a_plain_cell(generator):
    student = BTLSTMCell(3, 24, shape=ShapeRequest(2, 3), matrices=("recurrent",))
    drawn = []
    for _ in range(80):
        student.reset_parameters(generator)
        drawn.append(student.weight_hh.to_dense().detach())
    assert torch.stack(drawn).var().item() == pytest.approx(nn.LSTMCell(3, 24).weight_hh.var().item(), rel=0.15)


def test_shapes_by_name_go_to_their_matrices():
    shape = MatrixShape(BlockTermShape((1, 5), (5, 4), (1, 1)))
    cell = BTLSTMCell(6, 5, shapes={"weight_hh": shape, "weight_ih": None})
    assert set(cell.state_dict()) == {
        *("weight_ih", "weight_hh.cores", "weight_hh.factors.0", "weight_hh.factors.1", "bias_ih", "bias_hh"),
    }
    with pytest.raises(ShapeError, match="weight_ih is 20 x 6, but its block-term shape is for 20 x 5"):
        BTLSTMCell(6, 5, shapes={"weight_ih": shape})


def test_shape_of_another_matrix_is_refused():
    with pytest.raises(ShapeError, match="weight_ih is 20 x 6"):
        BTLSTMCell(6, 5, shape=MatrixShape(BlockTermShape((2, 4), (5, 4), (2, 3))))


def test_flags_dtype_and_storage():
    cell = nn.LSTMCell(6, 5, dtype=torch.float16).eval()
    cell.weight_ih.requires_grad_(False)
    student = BTLSTMCell.from_dense(cell, tucker_rank=2)
    back = student.to_dense()
    for module in (student, back):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float16}
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        assert trained == {"weight_hh", "bias_ih", "bias_hh"}
    pointers = [
        {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        for module in (cell, student, back)
    ]
    assert len(set.union(*pointers)) == sum(map(len, pointers))
