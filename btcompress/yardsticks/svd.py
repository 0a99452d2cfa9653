"""The yardstick that every fit is held against: truncated SVD at equal parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from btcompress.fit.measures import errors_by_rank, largest, low_rank_errors, small_gram


@dataclass(frozen=True, slots=True)
class SVDYardstick:
    """The best low-rank matrix with at most as many parameters.

    Attributes:
        rank: ``r``, the largest with ``r (J + I)`` within the budget; 0 if none is that small.
        error: its weight error, 1 at rank 0.
    """

    rank: int
    error: float


def truncated_svd(matrix: Tensor, max_params: int, device: torch.device | str = "cpu") -> SVDYardstick:
    """Weight error of the truncated SVD with at most ``max_params`` parameters, ``r (J + I)``.

    The spectrum comes from the Gram matrix of the smaller side, summed in float64 over chunks, so the
    matrix is never copied whole.

    Args:
        matrix: shape ``(J, I)``.
        max_params: parameters to spend.
        device: where to compute.
    """
    rank = min(max_params // sum(matrix.shape), *matrix.shape)
    if largest(matrix) == 0:
        return SVDYardstick(rank, 0.0)
    if rank == 0:
        return SVDYardstick(0, 1.0)
    return SVDYardstick(rank, float(low_rank_errors(matrix, device)[rank - 1]))


def singular_values(matrix: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """All singular values in falling order, float64, as the Gram matrix of the smaller side has them.

    Those below ``1e-8`` of the first are lost in rounding.

    Args:
        matrix: shape ``(J, I)``.
        device: where to compute.
    """
    scale = largest(matrix)
    if scale == 0:
        return torch.zeros(min(matrix.shape), dtype=torch.float64)
    squares = torch.linalg.eigvalsh(small_gram(matrix, scale, device)).flip(0)
    return squares.clamp_min(0).sqrt().cpu() * scale


def errors_of_ranks(values: Tensor) -> Tensor:
    """Weight error of the truncated SVD of each rank ``1, 2, ..``, by all singular values in falling order."""
    return errors_by_rank((values / values[0]).square())
