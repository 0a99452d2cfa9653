import pytest
import torch
from torch import nn

from btcompress.errors import BTCompressError, ShapeError
from btcompress.modes import ShapeRequest
from btcompress.nn import BTLinear
from btcompress.shapes import BlockTermShape, MatrixShape

METHODS = ("auto", "factored", "dense")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)], ids=str)
def test_full_rank_changes_nothing(bias, batch, generator):
    linear = nn.Linear(12, 10, bias, dtype=torch.float64)
    student = BTLinear.from_dense(linear, cp_rank=1, tucker_rank=10**6, in_modes=(3, 4), out_modes=(5, 2))
    inputs = torch.randn(*batch, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(*batch, 10, generator=generator, dtype=torch.float64)
    for student.method in METHODS:
        expected, actual = linear(inputs), student(inputs)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, inputs, direction), torch.autograd.grad(expected, inputs, direction)
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "part",
    [BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4), 3), BlockTermShape((5, 6), (12, 7), (4, 4), core="identity")],
    ids=["full core", "identity core"],
)
def test_low_rank_equals_the_layer_with_the_same_matrix(part, method, generator):
    shape = MatrixShape(part)
    student = BTLinear(30, 84, shape=shape, dtype=torch.float64, method=method)
    inputs = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    direction = torch.randn(6, 84, generator=generator, dtype=torch.float64)
    leaves = list(student.parameters())
    plain = nn.functional.linear(inputs, student.weight.to_dense(), student.bias)
    torch.testing.assert_close(student(inputs), plain)
    torch.testing.assert_close(
        torch.autograd.grad(student(inputs), leaves, direction), torch.autograd.grad(plain, leaves, direction)
    )
    torch.testing.assert_close(student.to_dense()(inputs), plain)


def test_names_of_parameters():
    shape = MatrixShape(BlockTermShape((2, 3), (5, 4), (2, 3)))
    assert set(BTLinear(6, 20, shape=shape).state_dict()) == {
        "weight.cores",
        "weight.factors.0",
        "weight.factors.1",
        "bias",
    }


def test_identity_cores_are_no_parameters_and_survive_the_meta_device():
    shape = MatrixShape(BlockTermShape.low_rank(20, 6, 3))
    student = BTLinear(6, 20, shape=shape, device="meta").to_empty(device="cpu")
    assert set(student.state_dict()) == {"weight.factors.0", "weight.factors.1", "bias"}
    assert sum(parameter.numel() for parameter in student.parameters()) == 3 * 26 + 20
    student.reset_parameters()
    first, second = (factor.reshape(-1, 3) for factor in student.weight.factors.tensors())
    torch.testing.assert_close(student.weight.to_dense(), second @ first.T)
    assert "core=identity" in repr(student)


def test_bias_is_neither_lost_nor_invented():
    for bias in (True, False):
        student = BTLinear.from_dense(nn.Linear(6, 8, bias), tucker_rank=2)
        assert (student.bias is not None) == bias
        assert (student.to_dense().bias is not None) == bias


def test_flags_dtype_and_storage(generator):
    linear = nn.Linear(6, 8, dtype=torch.bfloat16).eval()
    linear.weight.requires_grad_(False)
    student = BTLinear.from_dense(linear, tucker_rank=2)
    back = student.to_dense()
    for module in (student, back):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == ["bias"]
    pointers = [
        {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        for module in (linear, student, back)
    ]
    assert len(set.union(*pointers)) == sum(map(len, pointers))


def test_initial_matrix_has_the_variance_of_a_plain_layer(generator):
    student = BTLinear(60, 50, shape=ShapeRequest(2, 3, order=3))
    drawn = []
    for _ in range(40):
        student.reset_parameters(generator)
        drawn.append(student.weight.to_dense().detach())
        assert student.bias.abs().max() <= 60**-0.5
    plain = nn.Linear(60, 50).weight
    assert torch.stack(drawn).var().item() == pytest.approx(plain.var().item(), rel=0.1)


def test_same_generator_draws_the_same_parameters():
    first, second = BTLinear(6, 8), BTLinear(6, 8)
    for module in (first, second):
        module.reset_parameters(torch.Generator().manual_seed(3))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_shape_of_another_matrix_is_refused():
    with pytest.raises(ShapeError, match=r"weight is 8 x 6, but its block-term shape is for 20 x 6"):
        BTLinear(6, 8, shape=MatrixShape(BlockTermShape((2, 3), (5, 4), (2, 3))))


def test_unknown_method_is_refused():
    with pytest.raises(BTCompressError, match="auto, factored, dense, but 'fast' was given"):
        BTLinear(6, 8, method="fast")


def test_product_of_mixed_dtypes_is_refused_as_by_torch(generator):
    inputs = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    for module in (nn.Linear(6, 8), *(BTLinear(6, 8, method=method) for method in METHODS)):
        with pytest.raises(RuntimeError):
            module(inputs)
