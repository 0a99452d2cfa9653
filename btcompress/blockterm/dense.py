"""The dense matrix of cores and factors, with a backward pass by hand: half as many operations as autograd notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from btcompress.contraction import letters, operand_letters
from btcompress.contraction.prepared import autocast, is_watched

#: What torch hands to the methods of an autograd function; it has no type for it.
Context = Any


@dataclass(frozen=True, slots=True)
class _Step:
    """One contraction with a factor.

    Attributes:
        mode: of the factor.
        equation: of what there is and the factor.
        to_given: of the result's gradient and the factor, to the gradient of what there was.
        to_factor: of what there was and the result's gradient, to the gradient of the factor.
    """

    mode: int
    equation: str
    to_given: str
    to_factor: str


@lru_cache(maxsize=1024)
def _plan(growths: tuple[float, ...]) -> tuple[tuple[_Step, ...], tuple[int, ...]]:
    """The steps, and where the axes of the last result come from in a matrix: outputs first, then inputs.

    Args:
        growths: by how much each mode met multiplies the size: the last one makes nearly all of the matrix.
    """
    order = len(growths)
    _, block, i, j, r = letters(order)
    modes = sorted(range(order), key=growths.__getitem__)
    given, steps = block + r, []
    for k in modes:
        factor = operand_letters(order)[k + 1]
        summed = r[k] if k != modes[-1] else r[k] + block
        result = "".join([letter for letter in given + j[k] + i[k] if letter not in summed])
        equations = (f"{given},{factor}->{result}", f"{result},{factor}->{given}", f"{given},{result}->{factor}")
        steps.append(_Step(k, *equations))
        given = result
    return tuple(steps), tuple(given.index(letter) for letter in j + i)


def padded_dense(cores: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The dense matrix, padding included; differentiable.

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
    return _matrix(_contracted(cores, factors)[-1], factors)


def _growths(factors: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(factor.shape[1] * factor.shape[2] / factor.shape[3] for factor in factors)


def _contracted(cores: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """What there is before the first step, and after each."""
    steps, _ = _plan(_growths(factors))
    found = [cores]
    for step in steps:
        found.append(torch.einsum(step.equation, found[-1], factors[step.mode]))
    return found


def _matrix(tensor: Tensor, factors: Sequence[Tensor]) -> Tensor:
    _, axes = _plan(_growths(factors))
    rows = 1
    for factor in factors:
        rows *= factor.shape[2]
    return tensor.permute(axes).reshape(rows, -1)


class _Dense(torch.autograd.Function):
    """Cores and factors to the dense matrix."""

    @staticmethod
    def forward(ctx: Context, cores: Tensor, *factors: Tensor) -> Tensor:
        """Contract, and keep what there is between the steps, which is small beside the matrix."""
        *before, last = _contracted(cores, factors)
        ctx.save_for_backward(cores, *factors, *before[1:])
        return _matrix(last, factors)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Contract backward; where gradients of these are asked for, autograd notes how they come about."""
        # Saved are the cores, as many factors as there are steps, and what there is between the steps.
        order = len(ctx.saved_tensors) // 2
        cores, *factors = ctx.saved_tensors[: order + 1]
        if torch.is_grad_enabled():
            return _noted_gradients((cores, *factors), ctx.needs_input_grad, gradient)
        steps, axes = _plan(_growths(factors))
        before = (cores, *ctx.saved_tensors[order + 1 :])
        sizes = [factor.shape[2] for factor in factors] + [factor.shape[1] for factor in factors]
        inverse = sorted(range(len(axes)), key=axes.__getitem__)
        running = gradient.reshape(sizes).permute(inverse)
        found: list[Tensor | None] = [None] * (order + 1)
        for step, given in reversed(list(zip(steps, before, strict=True))):
            if ctx.needs_input_grad[step.mode + 1]:
                found[step.mode + 1] = torch.einsum(step.to_factor, given, running)
            running = torch.einsum(step.to_given, running, factors[step.mode])
        found[0] = running if ctx.needs_input_grad[0] else None
        return tuple(found)


def _noted_gradients(tensors: Sequence[Tensor], needed: Sequence[bool], gradient: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor, needs in zip(tensors, needed, strict=True) if needs]
    dense = _matrix(_contracted(tensors[0], tensors[1:])[-1], tensors[1:])
    found = iter(torch.autograd.grad(dense, wanted, gradient, create_graph=True))
    return tuple(next(found) if needs else None for needs in needed)
