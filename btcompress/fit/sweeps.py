"""Joint alternating least squares over all blocks of a block-term form, on a compressed core.

With the other modes fixed, the stacked factors of all ``N`` blocks solve one linear least-squares
problem with an ``N R_k x N R_k`` Gram matrix; with all factors fixed, the cores solve another.
Factors are kept orthonormal within each block, their scale moved into the cores.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from btcompress.contraction import contract
from btcompress.results import Sweep

#: Eigenvalues of a Gram matrix below this share of the largest count as zero: directions that carry nothing.
_SINGULAR = 1e-13
#: Cholesky pivots further apart than this lose too many digits; eigenvalues then decide what is singular.
_SAFE_PIVOT = 1e-5
#: Core systems up to this many unknowns are solved directly, larger ones by conjugate gradients.
DIRECT_UNKNOWNS = 1024
_CG_STEPS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Tucker blocks on a compressed core: ``sum_n G_n x_1 U_n1 ... x_d U_nd``.

    Attributes:
        cores: ``G``, shape ``(N, R_1..R_d)``.
        factors: ``U_k``, shape ``(N, c_k, R_k)``, orthonormal columns in each block.
    """

    cores: Tensor
    factors: tuple[Tensor, ...]

    def to_tensor(self) -> Tensor:
        """The sum of the blocks, shape ``(c_1..c_d)``."""
        dims, ranks = _letters(len(self.factors))
        terms = ",".join("z" + d + r for d, r in zip(dims, ranks, strict=True))
        return contract(f"z{ranks},{terms}->{dims}", self.cores, *self.factors)


def expanded(blocks: Blocks, bases: tuple[Tensor, ...]) -> Blocks:
    """Blocks on a truncated core as blocks on the tensor whose bases, shape ``(m_k, c_k)``, are given."""
    pairs = zip(bases, blocks.factors, strict=True)
    return Blocks(blocks.cores, tuple(torch.einsum("mc,ncr->nmr", basis, factor) for basis, factor in pairs))


@dataclass(frozen=True, slots=True, eq=False)
class SweepResult:
    """Where the sweeps ended.

    Attributes:
        blocks: the best blocks seen.
        error: ``||T - blocks|| / ||T||`` on the compressed core.
        n_sweeps: sweeps done.
        converged: whether the error stopped falling before the sweeps ran out.
    """

    blocks: Blocks
    error: float
    n_sweeps: int
    converged: bool


def sweep_until_stable(
    tensor: Tensor,
    start: Blocks,
    max_sweeps: int,
    tolerance: float,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> SweepResult:
    """Alternate factor and core updates until the error falls by less than ``tolerance`` of itself.

    A sweep that does not lower the error ends the iteration and is thrown away, so the error never rises.

    Args:
        tensor: ``T``, shape ``(c_1..c_d)``, float64, not zero.
        start: blocks to start from.
        max_sweeps: most sweeps to do.
        tolerance: least relative fall of the error that is worth another sweep.
        on_sweep: called after each sweep.
    """
    norm = torch.linalg.vector_norm(tensor)
    blocks, error = start, _error(tensor, start, norm)
    for index in range(1, max_sweeps + 1):
        candidate = _sweep(tensor, blocks)
        new_error = _error(tensor, candidate, norm)
        gain = error - new_error
        if gain > 0:
            blocks, error = candidate, new_error
        if on_sweep is not None:
            on_sweep(Sweep(index, max_sweeps, error))
        if gain <= tolerance * error:
            return SweepResult(blocks, error, index, converged=True)
    return SweepResult(blocks, error, max_sweeps, converged=False)


def _error(tensor: Tensor, blocks: Blocks, norm: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor - blocks.to_tensor()) / norm)


def _sweep(tensor: Tensor, blocks: Blocks) -> Blocks:
    for mode in range(tensor.ndim):
        blocks = _update_factor(tensor, blocks, mode)
    return _update_cores(tensor, blocks)


def _update_factor(tensor: Tensor, blocks: Blocks, mode: int) -> Blocks:
    """Solve for the factors of one mode in all blocks at once, then make each orthonormal."""
    dims, ranks = _letters(tensor.ndim)
    cores, factors = blocks.cores, blocks.factors
    n_blocks, size, rank = factors[mode].shape
    others = [k for k in range(tensor.ndim) if k != mode]
    terms = "".join(f",z{dims[k]}{ranks[k]}" for k in others)
    right = contract(
        f"{dims},z{ranks}{terms}->{dims[mode]}z{ranks[mode]}", tensor, cores, *(factors[k] for k in others)
    )
    upper = ranks.upper()
    overlap_terms = "".join(f",zy{ranks[k]}{upper[k]}" for k in others)
    other_core = "y" + "".join(upper)
    gram = contract(
        f"z{ranks},{other_core}{overlap_terms}->z{ranks[mode]}y{upper[mode]}",
        cores,
        cores,
        *(_overlaps(factors[k]) for k in others),
    )
    solved = _solve(gram.reshape(n_blocks * rank, -1), right.reshape(size, -1).T).reshape(n_blocks, rank, size)
    orthonormal, triangular = torch.linalg.qr(solved.transpose(1, 2))
    moved = torch.einsum("nqr,nr...->nq...", triangular, cores.movedim(mode + 1, 1)).movedim(1, mode + 1)
    return Blocks(moved, (*factors[:mode], orthonormal, *factors[mode + 1 :]))


def _update_cores(tensor: Tensor, blocks: Blocks) -> Blocks:
    """Solve for all cores at once, the factors fixed."""
    dims, ranks = _letters(tensor.ndim)
    terms = "".join(f",z{d}{r}" for d, r in zip(dims, ranks, strict=True))
    right = contract(f"{dims}{terms}->z{ranks}", tensor, *blocks.factors)
    overlaps = [_overlaps(factor) for factor in blocks.factors]
    upper = ranks.upper()
    gram_terms = ",".join(f"zy{r}{u}" for r, u in zip(ranks, upper, strict=True))
    if len(right) == 1:
        cores = right  # a single block's factors are orthonormal
    elif right.numel() <= DIRECT_UNKNOWNS:
        gram = contract(f"{gram_terms}->z{ranks}y{upper}", *overlaps).reshape(right.numel(), -1)
        cores = _solve_cores(gram, right.reshape(-1, 1), right[0].numel()).reshape(right.shape)
    else:
        cores = conjugate_gradients(
            lambda cores: contract(f"y{upper},{gram_terms}->z{ranks}", cores, *overlaps), right, blocks.cores
        )
    return Blocks(cores, blocks.factors)


def _overlaps(factor: Tensor) -> Tensor:
    """Gram matrices ``U_n^T U_m`` of every pair of blocks, shape ``(N, N, R, R)``."""
    return torch.einsum("ncr,mcs->nmrs", factor, factor)


def _solve_cores(gram: Tensor, right: Tensor, n_first: int) -> Tensor:
    """What :func:`_solve` gives for cores, without decomposing what belongs to the first block.

    As the factors of each block are orthonormal, that part of the Gram matrix is the identity: its pivots are 1, and
    the others those of what is left once the first core is eliminated.

    Args:
        gram: of the cores' entries, block after block.
        right: what it is to give.
        n_first: entries of the first core.
    """
    across = gram[:n_first, n_first:]
    triangle, failed = torch.linalg.cholesky_ex(gram[n_first:, n_first:] - across.T @ across)
    if failed or not triangle.diagonal().min() > _SAFE_PIVOT:
        return _solve(gram, right)
    later = torch.cholesky_solve(right[n_first:] - across.T @ right[:n_first], triangle)
    return torch.cat([right[:n_first] - across @ later, later])


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """The solution of a symmetric positive semidefinite system, the one of least norm if it is singular."""
    triangle, failed = torch.linalg.cholesky_ex(gram)
    pivots = triangle.diagonal()
    if not failed and pivots.min() > _SAFE_PIVOT * pivots.max():
        return torch.cholesky_solve(right, triangle)
    values, vectors = torch.linalg.eigh(gram)
    usable = values > _SINGULAR * values[-1].clamp_min(torch.finfo(gram.dtype).tiny)
    inverse = torch.where(usable, values, 1.0).reciprocal() * usable
    return vectors @ (inverse[:, None] * (vectors.T @ right))


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, max_steps: int = _CG_STEPS
) -> Tensor:
    """Conjugate gradients for ``apply(x) = right`` from ``start``; each step lowers the quadratic error.

    Args:
        apply: a symmetric positive semidefinite map.
        right: what it is to give.
        start: where to begin.
        max_steps: most steps.
    """
    solution = start
    residual = right - apply(solution)
    direction = residual
    square = residual.square().sum()
    enough = torch.finfo(right.dtype).eps ** 2 * right.square().sum()
    for _ in range(max_steps):
        if square <= enough:
            break
        applied = apply(direction)
        step = square / (direction * applied).sum()
        solution = solution + step * direction
        residual = residual - step * applied
        new_square = residual.square().sum()
        direction = residual + (new_square / square) * direction
        square = new_square
    return solution


def _letters(order: int) -> tuple[str, str]:
    """Index letters of the compressed modes and of the ranks; ranks also have an upper-case twin."""
    return string.ascii_lowercase[:order], string.ascii_lowercase[order : 2 * order]
