import itertools

import pytest
import torch
from torch import nn

from btcompress.errors import ShapeError
from btcompress.nn import BTLSTMCell
from btcompress.shapes import BlockTermShape, MatrixShape

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
def test_full_rank_changes_nothing(bias, batch, generator):
    cell = nn.LSTMCell(6, 5, bias, dtype=torch.float64)
    student = BTLSTMCell.from_dense(cell, cp_rank=1, tucker_rank=10**6)
    inputs = draw(*batch, 6, generator=generator)
    state = (draw(*batch, 5, generator=generator), draw(*batch, 5, generator=generator))
    shared = [name for name, _ in cell.named_parameters() if name != "weight_ih"]
    for student.method, given in itertools.product(METHODS, [None, state]):
        leaves = [inputs, *(given or ())]
        expected, actual = cell(inputs, given), student(inputs, given)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            gradients(actual, leaves + [getattr(student, name) for name in shared]),
            gradients(expected, leaves + [getattr(cell, name) for name in shared]),
        )


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_low_rank_equals_the_cell_with_the_same_matrix(gates, generator):
    cell = nn.LSTMCell(12, 10, dtype=torch.float64)
    student = BTLSTMCell.from_dense(cell, cp_rank=2, tucker_rank=2, gates=gates)
    inputs, state = (
        draw(3, 12, generator=generator),
        (draw(3, 10, generator=generator), draw(3, 10, generator=generator)),
    )
    leaves = [inputs, *student.parameters()]
    weights = {"weight_ih": student.weight_ih.to_dense(), **dict(student.named_parameters(recurse=False))}
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
