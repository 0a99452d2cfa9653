import pytest
import torch
from torch import nn

from btcompress.blockterm import BlockTerm
from btcompress.finetune.blocks import balance, cancellation, worst_cancellation
from btcompress.nn import BTLSTM, BTLinear
from btcompress.shapes import BlockTermShape, MatrixShape
from forms import UNEVEN, random_form


def test_cancellation_is_squared_norms_of_blocks_over_that_of_their_sum(generator):
    form = random_form(UNEVEN, generator)
    one = BlockTermShape(UNEVEN.in_modes, UNEVEN.out_modes, UNEVEN.ranks)
    blocks = [
        BlockTerm(one, form.cores[n : n + 1], tuple(factor[n : n + 1] for factor in form.factors)).to_dense()
        for n in range(UNEVEN.n_blocks)
    ]
    expected = sum(block.square().sum() for block in blocks) / torch.stack(blocks).sum(0).square().sum()
    assert cancellation(form) == pytest.approx(float(expected), rel=1e-10)


def test_blocks_that_cancel_exactly_are_reported_as_huge_and_zeros_as_one(generator):
    form = random_form(BlockTermShape((2, 3), (4, 5), (2, 2), n_blocks=2), generator)
    twins = tuple(factor[:1].repeat(2, 1, 1, 1) for factor in form.factors)
    opposite = BlockTerm(form.shape, torch.stack([form.cores[0], -form.cores[0]]), twins)
    assert cancellation(opposite) > 1e12
    assert cancellation(BlockTerm(form.shape, form.cores * 0, form.factors)) == 1.0


@pytest.mark.parametrize("gates", ["fused", "separate"])
def test_balancing_changes_scales_and_nothing_else(gates):
    lstm = BTLSTM(24, 10, cp_rank=2, tucker_rank=2, gates=gates, dtype=torch.float64)
    network = nn.ModuleDict({"lstm": lstm})
    with torch.no_grad():
        for part in lstm.weight_ih_l0.parts:
            part.cores.mul_(1e4)
    dense, before = lstm.weight_ih_l0.to_dense().detach(), worst_cancellation(network)
    balance(network)
    torch.testing.assert_close(lstm.weight_ih_l0.to_dense(), dense)
    assert worst_cancellation(network) == pytest.approx(before)
    for part in lstm.weight_ih_l0.parts:
        norms = torch.stack([tensor.flatten(1).norm(dim=1) for tensor in part.tensors])
        torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_matrices_with_a_frozen_tensor_are_not_balanced():
    lstm = BTLSTM(24, 10, cp_rank=2, tucker_rank=2)
    lstm.weight_ih_l0.cores.requires_grad_(False)
    before = [parameter.clone() for parameter in lstm.parameters()]
    balance(lstm)
    assert all(torch.equal(old, new) for old, new in zip(before, lstm.parameters(), strict=True))


def test_low_rank_matrices_are_balanced_and_never_cancel(generator):
    linear = BTLinear(9, 14, shape=MatrixShape(BlockTermShape.low_rank(14, 9, 3)), dtype=torch.float64)
    with torch.no_grad():
        linear.weight.factors.tensors()[0].mul_(1e4)
    dense = linear.weight.to_dense().detach()
    assert worst_cancellation(linear) == pytest.approx(1)
    balance(linear)
    torch.testing.assert_close(linear.weight.to_dense(), dense)
    first, second = (tensor.norm() for tensor in linear.weight.factors.tensors())
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_cancellation_is_the_same_at_any_scale(scale, generator):
    form = random_form(UNEVEN, generator)
    scaled = BlockTerm(form.shape, form.cores * scale, tuple(factor * scale for factor in form.factors))
    assert cancellation(scaled) == pytest.approx(cancellation(form), rel=1e-10)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_cancellation_of_numbers_that_are_not_finite_is_finite_and_huge(value, generator):
    form = random_form(UNEVEN, generator)
    form.cores[0, 0] = value
    assert 1e12 < cancellation(form) < float("inf")
