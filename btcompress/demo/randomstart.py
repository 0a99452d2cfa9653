"""Compressed checkpoints of random numbers: where training from scratch begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix
from btcompress.factorization import open_weights
from btcompress.fit.measures import weight_error
from btcompress.nn import BTWeight
from btcompress.shapes import MatrixShape

_STEP = {"step": "random start"}


def random_start(make: Callable[[], nn.Module], compressed: CompressedCheckpoint, seed: int) -> CompressedCheckpoint:
    """A checkpoint of the same forms with every tensor random; see :func:`with_random_terms`.

    Args:
        make: makes the dense model with random weights from torch's generator.
        compressed: tells the forms.
        seed: of the draws; torch's generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shapes = {key: matrix.shape for key, matrix in compressed.matrices.items()}
        return compressed.with_step(_STEP, with_random_terms(make(), shapes).tensors)


def with_random_terms(model: nn.Module, shapes: Mapping[str, MatrixShape]) -> CompressedCheckpoint:
    """A dense model with random weights as a compressed checkpoint, with random block terms in the place of matrices.

    Block terms are drawn so that the entries of their dense matrix have the mean square of those that the model begins
    with; all else is the model's.

    Args:
        model: with random weights.
        shapes: of the block terms of each matrix, by its key.

    Returns:
        The checkpoint. Its weight errors are those of the random block terms, which stand for nothing.
    """
    checkpoint = open_weights(model)
    parts, matrices = {}, {}
    for key, shape in shapes.items():
        matrix = checkpoint.tensors[key]
        weight = BTWeight(shape, dtype=matrix.dtype)
        weight.reset_parameters(float(matrix.double().square().mean()))
        parts[key] = tuple(
            BlockTerm.of(part.shape, [tensor.detach() for tensor in part.tensors], part.orders) for part in weight.parts
        )
        matrices[key] = CompressedMatrix(shape, matrix.dtype, weight_error(matrix, parts[key]), 0, 1.0)
    return CompressedCheckpoint.of(checkpoint, matrices, parts, [_STEP])
