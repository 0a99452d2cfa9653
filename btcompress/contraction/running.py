"""Rows through a chain of matrix products: as differentiable operations, or into buffers, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from btcompress.contraction.layout import Layout, Multiplication, Permutation

#: Gives a tensor of so many numbers to write to.
Allocate = Callable[[int], Tensor]

#: What is bound for a number of rows.
T = TypeVar("T")

#: One operation on tensors that are there already.
Call = Callable[[], object]


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
        left = view_left(step, running if step.copied is None else permuted(running, step.copied))
        if step.by_block:
            own = zip(left.unbind(0), right.unbind(0), strict=True)
            running = torch.stack([product(part, operand, step.new_first) for part, operand in own])
        else:
            running = product(left, right, step.new_first)
    ordered = running if layout.last is None else permuted(running, layout.last)
    return ordered.reshape(rows.shape[0], layout.steps[-1].n_result)


def forward(layout: Layout, rows: Tensor, met: Sequence[Tensor], bias: Tensor | None = None) -> Tensor:
    """:func:`follow` a piece of rows at a time, through two buffers; plus a bias, shape ``(prod_k J_k,)``."""
    n_rows = min(layout.rows_of_piece(rows.device), len(rows))
    buffers = rows.new_empty(2, n_rows * layout.widest)
    result = rows.new_empty(len(rows), layout.steps[-1].n_result)
    for piece, steps, where in in_pieces(rows, n_rows, lambda n: Steps(layout, met, n, in_turns(buffers))):
        steps.run(piece, result[where], bias)
    return result


def forward_kept(layout: Layout, rows: Tensor, met: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """:func:`follow` with all rows at once, and what was met on the way."""
    kept = rows.new_empty(len(rows) * layout.n_kept)
    steps = Steps(layout, met, len(rows), one_after_another(kept))
    result = rows.new_empty(len(rows), layout.steps[-1].n_result)
    steps.run(rows, result)
    return result, kept


def in_pieces(rows: Tensor, n_rows: int, bind: Callable[[int], T]) -> Iterator[tuple[Tensor, T, slice]]:
    """Pieces of rows, what is bound for so many rows as each has, and where they are; those of equal size share it."""
    bound: dict[int, T] = {}
    for start in range(0, len(rows), n_rows):
        where = slice(start, start + n_rows)
        piece = rows[where]
        if len(piece) not in bound:
            bound = {len(piece): bind(len(piece))}
        yield piece, bound[len(piece)], where


class Steps:
    """The steps of a chain with the buffers of a piece of rows, so that each piece takes few calls.

    Attributes:
        n_rows: that the buffers are for.
        lefts: ``left`` of every step but the first.
        ordered: the result, a view whose numbers stand in the order of ``(n, J_1..J_d)``, the first index being that of
            the rows.
    """

    def __init__(self, layout: Layout, met: Sequence[Tensor], n: int, allocate: Allocate) -> None:
        self.n_rows = n
        self._first, self._right = layout.steps[0], met[0]
        self._buffers = _buffers(self._first, n, allocate)
        self._calls: list[Call] = []
        self.lefts: list[Tensor] = []
        running = self._buffers[-1]
        for step, right in zip(layout.steps[1:], met[1:], strict=True):
            own = _buffers(step, n, allocate)
            left, calls = _bind(step, running, right, own)
            self.lefts.append(left)
            self._calls += calls
            running = own[-1]
        self.ordered = running.view(n, -1) if layout.last is None else permuted(running, layout.last)
        self._bias_shape = (1, *self.ordered.shape[1:])

    def run(self, piece: Tensor, result: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Take all steps; write ``result``, shape ``(n, prod_k J_k)``, where it is given, plus a bias of its dtype."""
        for call in (*_bind(self._first, piece, self._right, self._buffers)[1], *self._calls):
            call()
        if result is None:
            return
        target = result.view(self.ordered.shape)
        if bias is None:
            target.copy_(self.ordered)
        else:
            torch.add(self.ordered, bias.view(self._bias_shape), out=target)

    def first_left(self, piece: Tensor) -> Tensor:
        """``left`` of the first step."""
        return _bind(self._first, piece, self._right, self._buffers)[0]


def in_turns(buffers: Tensor) -> Allocate:
    """Parts of two buffers, of which a step reads one and writes the other."""
    turn = 0

    def allocate(size: int) -> Tensor:
        nonlocal turn
        turn = 1 - turn
        return buffers[turn, :size]

    return allocate


def one_after_another(buffer: Tensor) -> Allocate:
    """Parts of a buffer, none used twice."""
    at = 0

    def allocate(size: int) -> Tensor:
        nonlocal at
        at += size
        return buffer[at - size : at]

    return allocate


def _buffers(step: Multiplication, n: int, allocate: Allocate) -> list[Tensor]:
    """Where a step's copy goes, if it takes one, and its result."""
    copies = [] if step.copied is None else [allocate(n * step.n_given)]
    return [*copies, allocate(n * step.n_result)]


def _bind(step: Multiplication, given: Tensor, right: Tensor, buffers: Sequence[Tensor]) -> tuple[Tensor, list[Call]]:
    """``left`` of a step, and the calls that it takes."""
    calls: list[Call] = []
    if step.copied is not None:
        source = permuted(given, step.copied)
        calls.append(partial(buffers[0].view(source.shape).copy_, source))
        given = buffers[0]
    left, result = view_left(step, given), buffers[-1].view(step.result)
    if step.by_block:
        own = zip(left.unbind(0), right.unbind(0), result.unbind(0), strict=True)
        calls += [partial(product, part, operand, step.new_first, target) for part, operand, target in own]
    else:
        calls.append(partial(product, left, right, step.new_first, result))
    return left, calls


def view_left(step: Multiplication, given: Tensor) -> Tensor:
    """A tensor that lies as the step is given it, as ``([block], [batch], kept, summed)``."""
    return given.reshape(step.sizes).permute(step.order)


def permuted(given: Tensor, permutation: Permutation) -> Tensor:
    """The tensor with its indices in the order wanted, not yet copied."""
    return given.reshape(permutation.sizes).permute(permutation.order)


def product(left: Tensor, right: Tensor, new_first: bool, out: Tensor | None = None) -> Tensor:
    """``left @ right``, or ``right @ left.T`` with ``new_first``; a matrix that all of a batch share is no copy."""
    first, second = (right, left.transpose(-1, -2)) if new_first else (left, right)
    if left.dim() == 2:
        return torch.mm(first, second) if out is None else torch.mm(first, second, out=out)
    first, second = (each.expand(left.shape[0], -1, -1) if each.dim() == 2 else each for each in (first, second))
    return torch.bmm(first, second) if out is None else torch.bmm(first, second, out=out)
