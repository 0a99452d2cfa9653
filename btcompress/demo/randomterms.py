"""Checkpoints whose block terms are random numbers, to train from scratch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix
from btcompress.factorization import open_weights
from btcompress.fit.measures import weight_error
from btcompress.nn import BTWeight
from btcompress.shapes import MatrixShape


def with_random_terms(
    model: nn.Module, shapes: Mapping[str, MatrixShape], variance: float | None = None
) -> CompressedCheckpoint:
    """A model as a compressed checkpoint, with random block terms in the place of matrices; all else is the model's.

    Args:
        model: dense; to train from scratch, one with random weights.
        shapes: of the block terms of each matrix, by its key.
        variance: of the entries of ``W`` that the block terms make; where left out, the mean square of those that the
            model has.

    Returns:
        The checkpoint. Its weight errors are those of the random block terms, which stand for nothing.
    """
    checkpoint = open_weights(model)
    parts, matrices = {}, {}
    for key, shape in shapes.items():
        matrix = checkpoint.tensors[key]
        spread = float(matrix.double().square().mean()) if variance is None else variance
        weight = BTWeight(shape, dtype=matrix.dtype)
        weight.reset_parameters(spread)
        parts[key] = tuple(
            BlockTerm.of(part.shape, [tensor.detach() for tensor in part.tensors], part.orders) for part in weight.parts
        )
        matrices[key] = CompressedMatrix(shape, matrix.dtype, weight_error(matrix, parts[key]), 0, 1.0)
    return CompressedCheckpoint.of(checkpoint, matrices, parts, [{"step": "random start"}])
