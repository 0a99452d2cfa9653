"""A matrix rounded alone, its form left as it is: what any choice of form and bits is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.fit.measures import CHUNK_ENTRIES, difference_error, largest
from btcompress.fit.rounding import fed_back, nearest, obstacle_to_integers
from btcompress.packing import LEAST_BITS, LEAST_GROUP, MOST_BITS, Integers

#: The two that everybody knows: 8 bits by rows, here without their group, and 4 bits in groups of 32.
_INT8, INT4 = 8, Integers(4, 32)
#: Groups among which the best rounding within a number of bytes is looked for, beside whole rows.
_GROUPS = (32, 64, 128)
#: Entries of a matrix up to which all its roundings take a few seconds.
QUICK_ENTRIES = 2**22


@dataclass(frozen=True, slots=True)
class Rounding:
    """A matrix as integers.

    Attributes:
        integers: bits and group.
        n_bytes: that they take.
        error: ``||W - W'||_F / ||W||_F``.
        fed_back: whether errors were fed back by inputs; else each number is rounded to the nearest.
    """

    integers: Integers
    n_bytes: int
    error: float
    fed_back: bool = False


def int8_by_rows(columns: int) -> Integers:
    """8 bits, with a scale and a zero point for each row."""
    return Integers(_INT8, max(columns, LEAST_GROUP))


def integers_within(shape: Sequence[int], max_bytes: int) -> tuple[Integers, ...]:
    """The integers for a matrix at no more bytes, of which none has both more bits and smaller groups than another.

    Args:
        shape: ``(J, I)``.
        max_bytes: to spend.

    Returns:
        Those with the smallest groups first; none where even the fewest bits take more.
    """
    columns = max(shape[1], LEAST_GROUP)
    found: list[Integers] = []
    for group in (*(group for group in _GROUPS if group < columns), columns):
        fitting = (Integers(bits, group) for bits in range(MOST_BITS, LEAST_BITS - 1, -1))
        best = next((each for each in fitting if each.n_bytes(shape) <= max_bytes), None)
        if best is not None and all(best.bits > other.bits for other in found):
            found.append(best)
    return tuple(found)


def same_integers_within(shapes: Sequence[Sequence[int]], max_bytes: int) -> tuple[Integers, ...]:
    """The most bits, and of these the smallest groups, that several matrices alike can have at no more bytes in all.

    Args:
        shapes: ``(J, I)`` of each.
        max_bytes: to spend on all of them.

    Returns:
        For each its integers, no group larger than its rows; none where even the fewest bits take more.
    """
    widest = max((shape[1] for shape in shapes), default=0)
    for bits in range(MOST_BITS, LEAST_BITS - 1, -1):
        for group in (*_GROUPS, max(widest, LEAST_GROUP)):
            every = tuple(Integers(bits, min(group, max(shape[1], LEAST_GROUP))) for shape in shapes)
            if sum(each.n_bytes(shape) for each, shape in zip(every, shapes, strict=True)) <= max_bytes:
                return every
    return ()


def roundings_of(matrix: Tensor, max_bytes: int) -> tuple[Rounding, ...]:
    """The matrix in 8 bits by rows, in 4 bits in groups of 32, and as the best of :func:`integers_within` some bytes.

    Each number is rounded to the nearest, with the best clipping.

    Args:
        matrix: ``W``, shape ``(J, I)``, any real floating dtype; read only.
        max_bytes: what it takes in the form that these are held against.

    Returns:
        None for a matrix of zeros, or of numbers out of the range of scales.
    """
    if not matrix.numel() or not largest(matrix) or obstacle_to_integers(matrix):
        return ()

    within = (_rounding(matrix, integers) for integers in integers_within(matrix.shape, max_bytes))
    best = min(within, key=lambda each: each.error, default=None)
    every = [
        _rounding(matrix, int8_by_rows(matrix.shape[1])),
        _rounding(matrix, INT4),
        *([] if best is None else [best]),
    ]
    return tuple({each.integers: each for each in every}.values())


def _rounding(matrix: Tensor, integers: Integers) -> Rounding:
    error = difference_error(matrix, rounded_alone(matrix, integers))
    return Rounding(integers, integers.n_bytes(matrix.shape), error)


def rounding_curves(matrix: Tensor) -> dict[str, tuple[Rounding, ...]]:
    """The matrix in each number of bits, each number rounded to the nearest, with the best clipping.

    Args:
        matrix: as for :func:`roundings_of`.

    Returns:
        ``"rows"``, where each row has a scale, and ``"groups"``, where 32 columns share one, by rising bits; none for a
        matrix that :func:`roundings_of` has none for.
    """
    if not matrix.numel() or not largest(matrix) or obstacle_to_integers(matrix):
        return {}
    groups = {"rows": int8_by_rows(matrix.shape[1]).group, "groups": INT4.group}
    return {
        kind: tuple(_rounding(matrix, Integers(bits, group)) for bits in range(LEAST_BITS, MOST_BITS + 1))
        for kind, group in groups.items()
    }


def rounded_alone(matrix: Tensor, integers: Integers) -> Tensor:
    """The matrix that the nearest integers make, in its own dtype; they are found for a chunk of rows at a time."""
    chunks = matrix.detach().split(max(1, CHUNK_ENTRIES // matrix.shape[1]))
    return torch.cat([nearest(chunk, integers).values() for chunk in chunks])


def fed_back_rounding(matrix: Tensor, rounding: Rounding, inputs: Tensor) -> tuple[Rounding, Tensor]:
    """The same integers chosen with errors fed back by inputs, and the matrix that they make.

    Args:
        matrix: ``W``, shape ``(J, I)``.
        rounding: one of :func:`roundings_of`.
        inputs: as :class:`btcompress.fit.Samples` has them.
    """
    values = fed_back(matrix, rounding.integers, inputs).values()
    return replace(rounding, error=difference_error(matrix, values), fed_back=True), values


def parts_in_8_bits(parts: Sequence[BlockTerm]) -> tuple[tuple[BlockTerm, ...], Integers, int] | None:
    """Block terms with cores and factors in 8 bits, these integers, and the bytes that they save.

    Returns:
        None where a tensor does not suit integers.
    """
    integers, n_saved, found = Integers(_INT8, INT4.group), 0, []
    for part in parts:
        if any(obstacle_to_integers(tensor) for tensor in part.tensors):
            return None
        packed = [nearest(tensor, integers) for tensor in part.tensors]
        n_saved += sum(tensor.nbytes - each.n_bytes for tensor, each in zip(part.tensors, packed, strict=True))
        found.append(BlockTerm.of(part.shape, [each.values() for each in packed], part.orders))
    return tuple(found), integers, n_saved
