"""Shrink a matrix's paired-mode tensor to a small core: sequentially truncated HOSVD by Gram matrices.

Vannieuwenhoven, Vandebril, Meerbergen (2012), "A new truncation strategy for the higher-order singular
value decomposition". The matrix is read a slab of rows at a time, so a memory-mapped checkpoint is
never copied whole; only the first truncated mode sees it, the rest works on what that leaves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btcompress.fit.arranged import pad_matrix
from btcompress.fit.measures import squares
from btcompress.shapes import BlockTermShape

#: Basis vectors kept per mode, as a multiple of ``N * R_k``; fewer would cost accuracy of the fit.
_OVERSAMPLING = 3
#: Entries that the core may always have: below this, truncating would save no time worth having.
_FREE_ENTRIES = 2**18
#: Rows of the largest Gram matrix worth forming; of larger modes, what the others leave is taken apart instead.
_LARGEST_GRAM = 4096
#: A scale beyond these, or its reciprocal, is no normal float32.
_FLOAT32_SCALES = (2.0**-100, 2.0**100)
#: Sums of squares agree to about this many units in the last place.
_ROUNDING_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Compression:
    """A paired-mode tensor in orthonormal bases: ``T ~ scale * core x_1 B_1 ... x_d B_d``.

    Attributes:
        core: shape ``(c_1..c_d)``, float64.
        bases: ``B_k``, shape ``(I_k * J_k, c_k)``, orthonormal columns, float64.
        scale: largest magnitude in the matrix; the core is of the matrix divided by it.
        missed: share of ``||T||^2`` outside the bases, 0 where it is no more than rounding.
        norm: ``||T||``.
    """

    core: Tensor
    bases: tuple[Tensor, ...]
    scale: float
    missed: float
    norm: float


def compress(
    matrix: Tensor,
    shape: BlockTermShape,
    scale: float,
    device: torch.device,
    kept: Sequence[int] | None = None,
) -> Compression:
    """Compress the paired-mode tensor of a matrix.

    Args:
        matrix: shape ``(out_size, in_size)``, any real dtype; read only.
        shape: mode sizes, and ranks that say how many basis vectors to keep.
        scale: the matrix's largest magnitude, above 0.
        device: where to compute.
        kept: basis vectors to keep of each mode, none more than its size; as many as the ranks need when left out.
    """
    slabs = _Slabs(matrix, shape, scale, device)
    if kept is None:
        kept = basis_sizes_of(shape)
    bases = [torch.eye(size, dtype=torch.float64, device=device) for size in kept]
    shrinking = _shrinking(shape, kept)
    if not shrinking:
        core = slabs.whole()
        return Compression(core, tuple(bases), scale, 0.0, scale * math.sqrt(squares(core)))
    first, *others = shrinking
    bases[first] = _leading_eigenvectors(slabs.gram(first), kept[first])
    tensor, square = slabs.projected(first, bases[first])
    for mode in others:
        bases[mode], tensor = _truncated(tensor, mode, kept[mode])
    core = tensor.to(torch.float64).contiguous()
    missed = 1 - squares(core) / square
    rounding = _ROUNDING_STEPS * torch.finfo(slabs.dtype).eps
    return Compression(core, tuple(bases), scale, missed if missed > rounding else 0.0, scale * math.sqrt(square))


def _reading_order(mode: int, size: int) -> tuple[bool, bool, int]:
    """Modes with too large a Gram matrix last; before them the first, which lies in memory as needed, then by size."""
    return size > _LARGEST_GRAM, mode != 0, size


def leading_corner(tensor: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The truncated HOSVD of a small tensor: its core of at most these sizes, and the orthonormal bases."""
    bases = []
    for mode, size in enumerate(sizes):
        basis, tensor = _truncated(tensor, mode, min(size, tensor.shape[mode]))
        bases.append(basis)
    return tensor.contiguous(), tuple(bases)


def basis_sizes_of(shape: BlockTermShape) -> list[int]:
    """``c_k`` of a shape, as :func:`compress` keeps them where nothing else is asked for."""
    return basis_sizes(shape.mode_sizes, [_OVERSAMPLING * shape.n_blocks * rank for rank in shape.ranks])


def first_shrunk(shape: BlockTermShape, kept: Sequence[int]) -> int | None:
    """The mode that is truncated first, and so by a Gram matrix of the whole tensor; None if none is."""
    return next(iter(_shrinking(shape, kept)), None)


def _shrinking(shape: BlockTermShape, kept: Sequence[int]) -> list[int]:
    """The modes that are truncated, in turn."""
    modes = [k for k, size in enumerate(shape.mode_sizes) if kept[k] < size]
    return sorted(modes, key=lambda k: _reading_order(k, shape.mode_sizes[k]))


def basis_sizes(mode_sizes: Sequence[int], needed: Sequence[int]) -> list[int]:
    """``c_k``: as many as needed, more where the core stays small, never more than can matter.

    Args:
        mode_sizes: ``I_k J_k``.
        needed: basis vectors of each mode.
    """
    growth = (_FREE_ENTRIES / math.prod(needed)) ** (1 / len(needed))
    wanted = [max(count, int(count * growth)) for count in needed]
    if math.prod(mode_sizes) <= _FREE_ENTRIES:
        wanted = list(mode_sizes)
    kept = [min(count, size) for count, size in zip(wanted, mode_sizes, strict=True)]
    # An unfolding of the tensor has no more independent rows than columns.
    return [min(count, math.prod(kept[:k] + kept[k + 1 :])) for k, count in enumerate(kept)]


def _truncated(tensor: Tensor, mode: int, count: int) -> tuple[Tensor, Tensor]:
    """The leading basis of a mode, float64, and the tensor with the mode in it."""
    moved = tensor.movedim(mode, 0)
    unfolding = moved.reshape(len(moved), -1)  # copied into order once, for the basis and the product with it
    if unfolding.shape[0] > unfolding.shape[1]:
        basis = torch.linalg.svd(unfolding.to(torch.float64), full_matrices=False).U[:, :count].contiguous()
    else:
        basis = _leading_eigenvectors((unfolding @ unfolding.T).to(torch.float64), count)
    shrunk = basis.T.to(tensor.dtype) @ unfolding
    return basis, shrunk.reshape(-1, *moved.shape[1:]).movedim(0, mode)


def _leading_eigenvectors(gram: Tensor, count: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors[:, -count:].flip(1).contiguous()


class _Slabs:
    """A matrix as the padded tensor ``(I_1 J_1, ..., I_d J_d)``, read a few rows at a time.

    Entries of float32 or less are read as float32, which is exact, unless they are too large or small to be divided
    by their scale in it; sums over slabs are in float64.
    """

    def __init__(self, matrix: Tensor, shape: BlockTermShape, scale: float, device: torch.device) -> None:
        self._shape = shape
        self._scale = scale
        self._device = device
        in_range = _FLOAT32_SCALES[0] <= scale <= _FLOAT32_SCALES[1]
        self.dtype = torch.float32 if in_range and matrix.dtype != torch.float64 else torch.float64
        self._rows = pad_matrix(matrix.detach().to(device), shape)

    def gram(self, mode: int) -> Tensor:
        """Gram matrix of the mode's unfolding, shape ``(I_k * J_k, I_k * J_k)``."""
        i, j = self._shape.in_modes[mode], self._shape.out_modes[mode]
        gram = torch.zeros(i * j, i * j, dtype=torch.float64, device=self._device)
        for slab in self._unfoldings(mode):
            gram += slab @ slab.T
        return gram.reshape(j, i, j, i).permute(1, 0, 3, 2).reshape(i * j, i * j)

    def projected(self, mode: int, basis: Tensor) -> tuple[Tensor, float]:
        """The tensor ``(I_1 J_1, .., c_k, .., I_d J_d)`` with ``mode`` in ``basis``, and its squared norm before."""
        shape, n_others = self._shape, self._shape.order - 1
        out_modes = shape.out_modes[:mode] + shape.out_modes[mode + 1 :]
        in_modes = shape.in_modes[:mode] + shape.in_modes[mode + 1 :]
        count = basis.shape[1]
        outputs_first = basis.reshape(shape.in_modes[mode], shape.out_modes[mode], count).transpose(0, 1)
        weights = outputs_first.reshape(-1, count).T.to(self.dtype).contiguous()
        result = weights.new_empty(math.prod(out_modes), count, math.prod(in_modes))
        square = 0.0
        for target, slab in zip(result, self._unfoldings(mode), strict=True):
            torch.mm(weights, slab, out=target)
            square += squares(slab)
        pairs = [axis for k in range(n_others) for axis in (n_others + 1 + k, k)]
        paired = result.reshape(*out_modes, count, *in_modes).permute(n_others, *pairs)
        mode_sizes = (i * j for i, j in zip(in_modes, out_modes, strict=True))
        return paired.reshape(count, *mode_sizes).movedim(0, mode), square

    def _unfoldings(self, mode: int) -> Iterator[Tensor]:
        """Slabs of the unfolding, rows ``(j_k, i_k)``, one for each index of the other output modes.

        Each slab reuses the memory of the one before.
        """
        shape = self._shape
        by_slab = self._rows.reshape(*shape.out_modes, shape.padded_in).movedim(mode, -2)
        sizes = (shape.out_modes[mode], math.prod(shape.in_modes[:mode]), shape.in_modes[mode], -1)
        buffer = torch.empty(shape.out_modes[mode], shape.padded_in, dtype=self.dtype, device=self._device)
        for indices in itertools.product(*map(range, by_slab.shape[:-2])):
            buffer.copy_(by_slab[indices]).div_(self._scale)
            yield buffer.reshape(sizes).transpose(1, 2).reshape(shape.mode_sizes[mode], -1)

    def whole(self) -> Tensor:
        """The whole tensor in float64."""
        order = self._shape.order
        tensor = self._rows.reshape(*self._shape.out_modes, *self._shape.in_modes)
        paired = tensor.permute([axis for k in range(order) for axis in (order + k, k)])
        return paired.to(torch.float64).div(self._scale).reshape(self._shape.mode_sizes)
