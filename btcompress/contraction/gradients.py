"""The gradient of a chain of matrix products, a piece of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from btcompress.contraction.layout import Layout, Multiplication
from btcompress.contraction.running import (
    Call,
    Steps,
    in_pieces,
    in_turns,
    one_after_another,
    permuted,
    product,
    view_left,
)


def backward(
    layout: Layout,
    rows: Tensor,
    met: Sequence[Tensor],
    direction: Tensor,
    kept: Tensor | None,
    *,
    needs_rows: bool,
    needs_met: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of :func:`btcompress.contraction.running.follow`.

    Args:
        layout: of the chain.
        rows: shape ``(n, prod_k I_k)``.
        met: what each step multiplies by, in the same dtype.
        direction: the gradient of the result, shape ``(n, prod_k J_k)``.
        kept: what all rows met on the way; without it, that is computed again, piece by piece.
        needs_rows: whether the gradient of the rows is wanted.
        needs_met: likewise of what each step multiplies by.

    Returns:
        The gradients of the rows and of what each step multiplies by; None for those not wanted.
    """
    n_rows = min(layout.rows_of_piece(rows.device), len(rows))
    again = kept is None
    on_the_way = rows.new_empty(n_rows * layout.n_kept) if kept is None else kept
    buffers = rows.new_empty(3, n_rows * layout.widest)
    gradients = [torch.zeros_like(right) if needs else None for right, needs in zip(met, needs_met, strict=True)]
    of_rows = torch.empty_like(rows, memory_format=torch.contiguous_format) if needs_rows else None

    def bind(n: int) -> tuple[Steps, Tensor, _Back]:
        steps = Steps(layout, met, n, one_after_another(on_the_way))
        return steps, buffers[0, : n * layout.steps[-1].n_result], _bind_back(layout, steps, met, gradients, n, buffers)

    first = layout.steps[0]
    for piece, (steps, last, back), where in in_pieces(rows, n_rows, bind):
        if again:
            steps.run(piece)
        ordered = last.view(len(piece), -1) if layout.last is None else permuted(last, layout.last)
        ordered.copy_(direction[where].reshape(ordered.shape))
        calls = list(back.calls)
        if gradients[0] is not None:
            calls += _right_gradient(first, gradients[0], back.towards, steps.first_left(piece))
        if of_rows is not None:
            calls += _rows_gradient(first, of_rows[where], back, met[0], buffers[2])
        for call in calls:
            call()
    return [of_rows, *gradients]


@dataclass(frozen=True, slots=True)
class _Back:
    """The way back through all steps but the first.

    Attributes:
        calls: that it takes.
        towards: the gradient of the first step's result, as ``(.., new, kept)``.
        free: a buffer for the gradient of what the first step was given.
    """

    calls: list[Call]
    towards: Tensor
    free: Tensor


def _bind_back(
    layout: Layout, steps: Steps, met: Sequence[Tensor], gradients: Sequence[Tensor | None], n: int, buffers: Tensor
) -> _Back:
    """The way back for ``n`` rows, from the gradient of the last result in the first of three buffers."""
    allocate, calls = in_turns(buffers[:2]), list[Call]()
    running = buffers[0, : n * layout.steps[-1].n_result]
    own = zip(layout.steps[1:], steps.lefts, met[1:], gradients[1:], strict=True)
    for step, left, right, gradient in reversed(list(own)):
        towards = _towards(step, running)
        if gradient is not None:
            calls += _right_gradient(step, gradient, towards, left)
        running = allocate(n * step.n_given)
        calls += _left_gradient(step, view_left(step, running), towards, right, buffers[2])
        if step.copied is not None:
            source = permuted(running, step.copied.inverse)
            running = allocate(n * step.n_given)
            calls.append(partial(running.view(source.shape).copy_, source))
    first = layout.steps[0]
    return _Back(calls, _towards(first, running), allocate(n * first.n_given))


def _towards(step: Multiplication, direction: Tensor) -> Tensor:
    """The gradient of a step's result, as ``(.., new, kept)``."""
    shaped = direction.view(step.result)
    return shaped if step.new_first else shaped.mT


def _right_gradient(step: Multiplication, gradient: Tensor, towards: Tensor, left: Tensor) -> list[Call]:
    """Add what one piece gives to the gradient of ``right``."""
    first, second = (towards, left) if step.new_first else (left.mT, towards.mT)
    if step.by_block:
        own = zip(gradient.unbind(0), first.unbind(0), second.unbind(0), strict=True)
        return [partial(_add_product, *each) for each in own]
    return [partial(_add_product, gradient, first, second)]


def _add_product(target: Tensor, first: Tensor, second: Tensor) -> None:
    """Add a product, or a batch of them one by one or all together."""
    if first.dim() == 2:
        target.addmm_(first, second)
    elif target.dim() == 3:
        target.baddbmm_(first, second)
    else:
        target.add_(torch.bmm(first, second).sum(0))


def _left_gradient(step: Multiplication, target: Tensor, towards: Tensor, right: Tensor, spare: Tensor) -> list[Call]:
    """Write the gradient of ``left`` to ``target``, which lies in memory as ``left`` does."""
    transposed = right if step.new_first else right.mT
    if step.by_block:
        own = zip(target.unbind(0), towards.mT.unbind(0), transposed.unbind(0), strict=True)
        return [partial(_write_product, *each, spare) for each in own]
    return [partial(_write_product, target, towards.mT, transposed, spare)]


def _write_product(target: Tensor, left: Tensor, right: Tensor, spare: Tensor) -> None:
    """``left @ right``, in the order in which ``target`` lies in memory."""
    if target.is_contiguous():
        product(left, right, False, target)
    elif target.mT.is_contiguous():
        product(left, right.mT, True, target.mT)
    else:
        target.copy_(product(left, right, False, spare[: target.numel()].view(target.shape)))


def _rows_gradient(step: Multiplication, target: Tensor, back: _Back, right: Tensor, spare: Tensor) -> list[Call]:
    """Write the gradient of a piece of rows."""
    if step.copied is None:
        return _left_gradient(step, view_left(step, target), back.towards, right, spare)
    source = permuted(back.free, step.copied.inverse)
    calls = _left_gradient(step, view_left(step, back.free), back.towards, right, spare)
    return [*calls, partial(target.view(source.shape).copy_, source)]
