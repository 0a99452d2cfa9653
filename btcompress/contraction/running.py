"""Rows through a chain of matrix products: as differentiable operations, or into buffers, with the gradient by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from btcompress.contraction.layout import Layout, Multiplication, Permutation

#: Gives a tensor of so many numbers to write to.
Allocate = Callable[[int], Tensor]


def follow(layout: Layout, rows: Tensor, met: Sequence[Tensor]) -> Tensor:
    """Take all steps; every operation is differentiable, as often as wanted.

    Args:
        layout: of the chain.
        rows: shape ``(n, prod_k I_k)``.
        met: what each step multiplies by.

    Returns:
        Shape ``(n, prod_k J_k)``.
    """
    running = rows
    for step, right in zip(layout.steps, met, strict=True):
        left = _left(step, running if step.copied is None else _permuted(running, step.copied))
        if step.by_block:
            own = zip(left.unbind(0), right.unbind(0), strict=True)
            running = torch.stack([_product(part, operand, new_first=step.new_first) for part, operand in own])
        else:
            running = _product(left, right, new_first=step.new_first)
    ordered = running if layout.last is None else _permuted(running, layout.last)
    return ordered.reshape(len(rows), layout.steps[-1].n_result)


def forward(layout: Layout, rows: Tensor, met: Sequence[Tensor], result: Tensor) -> None:
    """:func:`follow` into ``result``, as many rows at once as were planned for.

    Args:
        layout: of the chain.
        rows: shape ``(n, prod_k I_k)``.
        met: what each step multiplies by, in the same dtype.
        result: shape ``(n, prod_k J_k)``, to be written to.
    """
    n_rows = min(layout.n_rows, len(rows))
    allocate = _in_turns(rows.new_empty(2, n_rows * layout.widest))
    for piece, target in zip(rows.split(n_rows), result.split(n_rows), strict=True):
        running = piece
        for step, right in zip(layout.steps, met, strict=True):
            running = _take(step, running, right, len(piece), allocate)[1]
        if layout.last is not None:
            running = _permuted(running, layout.last)
            target = target.view(running.shape)
        target.copy_(running.view(target.shape))


def backward(
    layout: Layout, rows: Tensor, met: Sequence[Tensor], direction: Tensor, needs_rows: bool, needs_met: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of :func:`follow`, piece by piece; what each piece meets on the way is computed again.

    Args:
        layout: of the chain.
        rows: shape ``(n, prod_k I_k)``.
        met: what each step multiplies by, in the same dtype.
        direction: the gradient of the result, shape ``(n, prod_k J_k)``.
        needs_rows: whether the gradient of the rows is wanted.
        needs_met: likewise of what each step multiplies by.

    Returns:
        The gradients of the rows and of what each step multiplies by; None for those not wanted.
    """
    n_rows = min(layout.n_rows, len(rows))
    n_kept = sum(step.n_result + (step.n_given if step.copied else 0) for step in layout.steps)
    kept = rows.new_empty(n_rows * n_kept)
    allocate = _in_turns(rows.new_empty(2, n_rows * layout.widest))
    row_gradients = torch.empty_like(rows, memory_format=torch.contiguous_format) if needs_rows else None
    gradients = [torch.zeros_like(right) if needs else None for right, needs in zip(met, needs_met, strict=True)]
    for start in range(0, len(rows), n_rows):
        piece, lefts = rows[start : start + n_rows], []
        running, following = piece, _one_after_another(kept)
        for step, right in zip(layout.steps, met, strict=True):
            left, running = _take(step, running, right, len(piece), following)
            lefts.append(left)
        running = direction[start : start + n_rows]
        if layout.last is not None:
            running = _permuted(running, layout.last.inverse).reshape(-1)
        for step, left, right, gradient in reversed(list(zip(layout.steps, lefts, met, gradients, strict=True))):
            towards = running.reshape(step.result)
            towards = towards if step.new_first else towards.mT
            if gradient is not None:
                _add_right_gradient(step, gradient, towards, left)
            if step is layout.steps[0] and row_gradients is None:
                break
            running = allocate(len(piece) * step.n_given)
            _set_left_gradient(step, running.view(step.sizes).permute(step.order), towards, right)
            if step.copied is not None:
                running = _permuted(running, step.copied.inverse).reshape(-1)
        if row_gradients is not None:
            row_gradients[start : start + n_rows] = running.view(piece.shape)
    return [row_gradients, *gradients]


def _in_turns(buffers: Tensor) -> Allocate:
    """Parts of two buffers, of which a step reads one and writes the other."""
    turn = 0

    def allocate(size: int) -> Tensor:
        nonlocal turn
        turn = 1 - turn
        return buffers[turn, :size]

    return allocate


def _one_after_another(buffer: Tensor) -> Allocate:
    """Parts of a buffer, none used twice."""
    at = 0

    def allocate(size: int) -> Tensor:
        nonlocal at
        at += size
        return buffer[at - size : at]

    return allocate


def _add_right_gradient(step: Multiplication, gradient: Tensor, towards: Tensor, left: Tensor) -> None:
    """Add what one piece gives to the gradient of ``right``; ``towards`` is that of the result, ``(.., new, kept)``."""
    first, second = (towards, left) if step.new_first else (left.mT, towards.mT)
    if step.by_block:
        for n in range(len(gradient)):
            _add_product(gradient[n], first[n], second[n])
    else:
        _add_product(gradient, first, second)


def _add_product(target: Tensor, first: Tensor, second: Tensor) -> None:
    """Add a product, or a batch of them one by one or all together."""
    if first.dim() == 2:
        target.addmm_(first, second)
    elif target.dim() == 3:
        target.baddbmm_(first, second)
    else:
        target.add_(torch.bmm(first, second).sum(0))


def _set_left_gradient(step: Multiplication, target: Tensor, towards: Tensor, right: Tensor) -> None:
    """Write the gradient of ``left`` to ``target``, which lies in memory as ``left`` does."""
    transposed = right if step.new_first else right.mT
    if step.by_block:
        for part, direction, own in zip(target.unbind(0), towards.unbind(0), transposed.unbind(0), strict=True):
            _write_product(part, direction.mT, own)
    else:
        _write_product(target, towards.mT, transposed)


def _write_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """``left @ right``, written in the order in which ``target`` lies in memory."""
    if target.is_contiguous():
        _product(left, right, new_first=False, out=target)
    elif target.mT.is_contiguous():
        _product(left, right.mT, new_first=True, out=target.mT)
    else:
        target.copy_(_product(left, right, new_first=False))


def _take(step: Multiplication, given: Tensor, right: Tensor, n: int, allocate: Allocate) -> tuple[Tensor, Tensor]:
    """``left`` of one step and its result."""
    if step.copied is not None:
        copy, permuted = allocate(n * step.n_given), _permuted(given, step.copied)
        copy.view(permuted.shape).copy_(permuted)
        given = copy
    left = _left(step, given)
    result = allocate(n * step.n_result).view(step.result)
    if step.by_block:
        for part, operand, target in zip(left.unbind(0), right.unbind(0), result.unbind(0), strict=True):
            _product(part, operand, new_first=step.new_first, out=target)
    else:
        _product(left, right, new_first=step.new_first, out=result)
    return left, result


def _left(step: Multiplication, given: Tensor) -> Tensor:
    return given.reshape(step.sizes).permute(step.order)


def _permuted(given: Tensor, permutation: Permutation) -> Tensor:
    return given.reshape(permutation.sizes).permute(permutation.order)


def _product(left: Tensor, right: Tensor, *, new_first: bool, out: Tensor | None = None) -> Tensor:
    """``left @ right``, or ``right @ left.mT`` with ``new_first``; a matrix that all of a batch share is no copy."""
    first, second = (right, left.mT) if new_first else (left, right)
    if left.dim() == 2:
        return torch.mm(first, second) if out is None else torch.mm(first, second, out=out)
    first, second = (each.expand(len(left), -1, -1) if each.dim() == 2 else each for each in (first, second))
    return torch.bmm(first, second) if out is None else torch.bmm(first, second, out=out)
