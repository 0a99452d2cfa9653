"""One direction of an LSTM layer in a loop over its steps, where no gradient is asked for.

Nothing is kept but the outputs, so every step writes over the same few tensors. With several sequences, features come
first and sequences last: matrices are multiplied as they lie in memory, which is the fastest way to multiply a few
columns by them, and every gate is one piece of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btcompress.nn.celltype import State
from btcompress.nn.steps import Chain

#: Matrices from so many entries on meet a single column in two halves, which are multiplied at the same time: as they
#: lie, which takes a few calls more, and laid out for it.
_HALVED_FROM, _LAID_OUT_IN_HALVES_FROM = 2**18, 2**15


#: Columns that a product of matrices takes at once.
BLOCK = 16


class StepScratch:
    """Memory that the steps of one thread write over.

    Args:
        z: ``W x + b``, shape ``(4H)``, or with several sequences ``(B, 4H)``.
    """

    def __init__(self, z: Tensor) -> None:
        hidden = z.shape[-1] // 4
        self.gates = torch.empty_like(z)
        self.tanh = z.new_empty(*z.shape[:-1], hidden)
        self.sigmoids = self.gates[..., : 2 * hidden]
        self.i, self.f, self.g, self.o = self.gates.chunk(4, dim=-1)

    def cell(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden and cell states, once the gates hold what their functions are of."""
        self.sigmoids.sigmoid_()
        self.g.tanh_()
        self.o.sigmoid_()
        c = torch.mul(self.f, c).addcmul_(self.i, self.g)
        return torch.mul(self.o, torch.tanh(c, out=self.tanh)), c


def one_step(z: Tensor, state: State, recurrent: Chain, projection: Chain, scratch: StepScratch) -> State:
    """The next states of a single sequence; no matrix is laid out for it.

    Args:
        z: ``W x + b``, shape ``(4H)``.
        state: ``h`` and ``c``, shapes ``(H)``, or that of the projected size for ``h``.
        recurrent: ``U``.
        projection: ``P``; empty without.
        scratch: is written over.

    Returns:
        ``h`` and ``c``.
    """
    h, c = state
    added_product(z, recurrent, h, out=scratch.gates)
    h, c = scratch.cell(c)
    for matrix in reversed(projection):
        h = product(matrix, h)
    return h, c


def one_step_of_several(z: Tensor, state: State, recurrent: Chain, projection: Chain, scratch: StepScratch) -> State:
    """The next states of a few sequences, which stand in rows: as :func:`one_step`, with shapes ``(B, ...)``."""
    h, c = state
    for matrix in recurrent[:0:-1]:
        h = torch.mm(h, matrix.T)
    torch.addmm(z, h, recurrent[0].T, out=scratch.gates)
    h, c = scratch.cell(c)
    for matrix in reversed(projection):
        h = torch.mm(h, matrix.T)
    return h, c


def added_product(added: Tensor | None, chain: Chain, column: Tensor, out: Tensor | None = None) -> Tensor:
    """``a + M v`` of vectors, with ``M`` the product of a chain."""
    for matrix in chain[:0:-1]:
        column = product(matrix, column)
    matrix = chain[0]
    if added is not None and matrix.numel() < _HALVED_FROM:
        return torch.addmv(added, matrix, column, out=out)
    result = product(matrix, column, out)
    return result if added is None else result.add_(added)


def product(matrix: Tensor, column: Tensor, out: Tensor | None = None) -> Tensor:
    """``M v`` of a vector."""
    rows, columns = matrix.shape
    if rows * columns < _HALVED_FROM or rows % 2 or not matrix.is_contiguous() or not column.is_contiguous():
        return torch.mv(matrix, column, out=out)
    # Strides as those of a row that was transposed: the product is then done by two threads.
    halves = column.as_strided((2, columns, 1), (0, 1, columns))
    given = None if out is None else out.view(2, rows // 2, 1)
    return torch.bmm(matrix.view(2, rows // 2, columns), halves, out=given).view(rows)


#: A chain laid out for a single sequence, of which every step reads all of it: each matrix transposed in memory, in
#: halves where it has many entries, shape ``(n, K, O / n)``.
Transposed = tuple[Tensor, ...]


def transposed(chain: Chain) -> Transposed:
    """A chain laid out so; right factors of low-rank matrices lie transposed in memory as they are."""
    found = []
    for matrix in chain:
        n = 2 if matrix.numel() >= _LAID_OUT_IN_HALVES_FROM and len(matrix) % 2 == 0 else 1
        found.append(matrix.T.contiguous().view(matrix.shape[1], n, -1).permute(1, 0, 2))
    return tuple(found)


def turned(rows: Tensor) -> Tensor:
    """Features first: ``(T, B, K)`` to ``(T, K, n)``, with as many columns as make whole blocks, the others zero.

    A product of a matrix with some columns takes less than half as long with 16 as with 2 or with 15.
    """
    steps, batch, width = rows.shape
    missing = -batch % BLOCK
    if not missing:
        return rows.transpose(1, 2).contiguous()
    columns = rows.new_zeros(steps, width, batch + missing)
    columns[..., :batch] = rows.transpose(1, 2)
    return columns


def turned_back(columns: Tensor, batch: int) -> Tensor:
    """``(T, K, n)`` to ``(T, B, K)``."""
    return columns[..., :batch].transpose(1, 2).contiguous()


def loop_of_one(
    z: Tensor, state: State, recurrent: Transposed, projection: Chain = (), *, backward: bool = False
) -> tuple[Tensor, State]:
    """All steps of a single sequence.

    Args:
        z: ``W x + b``, shape ``(T, 4H)``, contiguous.
        state: initial ``h`` and ``c``, shapes ``(H)``, or that of the projected size for ``h``.
        recurrent: ``U``.
        projection: ``P``, where there is one.
        backward: whether the last step comes first.

    Returns:
        Hidden states of all steps, shape ``(T, H)``, and the final states.
    """
    h, c = state
    steps, hidden = len(z), len(c)
    last, *before = recurrent
    n, width, each = last.shape
    outputs = z.new_empty(steps, len(h))
    gates, c, tanh = z.new_empty(4 * hidden), c.clone(), torch.empty_like(c)
    i, f, g, o = gates.chunk(4)
    sigmoids, rows = gates[: 2 * hidden], gates.view(n, 1, each)
    inner = [(matrix, z.new_empty(len(matrix), 1, matrix.shape[2])) for matrix in reversed(before)]
    between = inner[-1][1].view(1, width).expand(n, 1, width) if inner else None
    projected = [(matrix, z.new_empty(len(matrix))) for matrix in reversed(projection)]
    order = range(steps)[::-1] if backward else range(steps)
    added, results = z.view(steps, n, 1, each).unbind(), outputs.unbind()
    for step in order:
        for matrix, product in inner:
            h = torch.bmm(h.expand(len(matrix), 1, matrix.shape[1]), matrix, out=product).view(-1)
        torch.baddbmm(added[step], h.expand(n, 1, width) if between is None else between, last, out=rows)
        sigmoids.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        c.mul_(f).addcmul_(i, g)
        torch.tanh(c, out=tanh)
        if projected:
            h = o.mul_(tanh)
            for matrix, product in projected:
                h = torch.mv(matrix, h, out=product)
            h = results[step].copy_(h)
        else:
            h = torch.mul(o, tanh, out=results[step])
    return outputs, (h.clone(), c)


def loop(
    z: Sequence[Tensor], state: State, recurrent: Chain, projection: Chain = (), *, backward: bool = False
) -> tuple[Tensor, State]:
    """All steps of several sequences, features first.

    Args:
        z: ``W x + b`` of each step, shape ``(4H, B)``.
        state: initial ``h`` and ``c``, shapes ``(H, B)``, or with the projected size for ``h``.
        recurrent: ``U``.
        projection: ``P``, where there is one.
        backward: whether the last step comes first.

    Returns:
        Hidden states of all steps, shape ``(T, H, B)``, and the final states.
    """
    h, c = state
    hidden, batch = c.shape
    outputs = c.new_empty(len(z), *h.shape)
    gates, c, tanh = c.new_empty(4 * hidden, batch), c.clone(), torch.empty_like(c)
    i, f, g, o = gates.chunk(4)
    sigmoids = gates[: 2 * hidden]
    last, *before = recurrent
    inner = [(matrix, c.new_empty(len(matrix), batch)) for matrix in reversed(before)]
    order = range(len(z))[::-1] if backward else range(len(z))
    results = outputs.unbind()
    if projection:
        *products, outermost = reversed(projection)
        projected = [(matrix, c.new_empty(len(matrix), batch)) for matrix in products]
    for step in order:
        for matrix, product in inner:
            h = torch.mm(matrix, h, out=product)
        torch.addmm(z[step], last, h, out=gates)
        sigmoids.sigmoid_()
        g.tanh_()
        o.sigmoid_()
        c.mul_(f).addcmul_(i, g)
        torch.tanh(c, out=tanh)
        if projection:
            h = o.mul_(tanh)
            for matrix, product in projected:
                h = torch.mm(matrix, h, out=product)
            h = torch.mm(outermost, h, out=results[step])
        else:
            h = torch.mul(o, tanh, out=results[step])
    return outputs, (h.clone(), c)
