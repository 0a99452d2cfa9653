"""Matrices of low rank at a ratio, and the plainest loop that runs an LSTM by them, to hold faster ways against."""

import torch
from torch import Tensor

from btcompress.shapes import BlockTermShape, MatrixShape

Pair = tuple[Tensor, Tensor]


def low_rank_shape(rows: int, columns: int, ratio: float, n_gates: int = 4) -> MatrixShape:
    """Low rank at so many times fewer parameters than the dense matrix has."""
    rank = max(1, round(rows * columns / ratio / (rows + columns)))
    return MatrixShape(BlockTermShape.low_rank(rows, columns, rank, n_gates))


def plain_loop(x: Tensor, state: Pair, input_factors: Pair, recurrent_factors: Pair, bias: Tensor) -> Tensor:
    """Outputs of one layer as anyone would write it down.

    Args:
        x: ``(T, B, I)``.
        state: ``h`` and ``c``, ``(B, H)`` each.
        input_factors: ``(4H, R)`` and ``(R, I)``, of which ``W`` is the product.
        recurrent_factors: likewise of ``U``.
        bias: both at once, ``(4H)``.
    """
    h, c = state
    left, right = recurrent_factors
    z = torch.addmm(bias, x.flatten(0, 1) @ input_factors[1].T, input_factors[0].T).unflatten(0, x.shape[:2])
    outputs = []
    for z_t in z:
        i, f, g, o = torch.addmm(z_t, h @ right.T, left.T).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)
