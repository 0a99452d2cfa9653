"""The dense matrix of cores and factors: one matrix product for each mode, and a backward pass by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from btcompress.contraction import autocast, is_watched, own_sizes

#: What torch hands to the methods of an autograd function; it has no type for it.
Context = Any


def padded_dense(cores: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The dense matrix, padding included; differentiable.

    The cores meet one factor after another. What there is then stands as ``(N, R_k, rest)``, the factor as
    ``(N, R_k, J_k I_k)``, and the product over ``R_k``, in the last step over the blocks too, as
    ``(N, rest, J_k I_k)``: the next rank is the first of the rest, so that nothing is copied on the way.

    Args:
        cores: shape ``(N, R_1..R_d)``.
        factors: shapes ``(N, I_k, J_k, R_k)``.

    Returns:
        Shape ``(prod_k J_k, prod_k I_k)``.
    """
    tensors = (cores, *factors)
    by_hand = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if by_hand and not is_watched(*tensors) and autocast(*tensors) is tensors:
        dense: Tensor = _Dense.apply(*tensors)  # type: ignore[no-untyped-call]
        return dense
    return _matrix(_products(cores, factors)[-1], factors)


def _order(factors: Sequence[Tensor]) -> list[int]:
    """Modes in the order in which they are met.

    Each multiplies the size by about this much: the last one makes nearly all of the matrix.
    """
    sizes = [own_sizes(factor) for factor in factors]
    return sorted(range(len(factors)), key=lambda k: sizes[k][1] * sizes[k][2] / sizes[k][3])


def _as_right(factor: Tensor, *, last: bool) -> Tensor:
    """``(N, R, J I)``, or of the last one met ``(1, N R, J I)``."""
    n_blocks, _, _, rank = own_sizes(factor)
    return factor.permute(0, 3, 2, 1).reshape((1, n_blocks * rank, -1) if last else (n_blocks, rank, -1))


def _products(cores: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """What meets each factor, as ``(N, R_k, rest)``, and the last product, as ``(1, rest, J I)``."""
    order = _order(factors)
    found, running = [], cores.permute(0, *(k + 1 for k in order))
    for k in order:
        right = _as_right(factors[k], last=k == order[-1])
        found.append(running.reshape(*own_sizes(right)[:2], -1))
        running = found[-1].transpose(-1, -2) @ right
    return [*found, running]


def _axes(factors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Sizes of the last product's axes, ``J_k, I_k`` in the order met, and where those of the matrix are among them."""
    order = _order(factors)
    sizes = [own_sizes(factors[k])[axis] for k in order for axis in (2, 1)]
    places = [2 * order.index(k) for k in range(len(order))]
    return sizes, places + [place + 1 for place in places]


def _matrix(product: Tensor, factors: Sequence[Tensor]) -> Tensor:
    sizes, axes = _axes(factors)
    return product.reshape(sizes).permute(axes).reshape(math.prod([own_sizes(factor)[2] for factor in factors]), -1)


class _Dense(torch.autograd.Function):
    """Cores and factors to the dense matrix."""

    @staticmethod
    def forward(ctx: Context, cores: Tensor, *factors: Tensor) -> Tensor:
        """Multiply, and keep what meets the factors, which is small beside the matrix."""
        *met, last = _products(cores, factors)
        ctx.save_for_backward(cores, *factors, *met)
        return _matrix(last, factors)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply backward; where gradients of these are asked for, autograd notes how they come about."""
        n_factors = len(ctx.saved_tensors) // 2
        cores, *factors = ctx.saved_tensors[: n_factors + 1]
        if torch.is_grad_enabled():
            return _noted_gradients((cores, *factors), ctx.needs_input_grad, gradient)
        order, (sizes, axes) = _order(factors), _axes(factors)
        split = gradient.reshape([sizes[axis] for axis in axes])
        running = split.permute(sorted(range(len(axes)), key=axes.__getitem__))
        found: list[Tensor | None] = [None] * (n_factors + 1)
        for k, left in reversed(list(zip(order, ctx.saved_tensors[n_factors + 1 :], strict=True))):
            n_blocks, n_in, n_out, rank = factors[k].shape
            right = _as_right(factors[k], last=k == order[-1])
            running = running.reshape(len(right), -1, n_out * n_in)
            if ctx.needs_input_grad[k + 1]:
                found[k + 1] = (left @ running).view(n_blocks, rank, n_out, n_in).permute(0, 3, 2, 1)
            running = right @ running.mT
        if ctx.needs_input_grad[0]:
            ranks = [cores.shape[k + 1] for k in order]
            back = [order.index(k) + 1 for k in range(n_factors)]
            found[0] = running.reshape(len(cores), *ranks).permute(0, *back)
        return tuple(found)


def _noted_gradients(tensors: Sequence[Tensor], needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if needs]
    dense = _matrix(_products(tensors[0], tensors[1:])[-1], tensors[1:])
    found = iter(torch.autograd.grad(dense, wanted, gradient, create_graph=True))
    return tuple(next(found) if needs else None for needs in needed)
