"""Where the joint sweeps start: greedy deflation by TensorLy's ALS Tucker, or random blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from btcompress.fit.sweeps import Blocks

#: A residual of this share of the tensor is rounding, and another block has nothing to fit.
_NOTHING_LEFT = 1e-14


def greedy_deflation(tensor: Tensor, ranks: tuple[int, ...], n_blocks: int) -> Blocks:
    """One Tucker block after another, each fitted by HOOI to what the blocks before it leave.

    Args:
        tensor: shape ``(c_1..c_d)``, float64.
        ranks: Tucker ranks, none above its mode's size.
        n_blocks: ``N``.
    """
    # Loaded here, as it takes long to load and a fit without a core, or of sample inputs, does without.
    import tensorly
    from tensorly.decomposition import tucker

    residual, norm = tensor, torch.linalg.vector_norm(tensor)
    blocks: list[Blocks] = []
    for _ in range(n_blocks):
        if torch.linalg.vector_norm(residual) <= _NOTHING_LEFT * norm:
            block = _empty_block(tensor, ranks)
        elif ranks == tuple(tensor.shape):
            identities = tuple(_identity(tensor, size, size) for size in tensor.shape)
            block = Blocks(residual.unsqueeze(0), identities)
        else:
            with tensorly.backend_context("pytorch", local_threadsafe=True):
                core, factors = tucker(residual, rank=list(ranks), init="svd", random_state=0)
            block = Blocks(core.unsqueeze(0), tuple(factor.unsqueeze(0) for factor in factors))
        blocks.append(block)
        residual = residual - block.to_tensor()
    return Blocks(
        torch.cat([block.cores for block in blocks]),
        tuple(torch.cat(factors) for factors in zip(*(block.factors for block in blocks), strict=True)),
    )


def random_blocks(tensor: Tensor, ranks: tuple[int, ...], n_blocks: int, generator: torch.Generator) -> Blocks:
    """Blocks with random orthonormal factors and random cores; the first sweep sets their scale."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(tensor.device)

    pairs = zip(tensor.shape, ranks, strict=True)
    factors = tuple(torch.linalg.qr(draw(n_blocks, size, rank)).Q for size, rank in pairs)
    return Blocks(draw(n_blocks, *ranks), factors)


def _empty_block(tensor: Tensor, ranks: tuple[int, ...]) -> Blocks:
    pairs = zip(tensor.shape, ranks, strict=True)
    return Blocks(tensor.new_zeros(1, *ranks), tuple(_identity(tensor, size, rank) for size, rank in pairs))


def _identity(tensor: Tensor, size: int, rank: int) -> Tensor:
    return torch.eye(size, rank, dtype=tensor.dtype, device=tensor.device).unsqueeze(0)
