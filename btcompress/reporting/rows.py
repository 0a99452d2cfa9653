"""The row of each matrix that was chosen: its form, its precision, and its size as stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from btcompress.blockterm import params_of
from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix, RoundedMatrix
from btcompress.packing import precision_text
from btcompress.results import MatrixReport
from btcompress.yardsticks import SVDYardstick, truncated_svd


def matrix_of(compressed: CompressedCheckpoint, key: str) -> CompressedMatrix | RoundedMatrix:
    """What is recorded of a chosen matrix."""
    return compressed.matrices[key] if key in compressed.matrices else compressed.rounded[key]


def with_matrices(
    compressed: CompressedCheckpoint, changed: Mapping[str, CompressedMatrix | RoundedMatrix]
) -> CompressedCheckpoint:
    """The same result with something else recorded of chosen matrices."""
    matrices = {key: each for key, each in changed.items() if isinstance(each, CompressedMatrix)}
    rounded = {key: each for key, each in changed.items() if isinstance(each, RoundedMatrix)}
    return replace(compressed, matrices={**compressed.matrices, **matrices}, rounded={**compressed.rounded, **rounded})


def size_of(matrix: CompressedMatrix | RoundedMatrix) -> tuple[int, int]:
    """Rows and columns."""
    return matrix.shape if isinstance(matrix, RoundedMatrix) else (matrix.shape.out_size, matrix.shape.in_size)


def svd_yardstick(
    compressed: CompressedCheckpoint, key: str, matrix: Tensor, device: torch.device | str = "cpu"
) -> SVDYardstick:
    """The truncated SVD of as many parameters; where a matrix has fewer bits of as many bytes, in its own dtype."""
    if compressed.has_fewer_bits(key):
        return truncated_svd(matrix, compressed.bytes_of_matrix(key) // matrix.dtype.itemsize, device)
    return truncated_svd(matrix, params_of(compressed.parts(key)), device)


def row_of(
    compressed: CompressedCheckpoint, key: str, activation_error: float | None, weighted_activation_error: float | None
) -> MatrixReport:
    """What is recorded of a matrix, its size counted on the tensors as stored.

    Args:
        compressed: the result.
        key: of a matrix that was chosen.
        activation_error: of its last measure; None where nothing was measured, or something was done since.
        weighted_activation_error: likewise.
    """
    own = matrix_of(compressed, key)
    form = _block_terms(compressed, key, own) if isinstance(own, CompressedMatrix) else _dense(own)
    rows, columns = size_of(own)
    return MatrixReport(
        name=key,
        shape=(rows, columns),
        params_before=rows * columns,
        weight_error=own.weight_error,
        svd_rank=own.svd_rank,
        svd_error=own.svd_error,
        activation_error=activation_error,
        weighted_activation_error=weighted_activation_error,
        precision=", ".join(map(precision_text, compressed.precisions_of_matrix(key))),
        bytes_before=rows * columns * own.dtype.itemsize,
        bytes_after=compressed.bytes_of_matrix(key),
        roundings=own.roundings,
        dtype=precision_text(own.dtype),
        **form,
    )


def _block_terms(compressed: CompressedCheckpoint, key: str, matrix: CompressedMatrix) -> dict[str, Any]:
    part = matrix.shape.part
    return {
        "form": "block_terms",
        "in_modes": part.in_modes,
        "out_modes": part.out_modes,
        "gates": matrix.shape.gates,
        "cp_rank": part.n_blocks,
        "tucker_ranks": part.ranks,
        "core": part.core,
        "params_after": params_of(compressed.parts(key)),
        "row_order": part.row_order,
        "column_order": part.column_order,
        "in_8_bits": matrix.in_8_bits,
    }


def _dense(matrix: RoundedMatrix) -> dict[str, Any]:
    modes = {"in_modes": (), "out_modes": (), "gates": "fused", "cp_rank": 0, "tucker_ranks": (), "core": "none"}
    return {"form": "dense", **modes, "params_after": matrix.shape[0] * matrix.shape[1]}
