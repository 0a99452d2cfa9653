"""What sizes are about, in parameters or in bytes, and who may have how much of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from btcompress.errors import BTCompressError
from btcompress.modes import Objective
from btcompress.packing import Precision
from btcompress.plan.budget import allocate, allocate_fast
from btcompress.plan.filesize import bytes_to_describe
from btcompress.plan.speed import MARGIN, slowness, weighed
from btcompress.plan.wish import Wish
from btcompress.pricing import Curve, Point
from btcompress.text import listed

#: More than any size.
_BEYOND = 2**62


@dataclass(frozen=True, slots=True)
class Ledger:
    """How the sizes of a plan are counted.

    Attributes:
        wish: what is to be met.
        names: keys of the matrices.
        of_model: entries of all tensors before, or their bytes.
        beside: bytes of a file beside the matrices; None where sizes are not those of a file.
        precision: the only one allowed, so that no matrix that can be stored so stays as it is; None for any.
        objective: whether the time of forms counts too.
    """

    wish: Wish
    names: tuple[str, ...]
    of_model: int
    beside: int | None = None
    precision: Precision | None = None
    objective: Objective = "size"

    def size(self, n: int, curve: Curve, point: Point | None) -> int:
        """Size of matrix ``n`` in a form, or as it is; of a file, with what describes it."""
        size = curve.dense_size if point is None else curve.size_of(point)
        if self.beside is None:
            return size
        shape, precision = (None, None) if point is None else (point.shape, point.precision)
        return size + bytes_to_describe(self.names[n], shape, precision, on_inputs=curve.on_inputs)

    def choices(self, curve: Curve) -> list[Point | None]:
        """What a matrix may become: its forms within the error wished for, the smallest first, and None to stay."""
        points: list[Point | None] = [*acceptable(curve, self.wish)]
        return [*points, None] if self.precision in (None, curve.dtype) or not curve.points else points

    def smallest(self, n: int, curve: Curve) -> tuple[int, Point | None]:
        """The size of the smallest choice of matrix ``n``, and the choice; beyond all sizes where there is none."""
        sizes = ((self.size(n, curve, point), point) for point in self.choices(curve))
        return min(sizes, key=lambda each: each[0], default=(_BEYOND, None))

    def first(self, n: int, curve: Curve) -> Point | None:
        """What matrix ``n`` becomes where there is no budget: the smallest choice, or the fastest about as small."""
        choices = self.choices(curve)
        smallest = next(iter(choices), None)
        if self.objective == "size" or smallest is None:
            return smallest
        limit = MARGIN * self.size(n, curve, smallest)
        equals = [point for point in choices if point is not None and self.size(n, curve, point) <= limit]
        return min(equals, key=lambda point: slowness(curve, point))

    def loss(self, curve: Curve, point: Point | None) -> float:
        """What a choice loses of what is to be least in all."""
        if point is None:
            return 0.0
        loss = (curve.stake * point.error) ** 2
        return loss if self.objective == "size" else weighed(loss, curve, point)

    def fits(self, curves: Sequence[Curve]) -> bool:
        """Whether the smallest choices are within the wish."""
        least = sum(self.smallest(n, curve)[0] for n, curve in enumerate(curves))
        budget = self._budget(curves)
        return least < _BEYOND and (budget is None or least <= budget)

    def groups(self, curves: Sequence[Curve]) -> list[Group]:
        """A budget for those priced on inputs and one for the others; no group where there is no limit.

        Raises:
            BTCompressError: the smallest choices are larger than there may be, or a matrix has none.
        """
        if not self.fits(curves):
            raise BTCompressError(self._out_of_reach(curves))
        kinds = [kind for kind in (True, False) if any(curve.on_inputs is kind for curve in curves)]
        members = [tuple(n for n, curve in enumerate(curves) if curve.on_inputs is kind) for kind in kinds]
        budget = self._budget(curves)
        dense = [sum(curves[n].dense_size for n in own) for own in members]
        shares = self.wish.budgets(dense, self.of_model, self.beside)
        if budget is None or shares is None:
            return []
        for n, own in enumerate(members):
            needed = sum(self.smallest(m, curves[m])[0] for m in own)
            if needed > shares[n]:  # of two groups, then, the other has room
                shares[n], shares[1 - n] = needed, budget - needed
        return [Group(*each) for each in zip(members, shares, kinds, strict=True)]

    def _budget(self, curves: Sequence[Curve]) -> int | None:
        return self.wish.budget(sum(curve.dense_size for curve in curves), self.of_model, self.beside)

    def spend(self, group: Group, curves: Sequence[Curve]) -> list[Point | None]:
        """One choice for each matrix of a group: the least sum of losses within the budget."""
        choices = [self.choices(curves[n]) for n in group.members]
        options = [
            [(self.size(n, curves[n], point), self.loss(curves[n], point)) for point in each]
            for n, each in zip(group.members, choices, strict=True)
        ]
        # Over forms and bits there are many choices that are nearly alike.
        chosen = (allocate_fast if curves[group.members[0]].dtype else allocate)(options, group.budget)
        if chosen is None:
            raise ValueError("the smallest forms are larger than the budget")
        return [each[n] for each, n in zip(choices, chosen, strict=True)]

    def _out_of_reach(self, curves: Sequence[Curve]) -> str:
        for name, curve in zip(self.names, curves, strict=True):
            if not self.choices(curve):
                what, limit, error_of = limited(self.wish)
                closest = min(map(error_of, curve.points))
                return (
                    f"{name}: no form in this precision keeps its {what} error within {limit:g}; the closest reaches "
                    f"{closest:.3g}. Allow a larger error, or more bits."
                )
        least, budget = sum(self.smallest(n, curve)[0] for n, curve in enumerate(curves)), self._budget(curves) or 0
        before = sum(curve.dense_size for curve in curves)
        unit = "bytes" if self.wish.in_bytes else "parameters"
        others = 0
        if self.wish.of_all:
            others = self.of_model - before if self.beside is None else self.beside
        room = f"{max(budget, 0):,} {unit}" if budget > 0 else f"no {unit}"
        what, limit, _ = limited(self.wish)
        within = f" with {what} errors of at most {limit:g}" if limit is not None else ""
        beside = f", beside {others:,} of other tensors" if others else ""
        beside += " and the header" if others and self.beside is not None else ""
        reach = (self.of_model if self.wish.of_all else before) / (least + others)
        return (
            f"{self.wish} leaves {room} to the matrices chosen ({len(curves)}){beside}, but the smallest forms{within} "
            f"have {least:,}. What is in reach is {least + others:,} {unit}, a ratio of "
            f"{math.floor(reach * 100) / 100:g}: wish for that, allow a larger error, or choose more matrices."
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices whose errors can be compared, and what they may have together.

    Attributes:
        members: their positions among all.
        budget: most parameters, or bytes, of them.
        on_inputs: whether they are priced on sample inputs.
    """

    members: tuple[int, ...]
    budget: int
    on_inputs: bool

    def dense_size(self, curves: Sequence[Curve]) -> int:
        """Their size as they are."""
        return sum(curves[n].dense_size for n in self.members)


def told_of_budgets(groups: Sequence[Group], curves: Sequence[Curve], ledger: Ledger) -> Iterator[str]:
    """What to know where errors of two kinds met."""
    if len(groups) < 2:
        return
    with_inputs, without = groups
    unit = "bytes" if ledger.wish.in_bytes else "parameters"
    yield (
        f"There are no sample inputs of {listed([ledger.names[n] for n in without.members])}: priced by their weight "
        f"errors, with a budget of their own of {without.budget:,} of {without.dense_size(curves):,} {unit}. Those "
        f"with sample inputs have {with_inputs.budget:,} of {with_inputs.dense_size(curves):,}."
    )


def limited(wish: Wish) -> tuple[str, float | None, Callable[[Point], float]]:
    """Which error of a form the wish limits, what it may be at most, and how to read it."""
    if wish.max_activation_error is not None:
        # Of what is not measured yet nothing but the weighted error is foretold, which is near.
        return "activation", wish.max_activation_error, _activation_error
    return "weight", wish.max_error, lambda point: point.error


def _activation_error(point: Point) -> float:
    return point.error if point.activation_error is None else point.activation_error


def acceptable(curve: Curve, wish: Wish) -> list[Point]:
    """The forms within the error wished for, the smallest first."""
    _, limit, error_of = limited(wish)
    return [point for point in curve.points if limit is None or error_of(point) <= limit]
