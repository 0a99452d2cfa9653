"""One direction of a recurrent layer in a loop over its steps, where no gradient is asked for.

Nothing is kept but the outputs, so every step writes over the same few tensors. With several sequences, features come
first and sequences last: matrices are multiplied as they lie in memory, which is the fastest way to multiply a few
columns by them, and every gate is one piece of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from btcompress.nn.celltype import CellType, State, StepScratch
from btcompress.nn.steps import Chain

#: Matrices from so many entries on meet a single column in two halves, which are multiplied at the same time: as they
#: lie, which takes a few calls more, and laid out for it.
_HALVED_FROM, _LAID_OUT_IN_HALVES_FROM = 2**18, 2**15


#: Columns that a product of matrices takes at once.
BLOCK = 16


def one_step(
    z: Tensor, state: State, recurrent: Chain, bias: Tensor | None, projection: Chain, scratch: StepScratch
) -> State:
    """The next state of a single sequence; no matrix is laid out for it.

    Args:
        z: ``W x`` with the bias of the inputs, shape ``(gates * H)``.
        state: tensors of shape ``(H)``, or of the projected size for ``h``.
        recurrent: ``U``.
        bias: of the hidden states.
        projection: ``P``; empty without.
        scratch: is written over.
    """
    added_product(scratch.added(z, bias), recurrent, state[0], out=scratch.gates)
    new = scratch.next(z, state)
    if not projection:
        return new
    h, *rest = new
    for matrix in reversed(projection):
        h = product(matrix, h)
    return h, *rest


def one_step_of_several(
    z: Tensor, state: State, recurrent: Chain, bias: Tensor | None, projection: Chain, scratch: StepScratch
) -> State:
    """The next state of a few sequences, which stand in rows: as :func:`one_step`, with shapes ``(B, ...)``."""
    h, added = state[0], scratch.added(z, bias)
    for matrix in recurrent[:0:-1]:
        h = torch.mm(h, matrix.T)
    if added is None:
        torch.mm(h, recurrent[0].T, out=scratch.gates)
    else:
        torch.addmm(added, h, recurrent[0].T, out=scratch.gates)
    h, *rest = scratch.next(z, state)
    for matrix in reversed(projection):
        h = torch.mm(h, matrix.T)
    return h, *rest


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
    cell: CellType,
    z: Tensor,
    state: State,
    recurrent: Transposed,
    bias: Tensor | None = None,
    projection: Chain = (),
    *,
    backward: bool = False,
) -> tuple[Tensor, State]:
    """All steps of a single sequence.

    Args:
        cell: what is computed at each.
        z: ``W x`` with the bias of the inputs, shape ``(T, gates * H)``, contiguous; may be written over.
        state: initial one, shapes ``(H)``, or that of the projected size for ``h``.
        recurrent: ``U``.
        bias: of the hidden states.
        projection: ``P``, where there is one.
        backward: whether the last step comes first.

    Returns:
        Hidden states of all steps, shape ``(T, H)``, and the final states.
    """
    steps, h, of_cell = len(z), state[0], cell.loop(z, state, bias)
    advance = of_cell.advance
    last, *before = recurrent
    n, width, each = last.shape
    outputs = z.new_empty(steps, len(h))
    rows = of_cell.gates.view(n, 1, each)
    inner = [(matrix, z.new_empty(len(matrix), 1, matrix.shape[2])) for matrix in reversed(before)]
    between = inner[-1][1].view(1, width).expand(n, 1, width) if inner else None
    projected = [(matrix, z.new_empty(len(matrix))) for matrix in reversed(projection)]
    whole = z.new_empty(projection[-1].shape[1]) if projection else None
    order = range(steps)[::-1] if backward else range(steps)
    added, results = of_cell.added.view(steps, n, 1, each).unbind(), outputs.unbind()
    for step in order:
        column = h
        for matrix, product in inner:
            column = torch.bmm(column.expand(len(matrix), 1, matrix.shape[1]), matrix, out=product).view(-1)
        torch.baddbmm(added[step], h.expand(n, 1, width) if between is None else between, last, out=rows)
        if whole is None:
            h = advance(step, h, results[step])
        else:
            h = advance(step, h, whole)
            for matrix, product in projected:
                h = torch.mv(matrix, h, out=product)
            h = results[step].copy_(h)
    return outputs, (h.clone(), *of_cell.rest)


def loop(
    cell: CellType,
    z: Tensor,
    state: State,
    recurrent: Chain,
    bias: Tensor | None = None,
    projection: Chain = (),
    *,
    backward: bool = False,
) -> tuple[Tensor, State]:
    """All steps of several sequences, features first.

    Args:
        cell: what is computed at each.
        z: ``W x`` with the bias of the inputs, shape ``(T, gates * H, B)``; may be written over.
        state: initial one, shapes ``(H, B)``, or with the projected size for ``h``.
        recurrent: ``U``.
        bias: of the hidden states.
        projection: ``P``, where there is one.
        backward: whether the last step comes first.

    Returns:
        Hidden states of all steps, shape ``(T, H, B)``, and the final states.
    """
    h, of_cell = state[0], cell.loop(z, state, bias)
    advance, gates, added = of_cell.advance, of_cell.gates, of_cell.added.unbind()
    batch = h.shape[1]
    outputs = h.new_empty(len(z), *h.shape)
    last, *before = recurrent
    inner = [(matrix, h.new_empty(len(matrix), batch)) for matrix in reversed(before)]
    order = range(len(z))[::-1] if backward else range(len(z))
    results = outputs.unbind()
    if projection:
        *products, outermost = reversed(projection)
        projected = [(matrix, h.new_empty(len(matrix), batch)) for matrix in products]
        whole = h.new_empty(projection[-1].shape[1], batch)
    for step in order:
        columns = h
        for matrix, product in inner:
            columns = torch.mm(matrix, columns, out=product)
        torch.addmm(added[step], last, columns, out=gates)
        if projection:
            h = advance(step, h, whole)
            for matrix, product in projected:
                h = torch.mm(matrix, h, out=product)
            h = torch.mm(outermost, h, out=results[step])
        else:
            h = advance(step, h, results[step])
    return outputs, (h.clone(), *of_cell.rest)
