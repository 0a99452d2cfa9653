"""Results with factors drawn at random, so that nothing has to be fitted."""

import torch

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import (
    CompressedCheckpoint,
    CompressedMatrix,
    RecurrentEntry,
    find_recurrent,
    from_state_dict,
)
from btcompress.shapes import BlockTermShape, MatrixShape
from forms import in_fewer_bits


def low_rank_result(state, ratio=4, precision=None):
    """A result in which every recurrent layer has matrices of low rank, so many times fewer parameters in them.

    Args:
        state: the state dict.
        ratio: of each matrix.
        precision: integers or floats that cores and factors are stored as; None for the dtype that they have.
    """
    generator = torch.Generator().manual_seed(0)
    matrices, parts = {}, {}
    for entry in find_recurrent(state):
        for key in entry.matrix_keys if isinstance(entry, RecurrentEntry) else ():
            (rows, columns), dtype = state[key].shape, state[key].dtype
            gates = 1 if "weight_hr" in key else entry.n_gates
            rank = max(1, rows * columns // (ratio * (rows + columns)))
            shape = BlockTermShape.low_rank(rows, columns, rank, gates)
            # Of the variance that torch gives to dense matrices.
            scale = (rank * entry.hidden_size * 3) ** -0.25
            factors = (torch.randn(size, generator=generator).mul_(scale).to(dtype) for size in shape.tensor_shapes)
            parts[key] = [BlockTerm.of(shape, list(factors))]
            matrices[key] = CompressedMatrix(MatrixShape(shape), dtype, 0.5, rank, 0.5)
    compressed = CompressedCheckpoint.of(from_state_dict(state), matrices, parts)
    return compressed if precision is None else in_fewer_bits(compressed, precision, {})
