"""What a matrix costs and loses in many block-term forms: parameters against weight error.

Forms without a core are priced exactly, all ranks at once, by the singular values of the rearranged matrix.
Forms with a core are fitted on the small core of one HOSVD for each choice of modes, with few sweeps, and only
where they may beat what is known: their error is one that the final fit reaches or falls below, in general.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.fit.blockfit import balanced, check_finite, zero_form
from btcompress.fit.demand import require_memory_to_price
from btcompress.fit.hosvd import compress, leading_corner
from btcompress.fit.lowrank import joint_errors, kronecker_errors
from btcompress.fit.measures import frobenius_norm, largest
from btcompress.fit.start import random_blocks
from btcompress.fit.sweeps import Blocks, expanded, sweep_until_stable
from btcompress.packing import Precision, bytes_of
from btcompress.shapes import BlockTermShape, MatrixShape

#: Bytes of an integer of an order of rows or columns.
_ORDER_BYTES = 4
#: Entries of the core that forms with a core are fitted on.
_CORE_ENTRIES = 2**16
#: Sweeps of several blocks on the leading corner, before they are tried on the core.
_CORNER_SWEEPS = 5
#: A form is promising if its error is at most so many times the known one, and it keeps at least this share of
#: what that keeps: before any sweep, and after a few.
_PROMISING_AT_FIRST = (1.3, 0.5)
_PROMISING_LATER = (1.05, 0.8)
#: Sweeps on the core, and what is promising enough for the next ones.
_ROUNDS = ((0, _PROMISING_AT_FIRST), (2, _PROMISING_LATER), (6, _PROMISING_LATER))
#: A sweep that lowers the error by less than this share of it is the last.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Point:
    """One form that a matrix can take, in one precision.

    Attributes:
        shape: the form; None for the matrix itself, dense but rounded.
        error: weight error that it is known to reach; priced on inputs, the weighted activation error. In the matrix's
            own dtype, that is before rounding to it.
        activation_error: priced on inputs, the activation error without weights; else None.
        precision: how its numbers are stored; None for the matrix's own dtype.
        size: rows and columns of a matrix that stays dense.
        measured: whether it was really fitted and rounded; else its error is foretold by others, for looking at only.
    """

    shape: MatrixShape | None
    error: float
    activation_error: float | None = None
    precision: Precision | None = None
    size: tuple[int, int] = (0, 0)
    measured: bool = True

    @property
    def n_params(self) -> int:
        """Parameters of the form, or entries of the matrix."""
        return math.prod(self.size) if self.shape is None else self.shape.n_params

    def n_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that it takes as stored, of a matrix of this dtype."""
        precision = self.precision or dtype
        return bytes_of(self.size, precision) if self.shape is None else form_bytes(self.shape, precision)


def form_bytes(shape: MatrixShape, precision: Precision) -> int:
    """Bytes of a form whose cores and factors are stored in a precision, its orders as integers of 4 bytes."""
    part = shape.part
    numbers = sum(bytes_of(each, precision) for each in part.tensor_shapes)
    return shape.n_parts * (numbers + _ORDER_BYTES * sum(part.order_sizes.values()))


@dataclass(frozen=True, slots=True)
class Curve:
    """The forms of a matrix that no other form beats in both size and error.

    Sizes are parameters, or bytes of forms in many precisions.

    Attributes:
        points: by rising size, their errors falling; none is as large as the matrix.
        low_rank: every plain low-rank form smaller than the matrix, in its own dtype, likewise.
        dense_params: entries of the matrix.
        stake: what an error of 1 costs beside those of other matrices: 1 for weight errors, and priced on inputs
            ``||S W X||_F``, an estimate of the hidden-state error that it leads to.
        on_inputs: whether errors are weighted activation errors.
        dtype: of the matrix, where sizes are bytes; None where they are parameters.
        roundings: the dense matrix in the precisions that no other beats, likewise; none where sizes are parameters.
    """

    points: tuple[Point, ...]
    low_rank: tuple[Point, ...]
    dense_params: int
    stake: float = 1.0
    on_inputs: bool = False
    dtype: torch.dtype | None = None
    roundings: tuple[Point, ...] = ()

    @property
    def dense_size(self) -> int:
        """Parameters, or bytes, of the matrix as it is."""
        return self.dense_params * (1 if self.dtype is None else self.dtype.itemsize)

    def size_of(self, point: Point) -> int:
        """Parameters, or bytes, of a form."""
        return point.n_params if self.dtype is None else point.n_bytes(self.dtype)

    def within(self, size: int) -> Point | None:
        """The most accurate form of at most this size; None if there is none so small."""
        return within(self.points, size, self.size_of)

    def low_rank_within(self, size: int) -> Point | None:
        """The most accurate low-rank form of at most this size; None if there is none so small."""
        return within(self.low_rank, size, self.size_of)

    def rounding_within(self, size: int) -> Point | None:
        """The most accurate rounding of the dense matrix of at most this size; None if there is none so small."""
        return within(self.roundings, size, self.size_of)


@dataclass(frozen=True, slots=True)
class FormsWithCore:
    """Forms of one choice of modes, fitted on one core.

    Attributes:
        shape: modes and gates; its CP rank and Tucker ranks do not matter.
        ranks: each CP rank ``N`` with a Tucker rank ``R`` for all modes, lowered where the modes hold less.
    """

    shape: MatrixShape
    ranks: tuple[tuple[int, int], ...]


def price(
    matrix: Tensor,
    without_core: Sequence[MatrixShape],
    with_core: Sequence[FormsWithCore],
    *,
    known: Sequence[Point] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Curve:
    """Price the forms of one matrix.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        without_core: order-2 forms with an identity core, each priced at all of its ranks; the first is the
            plain low-rank one.
        with_core: forms to be fitted.
        known: points to beat, which stay where none does.
        seed: of the random starts of several blocks.
        device: where to compute.
        on_step: called with steps done and steps in all, after each choice of modes.

    Raises:
        BTCompressError: the matrix is not finite, or pricing would take more memory than there is.
    """
    check_finite(matrix)
    device = torch.device(device)
    if device.type == "cpu":
        fitted = [(each.shape.part, _kept(each.shape.part.mode_sizes)) for each in with_core]
        require_memory_to_price([each.part for each in without_core], fitted, matrix.dtype)
    dense_params = matrix.numel()
    zero = largest(matrix) == 0
    n_steps = len(without_core) + len(with_core)
    low_rank: list[Point] = []
    front = list(known)
    for step, shape in enumerate(without_core):
        points = _price_ranks(matrix, shape, device, zero=zero)
        low_rank = low_rank if step else points
        front = front_of([*front, *points])
        if on_step is not None:
            on_step(step + 1, n_steps)
    known_of = ParamFront(front)
    for step, forms in enumerate(with_core, len(without_core)):
        offer_with_core(known_of, matrix, forms, device, seed)
        if on_step is not None:
            on_step(step + 1, n_steps)
    return Curve(tuple(known_of.points), tuple(low_rank), dense_params)


def offer_with_core(front: Front, matrix: Tensor, forms: FormsWithCore, device: torch.device, seed: int) -> None:
    """Fit the forms of one choice of modes to the entries of a matrix, and offer those that come below their target.

    Args:
        front: what they compete with.
        matrix: ``W``, finite; one of zeros is passed over, as any form is exact.
        forms: to be fitted.
        device: where to compute.
        seed: of the random starts of several blocks.
    """
    if largest(matrix):
        _Fitter(matrix, forms, device, seed).improve(front)


def _price_ranks(matrix: Tensor, shape: MatrixShape, device: torch.device, *, zero: bool) -> list[Point]:
    """Every rank of a form without a core that has fewer parameters than the matrix."""
    orders = shape.n_parts * sum(shape.part.order_sizes.values())
    each = replace(shape, part=replace(shape.part, ranks=(1, 1))).n_params - orders
    n_ranks = min((matrix.numel() - 1 - orders) // each, *shape.part.mode_sizes)
    if n_ranks < 1:
        return []
    if zero:
        errors = torch.zeros(n_ranks)
    elif shape.n_parts > 1:
        errors = joint_errors(matrix.detach().reshape(shape.n_parts, shape.part.out_size, shape.in_size), device)
    else:
        errors = kronecker_errors(matrix, shape.part, device)
    return [
        Point(replace(shape, part=replace(shape.part, ranks=(rank, rank))), error)
        for rank, error in enumerate(errors[:n_ranks].tolist(), 1)
    ]


def _params_of(point: Point) -> int:
    return point.n_params


def front_of(points: Iterable[Point], size_of: Callable[[Point], int] = _params_of) -> list[Point]:
    """The points that no other beats, by rising size; of equal ones the first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (size_of(point), point.error)):
        if not front or point.error < front[-1].error:
            front.append(point)
    return front


def within(points: Sequence[Point], size: int, size_of: Callable[[Point], int] = _params_of) -> Point | None:
    """Of points by rising size and falling errors, the last of at most this size; None if there is none."""
    position = bisect_right(points, size, key=size_of)
    return points[position - 1] if position else None


def rounding_of_entries(matrix: Tensor) -> float:
    """The weight error that rounding to the matrix's dtype alone makes; denormal entries are a fixed step apart."""
    limits = torch.finfo(matrix.dtype)
    if not 0 < largest(matrix) < limits.smallest_normal / limits.eps:
        return limits.eps / 2
    root_mean_square = frobenius_norm(matrix) / math.sqrt(matrix.numel())
    return max(limits.eps / 2, limits.smallest_normal * limits.eps / (math.sqrt(12) * root_mean_square))


def stored(points: Iterable[Point], matrix: Tensor) -> tuple[Point, ...]:
    """Points of forms in a matrix's own dtype, errors with rounding to it: of each tensor, and of the matrix formed."""
    rounding, formed = torch.finfo(matrix.dtype).eps / 2, rounding_of_entries(matrix)

    def error(point: Point) -> float:
        n_tensors = 0 if point.shape is None else len(point.shape.part.tensor_shapes)
        return math.hypot(point.error, rounding * n_tensors**0.5, formed)

    return tuple(replace(point, error=error(point)) for point in points)


class ParamFront:
    """What is known of a matrix while its forms are priced: those that no other beats in parameters and error."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self.points = list(points)

    def target(self, shape: MatrixShape) -> float:
        """The error that a form of this shape must fall below to be worth anything."""
        known = within(self.points, shape.n_params)
        return known.error if known else 1.0

    def offer(self, point: Point, parts: Callable[[], Sequence[BlockTerm]]) -> None:
        """Take in a form whose error fell below its target; ``parts`` gives its block terms."""
        del parts  # a form in the matrix's own dtype needs no rounding
        self.points = front_of([*self.points, point])


class Front(Protocol):
    """What forms with a core compete with; :class:`ParamFront` is one."""

    def target(self, shape: MatrixShape) -> float:
        """As :meth:`ParamFront.target`."""

    def offer(self, point: Point, parts: Callable[[], Sequence[BlockTerm]]) -> None:
        """As :meth:`ParamFront.offer`."""


class _Fitter:
    """Fits the forms of one choice of modes on truncated cores, one for each gate if they are separate."""

    def __init__(self, matrix: Tensor, forms: FormsWithCore, device: torch.device, seed: int) -> None:
        self._forms = forms
        self._seed = seed
        self._device = device
        shape, part = forms.shape, forms.shape.part
        gates = matrix.detach().reshape(shape.n_parts, part.out_size, part.in_size)
        scales = [largest(rows) for rows in gates]
        #: The core of each gate; none of one that is all zeros.
        self._of_gates = [
            SortedCore(rows, part, scale, device) if scale else None for rows, scale in zip(gates, scales, strict=True)
        ]
        self._cores = [core for core in self._of_gates if core is not None]
        self._total = math.hypot(*(core.norm for core in self._cores))

    def improve(self, front: Front) -> None:
        """Offer each of the forms that beats the front."""
        shape = self._forms.shape
        dense_params = shape.dense_params
        for n_blocks, rank in self._forms.ranks:
            part = replace(shape.part, n_blocks=n_blocks, ranks=(rank,) * shape.part.order).limited()
            form = replace(shape, part=part)
            if form.n_params >= dense_params:
                continue
            target = front.target(form)
            error, blocks = self._swept(part, target)
            if error < target:
                front.offer(Point(form, error), partial(self._parts, part, blocks))

    def _parts(self, part: BlockTermShape, blocks: Sequence[Blocks]) -> list[BlockTerm]:
        """Blocks on the cores as the forms of all gates."""
        fitted = iter(blocks)
        return [
            zero_form(part, self._device) if core is None else core.form(next(fitted), part) for core in self._of_gates
        ]

    def _swept(self, part: BlockTermShape, target: float) -> tuple[float, list[Blocks]]:
        """The weight error reached over all cores, with what reached it; 1 for a form that will not beat the target."""
        if self._combined([core.least_error(part) for core in self._cores]) >= target:
            return 1.0, []
        if not _promising(
            self._combined([core.error_unswept(part) for core in self._cores]), target, _PROMISING_AT_FIRST
        ):
            return 1.0, []
        error = 1.0
        blocks = [core.start(part, self._seed) for core in self._cores]
        for n_sweeps, limits in _ROUNDS:
            swept = [core.swept(each, n_sweeps) for core, each in zip(self._cores, blocks, strict=True)]
            blocks = [each for each, _ in swept]
            error = self._combined([error for _, error in swept])
            if not _promising(error, target, limits):
                break
        return error, blocks

    def _combined(self, errors: Sequence[float]) -> float:
        return math.hypot(*(error * core.norm for error, core in zip(errors, self._cores, strict=True))) / self._total


def _promising(error: float, target: float, limits: tuple[float, float]) -> bool:
    most_error, least_kept = limits
    return error <= most_error * target and 1 - error**2 >= least_kept * (1 - target**2)


class SortedCore:
    """The truncated core of one matrix, in its HOSVD bases, on which forms are fitted."""

    def __init__(self, rows: Tensor, shape: BlockTermShape, scale: float, device: torch.device) -> None:
        whole = compress(rows, shape, scale, device, _kept(shape.mode_sizes))
        # Where compressing truncated nothing, this still finds the bases that sort the core by size.
        self._tensor, turns = leading_corner(whole.core, tuple(whole.core.shape))
        self._bases = tuple(basis @ turn for basis, turn in zip(whole.bases, turns, strict=True))
        self._scale = scale
        self._missed = whole.missed
        self.norm = whole.norm
        squares = self._tensor.square()
        axes = range(squares.ndim)
        self._tails = [1 - squares.sum([a for a in axes if a != k]).cumsum(0) / squares.sum() for k in axes]
        self._corners = squares / squares.sum()
        for axis in axes:
            self._corners = self._corners.cumsum(axis)

    def least_error(self, part: BlockTermShape) -> float:
        """A bound below: no sum of blocks keeps more of a mode than as many of its leading singular vectors do."""
        left = 0.0
        for tail, rank in zip(self._tails, part.ranks, strict=True):
            left = max(left, float(tail[min(part.n_blocks * rank, len(tail)) - 1]))
        return self._whole_error(math.sqrt(max(left, 0.0)))

    def error_unswept(self, part: BlockTermShape) -> float:
        """The error of the leading corner that all blocks together may take up; sweeps do somewhat better."""
        sizes = zip(part.ranks, self._corners.shape, strict=True)
        corner = tuple(min(part.n_blocks * rank, size) - 1 for rank, size in sizes)
        return self._whole_error(math.sqrt(max(0.0, 1 - float(self._corners[corner]))))

    def start(self, part: BlockTermShape, seed: int) -> Blocks:
        """One block: the leading corner of the core. Several: random ones, swept on a leading corner."""
        sizes = tuple(part.n_blocks * rank for rank in part.ranks)
        corner, bases = leading_corner(self._tensor, sizes)
        if part.n_blocks == 1:
            return Blocks(corner.unsqueeze(0), tuple(basis.unsqueeze(0) for basis in bases))
        generator = torch.Generator().manual_seed(seed)
        ranks = tuple(min(rank, size) for rank, size in zip(part.ranks, corner.shape, strict=True))
        draw = random_blocks(corner, ranks, part.n_blocks, generator)
        swept = sweep_until_stable(corner, draw, _CORNER_SWEEPS, _TOLERANCE)
        return expanded(swept.blocks, bases)

    def swept(self, start: Blocks, n_sweeps: int) -> tuple[Blocks, float]:
        """The blocks after more sweeps, and their weight error."""
        result = sweep_until_stable(self._tensor, start, n_sweeps, _TOLERANCE)
        return result.blocks, self._whole_error(result.error)

    def form(self, blocks: Blocks, part: BlockTermShape) -> BlockTerm:
        """Blocks on the core as a form of the matrix."""
        whole = expanded(blocks, self._bases)
        sizes = zip(whole.factors, part.factor_shapes, strict=True)
        return balanced(
            BlockTerm(part, whole.cores * self._scale, tuple(factor.reshape(size) for factor, size in sizes))
        )

    def _whole_error(self, error: float) -> float:
        return math.sqrt(self._missed + (1 - self._missed) * error**2)


def _kept(mode_sizes: tuple[int, ...]) -> list[int]:
    """Basis vectors of each mode, as many as are left when the core has at most so many entries."""
    kept: dict[int, int] = {}
    entries = _CORE_ENTRIES
    for done, mode in enumerate(sorted(range(len(mode_sizes)), key=lambda k: mode_sizes[k])):
        kept[mode] = min(mode_sizes[mode], max(1, int(entries ** (1 / (len(mode_sizes) - done)))))
        entries //= kept[mode]
    return [kept[k] for k in range(len(mode_sizes))]
