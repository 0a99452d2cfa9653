"""Other forms of a matrix, at no more parameters than its block terms have: what they might be exchanged for.

All are worked out on the compressed core that the fit works on, which holds small matrices whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.fit.blockfit import zero_form
from btcompress.fit.hosvd import basis_sizes, compress
from btcompress.fit.lowrank import fit_without_core
from btcompress.fit.measures import largest, weight_error
from btcompress.fit.start import greedy_deflation
from btcompress.fit.sweeps import expanded
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.yardsticks.svd import SVDYardstick

OtherKind = Literal["low_rank", "low_rank_on_inputs", "tensor_train", "greedy"]

#: Entries of the compressed core up to which a tensor train takes seconds.
_LARGEST_CORE = 2**20
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class OtherForm:
    """A matrix in another form, or why it was not worked out.

    Attributes:
        kind: ``"low_rank"``, the truncated SVD; ``"low_rank_on_inputs"``, as low, but fitted to inputs by whoever has
            them; ``"tensor_train"``, over the paired modes in their order;
            ``"greedy"``, blocks of the same ``N`` and ``R`` fitted one after another.
        ranks: the rank of the SVD, the ``d - 1`` ranks of the tensor train, or the Tucker ranks.
        params: what the form stores.
        weight_error: ``||W - W'||_F / ||W||_F``.
        parts: ``W'`` as block terms whose rows are stacked, to multiply by; not what the form would store.
        skipped: why there is none; all else is empty then, and the error 1.
    """

    kind: OtherKind
    ranks: tuple[int, ...] = ()
    params: int = 0
    weight_error: float = 1.0
    parts: tuple[BlockTerm, ...] = ()
    skipped: str | None = None


def low_rank_form(matrix: Tensor, yardstick: SVDYardstick) -> OtherForm:
    """The truncated SVD of the yardstick's rank, with its factors.

    Args:
        matrix: shape ``(J, I)``, not zero; read only.
        yardstick: rank and error.
    """
    if not yardstick.rank:
        return OtherForm("low_rank", skipped="even rank 1 has more parameters")
    out_size, in_size = matrix.shape
    shape = BlockTermShape.low_rank(out_size, in_size, yardstick.rank)
    form = BlockTerm.of(shape, fit_without_core(matrix, shape, largest(matrix), _CPU))
    return OtherForm("low_rank", (yardstick.rank,), shape.n_params, yardstick.error, (form,))


def structured_forms(matrix: Tensor, shape: MatrixShape, max_params: int | None = None) -> tuple[OtherForm, OtherForm]:
    """A tensor train with at most as many parameters, and greedy deflation with the same blocks, on the same modes.

    Separate gates are given one each. Rows and columns stand as in the matrix, whatever orders the shape has.

    Args:
        matrix: ``W``, shape ``(J, I)``, any real floating dtype, not zero; read only.
        shape: of its block terms.
        max_params: parameters of the block terms, where an order that counts once makes them fewer than the shape says.
    """
    max_params = shape.n_params if max_params is None else max_params
    shape = shape.ordered()
    part = shape.part.limited()
    if part.core == "identity":
        reason = "two modes without a core are this form already"
        return OtherForm("tensor_train", skipped=reason), OtherForm("greedy", skipped=reason)
    return _tensor_train(matrix, shape, max_params // shape.n_parts), _greedy(matrix, replace(shape, part=part))


def _tensor_train(matrix: Tensor, shape: MatrixShape, max_params_each: int) -> OtherForm:
    part = shape.part
    ranks = tensor_train_ranks(part.mode_sizes, max_params_each)
    kept = basis_sizes(part.mode_sizes, [r * s for r, s in zip((1, *ranks), (*ranks, 1), strict=True)])
    if math.prod(kept) > _LARGEST_CORE:
        reason = f"at ranks {','.join(map(str, ranks))} it would take a core of {math.prod(kept):,} entries to find one"
        return OtherForm("tensor_train", skipped=reason)

    def fitted(rows: Tensor, scale: float) -> BlockTerm:
        compression = compress(rows, part, scale, _CPU, kept)
        core = _as_tensor_train(compression.core, ranks) * scale
        whole = replace(part, ranks=tuple(core.shape), n_blocks=1)
        return _form(whole, core.unsqueeze(0), tuple(basis.unsqueeze(0) for basis in compression.bases))

    n_params = shape.n_parts * tensor_train_params(part.mode_sizes, ranks)
    return _measured("tensor_train", ranks, n_params, matrix, _each_part(matrix, shape, fitted))


def _greedy(matrix: Tensor, shape: MatrixShape) -> OtherForm:
    part = shape.part

    def fitted(rows: Tensor, scale: float) -> BlockTerm:
        compression = compress(rows, part, scale, _CPU)
        blocks = expanded(greedy_deflation(compression.core, part.ranks, part.n_blocks), compression.bases)
        return _form(part, blocks.cores * scale, blocks.factors)

    return _measured("greedy", part.ranks, shape.n_params, matrix, _each_part(matrix, shape, fitted))


def _each_part(
    matrix: Tensor, shape: MatrixShape, fitted: Callable[[Tensor, float], BlockTerm]
) -> tuple[BlockTerm, ...]:
    """What ``fitted`` makes of the rows of each part and their largest magnitude; zeros of zeros."""
    parts = ((rows, largest(rows)) for rows in matrix.detach().split(shape.part.out_size))
    return tuple(fitted(rows, scale) if scale else zero_form(shape.part, _CPU) for rows, scale in parts)


def _form(shape: BlockTermShape, cores: Tensor, factors: tuple[Tensor, ...]) -> BlockTerm:
    """The form with these factors, shape ``(N, I_k J_k, R_k)``."""
    pairs = zip(factors, shape.factor_shapes, strict=True)
    return BlockTerm(shape, cores, tuple(factor.reshape(size) for factor, size in pairs))


def tensor_train_params(mode_sizes: tuple[int, ...], ranks: tuple[int, ...]) -> int:
    """``sum_k r_(k-1) I_k J_k r_k``, the outermost ranks being 1."""
    return sum(r * size * s for r, size, s in zip((1, *ranks), mode_sizes, (*ranks, 1), strict=True))


def tensor_train_ranks(mode_sizes: tuple[int, ...], max_params: int) -> tuple[int, ...]:
    """The ranks between neighbouring modes: the largest number that fits, each lowered to what the modes hold.

    What parameters are left raise single ranks by one, the first ones first.

    Args:
        mode_sizes: ``I_k J_k``.
        max_params: parameters to spend; rank 1 is given however few they are.
    """
    limits = [min(math.prod(mode_sizes[:k]), math.prod(mode_sizes[k:])) for k in range(1, len(mode_sizes))]

    def fits(ranks: tuple[int, ...]) -> bool:
        return tensor_train_params(mode_sizes, ranks) <= max_params

    rank = 1
    while rank < max(limits, default=1) and fits(tuple(min(rank + 1, limit) for limit in limits)):
        rank += 1
    ranks = tuple(min(rank, limit) for limit in limits)
    for k, limit in enumerate(limits):
        larger = (*ranks[:k], ranks[k] + 1, *ranks[k + 1 :])
        if ranks[k] < limit and fits(larger):
            ranks = larger
    return ranks


def _as_tensor_train(core: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """What a tensor train of these ranks keeps of a tensor."""
    if not ranks:
        return core
    # Loaded here, as it takes long to load, and is needed only where forms are compared.
    import tensorly
    from tensorly.decomposition import tensor_train

    with tensorly.backend_context("pytorch", local_threadsafe=True):
        carriages = tensor_train(core, rank=[1, *ranks, 1])
        return carriages.to_tensor()


def _measured(
    kind: OtherKind, ranks: tuple[int, ...], n_params: int, matrix: Tensor, parts: tuple[BlockTerm, ...]
) -> OtherForm:
    return OtherForm(kind, ranks, n_params, weight_error(matrix, parts), parts)
