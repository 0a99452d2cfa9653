"""How far a form is from its matrix, and what low rank could reach, measured on the matrix itself."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm

#: Entries taken to float64 at a time.
CHUNK_ENTRIES = 2**22
#: Matrices whose largest magnitude is within these have squares, and squares of roundings, that are normal numbers.
_SQUARABLE = (2.0**-400, 2.0**400)


def weight_error(matrix: Tensor, parts: tuple[BlockTerm, ...], dtype: torch.dtype | None = None) -> float:
    """``||W - W'||_F / ||W||_F``, ``W'`` formed a slab of rows at a time from the tensors given.

    Args:
        matrix: ``W``, shape ``(J, I)``.
        parts: the block-term forms whose rows stack to ``W'``, in the dtype they are stored in.
        dtype: what each entry of ``W'`` is rounded to once it is summed in float64, as who forms the matrix again has
            it; not rounded when left out.

    Returns:
        The error, 0 when both are zero, and infinity when only ``W`` is or ``W'`` does not fit the range of ``dtype``.
    """
    unit = _unit(matrix)
    missed, total, offset = 0.0, 0.0, 0
    for part in parts:
        form = part.to(torch.float64)
        own = matrix.detach()[offset : offset + part.shape.out_size]
        for index, slab in form.dense_slabs():
            formed = slab if dtype is None else slab.copy_(slab.to(dtype))
            rows = own[index if isinstance(index, slice) else index.to(own.device)].to(slab.device, torch.float64)
            if unit != 1:
                formed, rows = formed.div_(unit), rows / unit
            missed += squares(formed.sub_(rows))
            total += squares(rows)
        offset += part.shape.out_size
    if total == 0:
        return math.inf if missed else 0.0
    return math.sqrt(missed / total) if math.isfinite(missed) else math.inf


def difference_error(matrix: Tensor, other: Tensor) -> float:
    """``||W - W'||_F / ||W||_F`` of two dense matrices; 0 when both are zero, infinity when only ``W`` is.

    Args:
        matrix: ``W``.
        other: ``W'``, of the same shape.
    """
    scale, missed, total = largest(matrix) or 1.0, 0.0, 0.0
    for own, given in zip(chunks_across(matrix), chunks_across(other), strict=True):
        rows = own.to(torch.float64) / scale
        missed += float((given.to(torch.float64) / scale - rows).square_().sum())
        total += float(rows.square_().sum())
    if total == 0:
        return math.inf if missed else 0.0
    return math.sqrt(missed / total) if math.isfinite(missed) else math.inf


def low_rank_errors(matrix: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Weight error of the truncated SVD of each rank ``1 .. min(J, I)``, float64; of zeros for a zero matrix.

    Args:
        matrix: shape ``(J, I)``.
        device: where to compute.
    """
    scale = largest(matrix)
    if scale == 0:
        return torch.zeros(min(matrix.shape), dtype=torch.float64)
    return errors_by_rank(torch.linalg.eigvalsh(small_gram(matrix, scale, device)).flip(0))


def errors_by_rank(squares: Tensor) -> Tensor:
    """Error left by the ``r`` leading of these squared singular values, in falling order, for ``r = 1, 2, ..``."""
    squares = squares.clamp_min(0).cpu()
    left = squares.flip(0).cumsum(0).flip(0)
    return torch.cat([left[1:], left.new_zeros(1)]).div(left[0]).sqrt()


def small_gram(matrix: Tensor, scale: float, device: torch.device | str) -> Tensor:
    """Gram matrix of the smaller side of ``matrix / scale``, float64, summed over chunks."""
    side = min(matrix.shape)
    gram = torch.zeros(side, side, dtype=torch.float64, device=device)
    for chunk in chunks_across(matrix):
        part = chunk.to(device, torch.float64) / scale
        gram.addmm_(part.T, part)
    return gram


def chunks_across(matrix: Tensor) -> Iterator[Tensor]:
    """Chunks of rows, shape ``(n, smaller side)``, that together are the matrix or its transpose."""
    tall = matrix.detach() if matrix.shape[0] >= matrix.shape[1] else matrix.detach().T
    yield from torch.split(tall, max(1, CHUNK_ENTRIES // tall.shape[1]))


def squares(tensor: Tensor) -> float:
    """The sum of the squares of all entries, in float64."""
    flat = tensor.detach().to(torch.float64).flatten()
    return float(torch.dot(flat, flat))  # several times as fast as a sum of squares


def _unit(matrix: Tensor) -> float:
    """What to divide a matrix by before anything is squared: 1 unless its values are near the ends of float64.

    Of values near the largest there are, not even the difference has a number.
    """
    scale = largest(matrix)
    return 1.0 if scale == 0 or _SQUARABLE[0] <= scale <= _SQUARABLE[1] else scale


def largest(matrix: Tensor) -> float:
    """The largest magnitude in a matrix."""
    low, high = torch.aminmax(matrix.detach())
    return max(abs(float(low)), abs(float(high)))


def frobenius_norm(matrix: Tensor) -> float:
    """``||W||_F``, summed in float64 over chunks, without overflow."""
    scale = largest(matrix) or 1.0
    squares = ((chunk.to(torch.float64) / scale).square().sum() for chunk in chunks_across(matrix))
    return scale * math.sqrt(sum(map(float, squares)))
