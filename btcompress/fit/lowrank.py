"""Low-rank matrices and sums of Kronecker products: forms of order 2 without a core, fitted exactly by an SVD.

Van Loan, Pitsianis (1993), "Approximation with Kronecker products": for modes ``I = (I_1, I_2)`` and
``J = (J_1, J_2)`` the best such form is the truncated SVD of the matrix rearranged to ``I_1 J_1 x I_2 J_2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from btcompress.fit.arranged import pad_matrix
from btcompress.fit.hosvd import compress
from btcompress.fit.measures import chunks_across, errors_by_rank, low_rank_errors, small_gram
from btcompress.shapes import BlockTermShape

#: Entries of a matrix up to which it is copied whole in float64 and decomposed without Gram matrices.
SMALL_ENTRIES = 2**22


def fit_without_core(
    matrix: Tensor, shape: BlockTermShape, scale: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The factors of the best form of order 2 with an identity core.

    Args:
        matrix: shape ``(out_size, in_size)``, any real dtype, not zero; read only.
        shape: modes and rank.
        scale: the matrix's largest magnitude.
        device: where to compute.

    Returns:
        Two factors, shapes ``(1, I_k, J_k, R)``, float64.
    """
    rank = shape.ranks[0]
    if matrix.numel() <= SMALL_ENTRIES:
        left, values, right = torch.linalg.svd(_rearranged(matrix, shape, device) / scale, full_matrices=False)
        left, right = left[:, :rank] * values[:rank], right[:rank].T
    elif shape.is_low_rank:
        left, right = _large_low_rank(matrix, rank, scale, device)
    else:
        small = compress(matrix, shape, scale, device)
        left, values, right = torch.linalg.svd(small.core, full_matrices=False)
        left, right = small.bases[0] @ (left[:, :rank] * values[:rank]), small.bases[1] @ right[:rank].T
    first, second = shape.factor_shapes
    return (left * scale).reshape(first), right.contiguous().reshape(second)


def kronecker_errors(matrix: Tensor, shape: BlockTermShape, device: torch.device) -> Tensor:
    """Weight error of the best form with these modes and an identity core, for each rank ``1, 2, ..``; float64.

    Args:
        matrix: shape ``(out_size, in_size)``, any real dtype; read only.
        shape: modes; the rank does not matter.
        device: where to compute.
    """
    if shape.is_low_rank:
        return low_rank_errors(matrix, device)
    return low_rank_errors(_rearranged(matrix, shape, device), device)


def joint_errors(matrices: Tensor, device: torch.device) -> Tensor:
    """Weight error of several matrices together, each given a truncated SVD of the same rank ``1, 2, ..``.

    Args:
        matrices: shape ``(n, J, I)``, not all zero.
        device: where to compute.
    """
    scale = float(matrices.abs().max())
    grams = torch.stack([small_gram(matrix, scale, device) for matrix in matrices])
    return errors_by_rank(torch.linalg.eigvalsh(grams).flip(1).sum(0))


def _rearranged(matrix: Tensor, shape: BlockTermShape, device: torch.device) -> Tensor:
    """The paired-mode tensor of order 2, shape ``(I_1 J_1, I_2 J_2)``, float64."""
    padded = pad_matrix(matrix.detach().to(device), shape).to(torch.float64)
    return padded.reshape(*shape.out_modes, *shape.in_modes).permute(2, 0, 3, 1).reshape(shape.mode_sizes)


def _large_low_rank(matrix: Tensor, rank: int, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Input and output factor of a truncated SVD, from the eigenvectors of the smaller side's Gram matrix."""
    vectors = torch.linalg.eigh(small_gram(matrix, scale, device)).eigenvectors[:, -rank:].flip(1)
    projected = torch.cat([chunk.to(device, torch.float64) / scale @ vectors for chunk in chunks_across(matrix)])
    # Rows are outputs: where they are the longer side, the eigenvectors are of the inputs.
    return (vectors, projected) if matrix.shape[0] >= matrix.shape[1] else (projected, vectors)
