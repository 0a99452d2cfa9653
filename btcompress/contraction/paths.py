"""Pairwise paths for contractions of any equation."""

from __future__ import annotations

from functools import lru_cache

import opt_einsum
import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def _path(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Pairwise steps ``(operand positions, equation)`` of the cheapest order found."""
    optimize = "optimal" if len(shapes) <= 6 else "auto"
    _, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    return tuple((tuple(step[0]), step[2]) for step in info.contraction_list)


def contract(equation: str, *operands: Tensor) -> Tensor:
    """``torch.einsum`` that contracts pair by pair in the cheapest order, which einsum alone does not.

    Args:
        equation: einsum's equation with an explicit output.
        operands: tensors of the shapes that the equation names.

    Returns:
        The contraction, differentiable in every operand.
    """
    remaining = list(operands)
    for positions, step in _path(equation, tuple(tuple(operand.shape) for operand in operands)):
        # opt_einsum lists positions from the last to the first, so that each pop leaves the others in place.
        taken = [remaining.pop(position) for position in positions]
        remaining.append(torch.einsum(step, *taken))
    return remaining[0]
