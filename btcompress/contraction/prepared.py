"""The operands of a chain as its steps take them, and the product of rows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from btcompress.contraction.gradients import backward
from btcompress.contraction.layout import Layout, plan_layout
from btcompress.contraction.running import follow, forward, forward_kept

#: What torch hands to the methods of an autograd function; it has no type for it.
Context = Any


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as ``torch.autocast`` hands them to a matrix product; unchanged where it is off."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def apply_chain(rows: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """Multiply rows by a block-term matrix without forming it.

    Args:
        rows: shape ``(n, I_1..I_d)``.
        operands: cores ``(N, R_1..R_d)``, then factors ``(N, I_k, J_k, R_k)``.

    Returns:
        Shape ``(n, J_1..J_d)``; differentiable as :meth:`Prepared.matmul` says.
    """
    out_modes = [factor.shape[2] for factor in operands[1:]]
    return prepare_chain(operands).matmul(rows.flatten(1)).reshape(len(rows), *out_modes)


def prepare_chain(operands: Sequence[Tensor]) -> Prepared:
    """What rows meet on the way through a chain, of cores ``(N, R_1..R_d)`` and factors ``(N, I_k, J_k, R_k)``.

    Differentiable; what takes no forming are views.
    """
    in_modes, out_modes, ranks = zip(*(tuple(factor.shape[1:]) for factor in operands[1:]), strict=True)
    layout = plan_layout(operands[0].shape[0], in_modes, out_modes, ranks)
    met = (torch.einsum(step.equation, *[operands[n] for n in step.operands]) for step in layout.steps)
    return Prepared(layout, tuple(each.reshape(step.right) for each, step in zip(met, layout.steps, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The operands of a chain as its steps take them.

    Attributes:
        layout: of the chain.
        met: what each step multiplies by.
    """

    layout: Layout
    met: tuple[Tensor, ...]

    def matmul(self, rows: Tensor) -> Tensor:
        """Multiply rows by the matrix, a piece at a time.

        What is met on the way may hold several times as many numbers as the rows. It is kept for the gradient where
        all rows are one piece; else it lives for one piece only, and is computed again.

        Args:
            rows: shape ``(n, prod_k I_k)``.

        Returns:
            Shape ``(n, prod_k J_k)``; differentiable in the rows and operands, as often as wanted.
        """
        rows, *met = autocast(rows, *self.met)
        if not len(rows) or is_watched(rows, *met):
            return follow(self.layout, rows, met)
        product: Tensor = _ChainProduct.apply(self.layout, rows, *met)  # type: ignore[no-untyped-call]
        return product


def is_watched(*tensors: Tensor) -> bool:
    """Whether something looks into operations on these tensors, and so has to see every one of them.

    A compiler or tracer, ``torch.func``, forward gradients, or a tensor class of its own.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch.overrides.has_torch_function(tensors)
        or any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    )


class _ChainProduct(torch.autograd.Function):
    """The product of rows with a chain."""

    @staticmethod
    def forward(ctx: Context, layout: Layout, rows: Tensor, *met: Tensor) -> Tensor:
        ctx.layout = layout
        if any(ctx.needs_input_grad) and len(rows) <= layout.rows_of_piece(rows.device):
            result, kept = forward_kept(layout, rows, met)
            ctx.save_for_backward(rows, *met, kept)
        else:
            result = forward(layout, rows, met)
            ctx.save_for_backward(rows, *met, None)
        return result

    @staticmethod
    def backward(ctx: Context, direction: Tensor) -> tuple[Tensor | None, ...]:
        rows, *met, kept = ctx.saved_tensors
        needs_rows, *needs_met = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            found = backward(ctx.layout, rows, met, direction, kept, needs_rows=needs_rows, needs_met=needs_met)
            return None, *found
        # A second gradient is asked for: every operation shows itself.
        needs = (needs_rows, *needs_met)
        leaves = [tensor for tensor, need in zip((rows, *met), needs, strict=True) if need]
        wanted = iter(torch.autograd.grad(follow(ctx.layout, rows, met), leaves, direction, create_graph=True))
        return None, *(next(wanted) if need else None for need in needs)
