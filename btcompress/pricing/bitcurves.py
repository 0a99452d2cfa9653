"""What a matrix costs and loses in forms and precisions: bytes against weight error, or against errors on inputs.

A form of error ``e``, in a precision that loses the share ``v`` of the squares of what is rounded, loses about
``e^2 + (1 - e^2) f v`` of them in all, with ``f`` near 1; what was rounded last of the matrix tells ``f``. That
foretells every form in every precision. What is to be chosen is really rounded and measured, so that nothing is chosen
by what is foretold.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.fit import Samples, largest, obstacle_to_integers
from btcompress.fit.blockfit import check_finite
from btcompress.packing import LEAST_GROUP, Integers, Precision, bytes_of, precision_text
from btcompress.pricing.curves import Curve, FormsWithCore, Point, form_bytes, front_of, offer_with_core, price, stored
from btcompress.pricing.inputcurves import offer_with_core_on, price_on_inputs, quick_samples
from btcompress.pricing.roundings import Rounder
from btcompress.shapes import MatrixShape

#: Bits and groups that a matrix may be rounded to; None for whole rows.
_INTEGERS: tuple[tuple[int, int | None], ...] = (
    *((2, group) for group in (32, 64, 128, 16)),
    *((3, group) for group in (32, 64, 128, 16)),
    *((4, group) for group in (32, 64, 128)),
    *((bits, group) for bits in (5, 6, 7, 8) for group in (32, 128)),
    (8, None),
)
#: What any plan is held against: measured of every matrix.
_RIVALS: tuple[tuple[int, int | None], ...] = ((8, None), (4, 32))
#: ``f`` before anything of the matrix was rounded, by entries and on inputs, as on white noise: of the whole matrix, of
#: low rank and sums of Kronecker products, of forms with a core.
_FACTORS = {"dense": (1.0, 1.0), "without core": (1.4, 1.0), "with core": (1.5, 1.2)}
#: The least ``f`` that a form with a core is reckoned with before it is fitted.
_LEAST_FACTOR = 1.0
#: What is only foretold has to promise an error lower by this share than what was measured of no larger forms.
_ALIKE = 0.01
#: Forms with a core smaller than this share of what a matrix may take in the mean are passed over: what could still be
#: saved on one so small is next to nothing.
_LEAST_SHARE = 1 / 16


def precisions_for(matrix: Tensor) -> tuple[Precision, ...]:
    """The precisions that there are to choose from for a matrix, beside its own dtype."""
    columns = matrix.shape[1]
    every: list[Precision] = [
        dtype for dtype in (torch.float32, torch.float16) if dtype.itemsize < matrix.dtype.itemsize
    ]
    widths: set[tuple[int, int]] = set()
    for bits, group in _INTEGERS:
        # Groups as wide as a row, or wider, are one and the same.
        if (bits, _groups_of(columns, group)) not in widths:
            widths.add((bits, _groups_of(columns, group)))
            every.append(Integers(bits, max(columns, LEAST_GROUP) if group is None else group))
    return tuple(each for each in every if not obstacle_to(each, matrix))


def obstacle_to(precision: Precision, matrix: Tensor) -> str:
    """Why a matrix cannot be stored in a precision; empty where it can."""
    if isinstance(precision, Integers):
        return obstacle_to_integers(matrix)
    if (scale := largest(matrix)) > torch.finfo(precision).max:
        return f"its largest number, {scale:g}, is out of the range of {precision_text(precision)}"
    return ""


@dataclass(frozen=True, slots=True)
class Room:
    """What a matrix may take, as far as a wish says.

    Attributes:
        mean: bytes of it, if all matrices were to shrink alike.
        most: bytes of it, if all others took none.
    """

    mean: int
    most: int


#: Gives the block terms of a form.
Parts: TypeAlias = Callable[[], Sequence[BlockTerm]]


@dataclass(slots=True, eq=False)
class _Candidate:
    """A form in a precision.

    Attributes:
        shape: the form; None for the dense matrix.
        precision: how it is stored.
        n_bytes: as stored.
        error: of the form before it is rounded.
        kind: what it is rounded like, a key of ``_FACTORS``.
        parts: gives its block terms; None where the matrix stays dense, and for what is in the matrix's own dtype.
        point: what was measured of it; None where nothing was.
    """

    shape: MatrixShape | None
    precision: Precision
    n_bytes: int
    error: float
    kind: str
    parts: Parts | None = None
    point: Point | None = None


class BitCurve:
    """The forms of one matrix in precisions: all foretold, and those measured that somebody wants to choose.

    Forms with a core meet it as a front (:class:`btcompress.pricing.curves.Front`).

    Args:
        rounder: rounds and measures.
        precisions: beside the matrix's own dtype.
        own: whether forms in that dtype count, too.
        room: how large the matrix may be; None for any size.
        low_rank: as :class:`btcompress.pricing.Curve` has it, before rounding to the dtype.
        stake: likewise.
    """

    def __init__(
        self,
        rounder: Rounder,
        precisions: Sequence[Precision],
        room: Room | None,
        *,
        own: bool,
        low_rank: Sequence[Point] = (),
        stake: float = 1.0,
    ) -> None:
        self._rounder = rounder
        self._dtype = rounder.matrix.dtype
        self._precisions = tuple(precisions)
        self._own = own
        self._room = room
        self._stake = stake
        self._low_rank = stored(low_rank, rounder.matrix)
        self._candidates: list[_Candidate] = []
        self._factors: dict[tuple[str, Precision], float] = {}
        on_inputs = rounder.samples is not None
        self._latest = {kind: factors[on_inputs] for kind, factors in _FACTORS.items()}
        self._lost: dict[Precision, float] = {}
        self._front: list[tuple[int, float]] | None = None

    def target(self, shape: MatrixShape) -> float:
        """The largest error of a form of this shape with which it could be worth anything in some precision."""
        front, best = self._reached(), 0.0
        least, most = (0.0, math.inf) if self._room is None else (self._room.mean * _LEAST_SHARE, self._room.most)
        if not front or front[0][0] > least:
            least = 0.0
        for precision in (*self._precisions, *([self._dtype] if self._own else [])):
            n_bytes = form_bytes(shape, precision)
            if least <= n_bytes <= most:
                known = _error_within(front, n_bytes)
                lost = min(_LEAST_FACTOR * self._share_lost(precision), 0.99)
                best = max(best, math.sqrt(max(known**2 - lost, 0.0) / (1 - lost)))
        return best

    def offer(self, point: Point, parts: Callable[[], Sequence[BlockTerm]]) -> None:
        """Take in a form with a core whose error fell below its target."""
        self._add([point], "with core", lambda _: parts)

    def add_without_core(self, points: Sequence[Point]) -> None:
        """Take in forms without a core, and any with orders, which can only be stored in the matrix's own dtype."""
        most: dict[MatrixShape, int] = {}
        for shape in map(_shape, points):
            most[_modes(shape)] = max(most.get(_modes(shape), 0), shape.part.ranks[0])

        def parts_of(shape: MatrixShape) -> Parts | None:
            most_rank = most[_modes(shape)]
            return None if shape.part.order_sizes else partial(self._rounder.without_core, shape, most_rank)

        self._add(points, "without core", parts_of)

    def add_dense(self, *, rivals: bool) -> None:
        """Take in the dense matrix in every precision.

        Args:
            rivals: measure those that any plan is held against.
        """
        rows, columns = self._rounder.matrix.shape
        rival = {(bits, _groups_of(columns, group)) for bits, group in _RIVALS} if rivals else set()
        for precision in self._precisions:
            n_bytes = bytes_of((rows, columns), precision)
            if n_bytes < self._rounder.matrix.nbytes and (self._room is None or n_bytes <= self._room.most):
                candidate = _Candidate(None, precision, n_bytes, 0.0, "dense")
                self._candidates.append(candidate)
                if isinstance(precision, Integers) and (precision.bits, precision.n_groups(columns)) in rival:
                    self._measure(candidate)
        self._front = None

    def curve(self) -> Curve:
        """What no other beats in bytes and error, foretold or measured."""
        points, best = [], math.inf
        for _, _, candidate in self._sorted():
            point = self._point(candidate)
            if point.measured:
                best = point.error
            elif point.error > (1 - _ALIKE) * best:
                continue
            points.append(point)
        dense = [each.point for each in self._candidates if each.kind == "dense" and each.point is not None]
        return Curve(
            tuple(points),
            self._low_rank,
            self._rounder.matrix.numel(),
            self._stake,
            self._rounder.samples is not None,
            self._dtype,
            tuple(front_of(dense, lambda point: point.n_bytes(self._dtype))),
        )

    def measure(self, point: Point) -> Point:
        """Really round and measure what was foretold."""
        key = (point.shape, point.precision)
        candidate = next(each for each in self._candidates if (each.shape, each.precision) == key)
        self._measure(candidate)
        return self._point(candidate)

    def _add(self, points: Sequence[Point], kind: str, parts_of: Callable[[MatrixShape], Parts | None]) -> None:
        in_own_dtype = stored(points, self._rounder.matrix) if self._own else ()
        for point in in_own_dtype:
            shape = _shape(point)
            n_bytes = form_bytes(shape, self._dtype)
            self._candidates.append(_Candidate(shape, self._dtype, n_bytes, point.error, kind, None, point))
        for point in points:
            shape = _shape(point)
            parts = parts_of(shape)
            for precision in self._precisions if parts is not None else ():
                n_bytes = form_bytes(shape, precision)
                if self._room is None or n_bytes <= self._room.most:
                    self._candidates.append(_Candidate(shape, precision, n_bytes, point.error, kind, parts))
        self._front = None

    def _share_lost(self, precision: Precision) -> float:
        if precision == self._dtype:
            return 0.0
        if precision not in self._lost:
            self._lost[precision] = self._rounder.share_lost(precision)
        return self._lost[precision]

    def _foretold(self, candidate: _Candidate) -> float:
        if candidate.point is not None:
            return candidate.point.error
        factor = self._factors.get((candidate.kind, candidate.precision), self._latest[candidate.kind])
        lost = factor * self._share_lost(candidate.precision)
        square = min(candidate.error**2, 1.0)
        return math.sqrt(square + (1 - square) * min(lost, 1.0))

    def _measure(self, candidate: _Candidate) -> None:
        precision = candidate.precision
        if candidate.parts is None:
            loss = self._rounder.dense(precision)
        else:
            loss = self._rounder.form(candidate.parts(), precision)
        candidate.point = Point(candidate.shape, loss.error, loss.activation_error, precision, self._size_of(candidate))
        lost, kept = self._share_lost(precision), 1 - candidate.error**2
        if lost > 0 and kept > 0 and loss.error < 1:
            factor = max((loss.error**2 - candidate.error**2) / kept / lost, 0.0)
            self._factors[candidate.kind, precision] = self._latest[candidate.kind] = factor
        self._front = None

    def _point(self, candidate: _Candidate) -> Point:
        if candidate.point is not None:
            return candidate.point
        error, size = self._foretold(candidate), self._size_of(candidate)
        return Point(candidate.shape, error, None, candidate.precision, size, measured=False)

    def _size_of(self, candidate: _Candidate) -> tuple[int, int]:
        rows, columns = self._rounder.matrix.shape
        return (rows, columns) if candidate.shape is None else (0, 0)

    def _sorted(self) -> list[tuple[int, float, _Candidate]]:
        """What no other beats, by rising bytes."""
        every = [(each.n_bytes, self._foretold(each)) for each in self._candidates]
        front: list[tuple[int, float, _Candidate]] = []
        for n in sorted(range(len(every)), key=every.__getitem__):
            n_bytes, error = every[n]
            if math.isfinite(error) and (not front or error < front[-1][1]):
                front.append((n_bytes, error, self._candidates[n]))
        return front

    def _reached(self) -> list[tuple[int, float]]:
        if self._front is None:
            self._front = [(n_bytes, error) for n_bytes, error, _ in self._sorted()]
        return self._front


def price_in_bits(
    matrix: Tensor,
    without_core: Sequence[MatrixShape],
    with_core: Sequence[FormsWithCore],
    precision: Precision | None = None,
    samples: Samples | None = None,
    *,
    others: Sequence[Point] = (),
    room: Room | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> BitCurve:
    """Price the forms of one matrix in every precision.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        without_core: as for :func:`btcompress.pricing.price`.
        with_core: likewise.
        precision: the only one to price; None for all of :func:`precisions_for`.
        samples: what the matrix meets; None to price by its entries.
        others: forms with orders, which can only be stored in the matrix's own dtype.
        room: how large the matrix may be; None for any size.
        seed: of the random starts of several blocks.
        device: where to compute.
        on_step: called with steps done and steps in all.

    Raises:
        BTCompressError: the matrix is not finite, or pricing would take more memory than there is.
    """
    check_finite(matrix)
    device = torch.device(device)
    n_steps = 1 + len(with_core)

    def step(done: int) -> None:
        if on_step is not None:
            on_step(done, n_steps)

    if samples is None:
        plain = price(matrix, without_core, (), seed=seed, device=device)
    else:
        plain = price_on_inputs(matrix, without_core, (), samples, seed=seed, device=device)
    every = precisions_for(matrix) if precision is None else () if obstacle_to(precision, matrix) else (precision,)
    curve = BitCurve(
        Rounder(matrix, samples, device),
        [each for each in every if each != matrix.dtype],
        room,
        own=precision in (None, matrix.dtype),
        low_rank=plain.low_rank,
        stake=plain.stake,
    )
    curve.add_without_core([*plain.points, *others])
    curve.add_dense(rivals=precision is None)
    step(1)
    few = None if samples is None else quick_samples(matrix, samples)
    for done, forms in enumerate(with_core, 2):
        if few is not None:
            offer_with_core_on(curve, matrix, forms, few, device, seed)
        else:
            offer_with_core(curve, matrix, forms, device, seed)
        step(done)
    return curve


def _shape(point: Point) -> MatrixShape:
    if point.shape is None:
        raise ValueError("the point has no form")
    return point.shape


def _modes(shape: MatrixShape) -> MatrixShape:
    """A shape without its ranks."""
    return replace(shape, part=replace(shape.part, ranks=(1,) * shape.part.order))


def _groups_of(columns: int, group: int | None) -> int:
    return 1 if group is None else math.ceil(columns / group)


def _error_within(front: Sequence[tuple[int, float]], n_bytes: int) -> float:
    """The error that is reached in so many bytes; 1 where there is nothing so small."""
    position = bisect_right(front, n_bytes, key=lambda each: each[0])
    return front[position - 1][1] if position else 1.0
