"""The operands of a chain as its steps take them, and the product of rows with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from btcompress.contraction.gradients import backward
from btcompress.contraction.layout import Layout, plan_layout
from btcompress.contraction.running import Steps, follow, forward, forward_kept, in_turns
from btcompress.contraction.watching import is_watched, own_sizes

#: What torch hands to the methods of an autograd function; it has no type for it.
Context = Any

#: Buffers of up to so many numbers each are kept from one call to the next.
_SPARE_NUMBERS = 2**19


def autocasts(device: str) -> bool:
    """Whether ``torch.autocast`` is on for a type of device.

    Compilers of older versions of torch cannot follow the question whether it is there; for these two it always is.
    """
    return (device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)) and torch.is_autocast_enabled(device)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as ``torch.autocast`` hands them to a matrix product; unchanged where it is off."""
    device = tensors[0].device.type
    if not autocasts(device):
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
    cores, *factors = (own_sizes(operand) for operand in operands)
    in_modes, out_modes, ranks = zip(*(factor[1:] for factor in factors), strict=True)
    layout = plan_layout(cores[0], in_modes, out_modes, ranks)
    met = (torch.einsum(step.equation, *[operands[n] for n in step.operands]) for step in layout.steps)
    return Prepared(layout, tuple(each.reshape(step.right) for each, step in zip(met, layout.steps, strict=True)))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The operands of a chain as its steps take them.

    Attributes:
        layout: of the chain.
        met: what each step multiplies by.
        spare: steps and buffers of the last call, for the next one with as many rows; none while they are used.
    """

    layout: Layout
    met: tuple[Tensor, ...]
    spare: list[Steps] = field(default_factory=list, repr=False)

    def matmul(self, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Multiply rows by the matrix, a piece at a time.

        What is met on the way may hold several times as many numbers as the rows. It is kept for the gradient where
        all rows are one piece; else it lives for one piece only, and is computed again.

        Args:
            rows: shape ``(n, prod_k I_k)``.
            bias: shape ``(prod_k J_k,)``, to be added; none where left out.

        Returns:
            Shape ``(n, prod_k J_k)``; differentiable in the rows, operands and bias, as often as wanted.
        """
        given, *met = autocast(rows, *self.met)
        if is_watched(given, *met) or not len(rows):
            product = follow(self.layout, given, met)
        elif torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (given, *met, bias) if tensor is not None
        ):
            product = _ChainProduct.apply(self.layout, given, *met)  # type: ignore[no-untyped-call]
        else:
            added = bias if bias is None else bias.to(given.dtype)
            if len(rows) * self.layout.widest > _SPARE_NUMBERS or met[0] is not self.met[0]:
                return forward(self.layout, given, met, added)
            return self._by_spare(given, added)
        return product if bias is None else product + bias.to(product.dtype)

    def _by_spare(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """The product by steps that were bound at an earlier call, if there are such for so many rows."""
        # Who takes them leaves none behind: two threads never share their buffers.
        try:
            steps = self.spare.pop()
        except IndexError:
            steps = None
        if steps is None or steps.n_rows != len(rows):
            # Buffers made in inference mode could not be written to outside of it.
            with torch.inference_mode(mode=False):
                buffers = rows.new_empty(2, len(rows) * self.layout.widest)
                steps = Steps(self.layout, self.met, len(rows), in_turns(buffers))
        result = rows.new_empty(len(rows), self.layout.steps[-1].n_result)
        steps.run(rows, result, bias)
        self.spare[:] = [steps]
        return result


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
