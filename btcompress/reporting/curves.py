"""What the dense matrices say: singular values, and the weight error of what they might be instead at any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from btcompress.checkpoint import Checkpoint
from btcompress.fit import obstacle_of_dtype
from btcompress.results import MatrixReport
from btcompress.yardsticks import errors_of_ranks, rounding_curves, singular_values

#: Entries of a matrix up to which it is rounded in all ways, which takes about a second for the largest.
_ROUNDED_ENTRIES = 2**20


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """Weight errors of one kind of form, by rising size.

    Attributes:
        kind: ``"low_rank"``, the truncated SVD with its factors in the dtype of the matrix; or integers,
            ``"rows"`` where each row has a scale, ``"groups"`` where 32 columns share one.
        points: bytes, and the weight error at that size.
    """

    kind: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class MatrixCurves:
    """What there is to draw of one dense matrix.

    Attributes:
        name: its key.
        singular_values: falling, the first one being 1; none of a matrix of zeros.
        curves: the yardsticks.
    """

    name: str
    singular_values: tuple[float, ...]
    curves: tuple[SizeCurve, ...]


def matrix_curves(rows: Sequence[MatrixReport], against: Checkpoint) -> tuple[MatrixCurves, ...]:
    """The curves of some matrices of a report that was made against the dense checkpoint.

    Args:
        rows: of these matrices; one that the checkpoint does not hold in this shape is left out.
        against: the dense checkpoint.
    """
    return tuple(
        MatrixCurves(row.name, *_of(row, matrix))
        for row in rows
        if (matrix := against.tensors.get(row.name)) is not None
        and tuple(matrix.shape) == row.shape
        and not obstacle_of_dtype(matrix.dtype)
    )


def _of(row: MatrixReport, matrix: Tensor) -> tuple[tuple[float, ...], tuple[SizeCurve, ...]]:
    values = singular_values(matrix)
    first = float(values[0])
    if not first > 0:
        return (), ()
    each = sum(row.shape) * matrix.dtype.itemsize
    errors = errors_of_ranks(values).tolist()
    low_rank = SizeCurve("low_rank", tuple((rank * each, error) for rank, error in enumerate(errors, 1)))
    return tuple((values / first).tolist()), (low_rank, *_roundings(matrix))


def _roundings(matrix: Tensor) -> Iterator[SizeCurve]:
    if matrix.numel() <= _ROUNDED_ENTRIES:
        for kind, roundings in rounding_curves(matrix).items():
            yield SizeCurve(kind, tuple((each.n_bytes, each.error) for each in roundings))
