"""From a wish to a plan: price the forms of every matrix, and choose among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from btcompress.checkpoint import Checkpoint
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import Samples, explained, frobenius_norm, largest
from btcompress.modes import ShapeRequest
from btcompress.orders import obstacle_to_orders
from btcompress.plan.budget import allocate
from btcompress.plan.candidates import candidates
from btcompress.plan.choice import Fallback, Plan, PlannedMatrix
from btcompress.plan.wish import Wish
from btcompress.pricing import Curve, Point, price, price_in_orders, price_on_inputs
from btcompress.results import LeftDense, PricingProgress
from btcompress.text import listed

OnPricing = Callable[[PricingProgress], None]


@dataclass(frozen=True, slots=True)
class ChosenForm:
    """What a planner chose for one matrix, and among what.

    Attributes:
        name: the matrix's key in the checkpoint.
        size: its rows and columns.
        point: the form chosen; None leaves the matrix dense.
        low_rank: the best low-rank form with no more parameters; None if there is none so small.
        reason: why the matrix stays dense; empty where it does not.
        curve: the forms there were; errors include rounding to the matrix's dtype.
    """

    name: str
    size: tuple[int, int]
    point: Point | None
    low_rank: Point | None
    reason: str
    curve: Curve

    @property
    def n_params(self) -> int:
        """Parameters after."""
        return self.curve.dense_params if self.point is None else self.point.n_params


@dataclass(frozen=True, slots=True)
class PricedPlan:
    """A plan that meets a wish, and how it came about.

    Attributes:
        plan: what to do, as :func:`btcompress.factorize` takes it.
        wish: what was wished for.
        forms: one entry for each matrix that was chosen.
        params_of_model: entries of all tensors before.
    """

    plan: Plan
    wish: Wish
    forms: tuple[ChosenForm, ...]
    params_of_model: int

    @property
    def params_before(self) -> int:
        """Entries of the chosen matrices."""
        return sum(form.curve.dense_params for form in self.forms)

    @property
    def params_after(self) -> int:
        """Parameters of the forms chosen for them."""
        return sum(form.n_params for form in self.forms)


def meet(
    checkpoint: Checkpoint,
    chosen: Plan,
    wish: Wish,
    request: ShapeRequest = ShapeRequest(),
    *,
    samples: Mapping[str, Samples] | None = None,
    order_units: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnPricing | None = None,
) -> PricedPlan:
    """Choose forms for the matrices of a plan so that a wish is met at the least loss.

    With a budget of parameters, the sum over the matrices of the squared weight error is least, or of what their
    outputs on sample inputs add to the squared hidden-state error. These two cannot be compared, so where there are
    matrices of both kinds, each kind has a budget of its own, in proportion to its entries. Without a budget, each
    matrix gets the smallest form within the error wished for.

    Args:
        checkpoint: what the plan was made for.
        chosen: which matrices there are, those it would factorize; its shapes do not matter.
        wish: what to meet.
        request: modes and gates to keep to, where they fit; its ranks do not matter.
        samples: what matrices meet in the model, by their keys; these are priced on it, unless a weight error is
            wished for. All others are priced by their weight errors.
        order_units: price forms also in orders of rows and columns, whose integers count.
        seed: of the random starts of fits.
        device: where to compute.
        on_progress: called after each choice of modes of each matrix.

    Raises:
        CheckpointError: there is no matrix.
        BTCompressError: the wish cannot be met, it is for an activation error of a matrix without samples, or a
            matrix is not finite.
    """
    targets, samples = chosen.matrices, samples or {}
    if not targets:
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in chosen.left_dense)
        raise CheckpointError(
            f"{checkpoint.source.name}: there is no matrix to plan for."
            + (f" {reasons}." if reasons else " Give a checkpoint with an LSTM, or loosen the layer patterns.")
        )
    unmeasured = [target.name for target in targets if target.name not in samples]
    if wish.max_activation_error is not None and unmeasured:
        raise BTCompressError(
            f"an activation error was wished for, but there are no sample inputs of {', '.join(unmeasured)}. Give "
            "those of their layers (--calibration), or choose only matrices that have them."
        )
    curves: list[Curve] = []
    for index, target in enumerate(targets):

        def on_step(done: int, count: int, name: str = target.name, index: int = index) -> None:
            if on_progress is not None:
                on_progress(PricingProgress(name, index, len(targets), done / count))

        sample = samples.get(target.name) if wish.max_error is None else None
        curves.append(_priced(checkpoint, target, request, sample, seed, device, on_step, order_units=order_units))
    groups = _groups(curves, wish, checkpoint.source.n_params)
    picked = [each[0] if each else None for each in (_acceptable(curve, wish) for curve in curves)]
    for group in groups:
        for n, point in zip(group.members, _spend(group, curves, wish), strict=True):
            picked[n] = point
    short = {n for group in groups if group.budget < group.dense_params(curves) for n in group.members}
    forms = tuple(
        _form(target, curve, point, _why_dense(curve, wish, short=n in short) if point is None else "")
        for n, (target, curve, point) in enumerate(zip(targets, curves, picked, strict=True))
    )
    planned = tuple(
        PlannedMatrix(form.name, form.point.shape, _fallback(form, wish)) for form in forms if form.point is not None
    )
    left_dense = tuple(LeftDense(form.name, form.reason) for form in forms if form.point is None)
    on_inputs = {target.name for target, curve in zip(targets, curves, strict=True) if curve.on_inputs}
    obstacles = (
        (each.name, "they are priced on sample inputs" if each.name in on_inputs else obstacle_to_orders(each.shape))
        for each in targets
        if order_units
    )
    notices = (
        *_told_of_budgets(groups, curves, [target.name for target in targets]),
        *(f"{name}: none of its forms has an order, as {why}." for name, why in obstacles if why),
    )
    plan = replace(chosen, matrices=planned, left_dense=(*chosen.left_dense, *left_dense), notices=notices)
    return PricedPlan(plan, wish, forms, checkpoint.source.n_params)


def _priced(
    checkpoint: Checkpoint,
    target: PlannedMatrix,
    request: ShapeRequest,
    sample: Samples | None,
    seed: int,
    device: torch.device | str,
    on_step: Callable[[int, int], None],
    *,
    order_units: bool = False,
) -> Curve:
    shape, matrix = target.shape, checkpoint.tensors[target.name]
    n_gates = shape.n_parts * shape.part.n_gates
    tried = candidates(target.name, shape.out_size, shape.in_size, n_gates, request)
    forms = (matrix, tried.without_core, tried.with_core)
    try:
        with explained(f"pricing forms of its {shape.out_size} x {shape.in_size} entries"):
            if sample is not None:
                curve = price_on_inputs(*forms, sample, seed=seed, device=device, on_step=on_step)
            else:
                curve = price(*forms, seed=seed, device=device, on_step=on_step)
                if order_units:
                    curve = price_in_orders(matrix, curve, *forms[1:], seed=seed, device=device, on_step=on_step)
    except BTCompressError as error:
        raise type(error)(f"{target.name}: {error}") from error
    rounding, formed = torch.finfo(matrix.dtype).eps / 2, rounding_of_entries(matrix)

    def rounded(points: Sequence[Point]) -> tuple[Point, ...]:
        # Each tensor of a form is off by about this share once it is stored, and so is the matrix formed from them.
        return tuple(
            replace(point, error=math.hypot(point.error, rounding * len(point.shape.part.tensor_shapes) ** 0.5, formed))
            for point in points
        )

    return replace(curve, points=rounded(curve.points), low_rank=rounded(curve.low_rank))


def _limited(wish: Wish) -> tuple[str, float | None, Callable[[Point], float]]:
    """Which error of a form the wish limits, what it may be at most, and how to read it."""
    if wish.max_activation_error is not None:
        return "activation", wish.max_activation_error, lambda point: point.activation_error or 0.0
    return "weight", wish.max_error, lambda point: point.error


def _acceptable(curve: Curve, wish: Wish) -> list[Point]:
    """The forms within the error wished for, the smallest first."""
    _, limit, error_of = _limited(wish)
    return [point for point in curve.points if limit is None or error_of(point) <= limit]


@dataclass(frozen=True, slots=True)
class _Group:
    """Matrices whose errors can be compared, and what they may have together.

    Attributes:
        members: their positions among all.
        budget: most parameters of them.
        on_inputs: whether they are priced on sample inputs.
    """

    members: tuple[int, ...]
    budget: int
    on_inputs: bool

    def dense_params(self, curves: Sequence[Curve]) -> int:
        """Their entries."""
        return sum(curves[n].dense_params for n in self.members)


def _groups(curves: Sequence[Curve], wish: Wish, params_of_model: int) -> list[_Group]:
    """A budget for those priced on inputs and one for the others; no group where there is no limit.

    Raises:
        BTCompressError: the smallest forms have more parameters than there may be.
    """
    kinds = [kind for kind in (True, False) if any(curve.on_inputs is kind for curve in curves)]
    members = [tuple(n for n, curve in enumerate(curves) if curve.on_inputs is kind) for kind in kinds]
    dense = [sum(curves[n].dense_params for n in own) for own in members]
    budget, shares = wish.budget(sum(dense), params_of_model), wish.budgets(dense, params_of_model)
    if budget is None or shares is None:
        return []
    least = [sum(_smallest(curves[n], wish) for n in own) for own in members]
    if sum(least) > budget:
        raise BTCompressError(_out_of_reach(wish, budget, sum(least), curves, params_of_model))
    for n, needed in enumerate(least):
        if needed > shares[n]:  # of two groups, then, the other has room
            shares[n], shares[1 - n] = needed, budget - needed
    return [_Group(*each) for each in zip(members, shares, kinds, strict=True)]


def _smallest(curve: Curve, wish: Wish) -> int:
    return min((point.n_params for point in _acceptable(curve, wish)), default=curve.dense_params)


def _spend(group: _Group, curves: Sequence[Curve], wish: Wish) -> list[Point | None]:
    """One form for each matrix of a group, or None to leave it dense: the least sum of squared losses in the budget."""
    own = [curves[n] for n in group.members]
    choices = [[*_acceptable(curve, wish), None] for curve in own]
    options = [
        [
            (curve.dense_params, 0.0) if point is None else (point.n_params, (curve.stake * point.error) ** 2)
            for point in each
        ]
        for each, curve in zip(choices, own, strict=True)
    ]
    chosen = allocate(options, group.budget)
    if chosen is None:
        raise ValueError("the smallest forms are larger than the budget")
    return [each[n] for each, n in zip(choices, chosen, strict=True)]


def _told_of_budgets(groups: Sequence[_Group], curves: Sequence[Curve], names: Sequence[str]) -> Iterator[str]:
    """What to know where errors of two kinds met."""
    if len(groups) < 2:
        return
    with_inputs, without = groups
    yield (
        f"There are no sample inputs of {listed([names[n] for n in without.members])}: priced by their weight errors, "
        f"with a budget of their own of {without.budget:,} of {without.dense_params(curves):,} parameters. Those with "
        f"sample inputs have {with_inputs.budget:,} of {with_inputs.dense_params(curves):,}."
    )


def _out_of_reach(wish: Wish, budget: int, least: int, curves: Sequence[Curve], params_of_model: int) -> str:
    before = sum(curve.dense_params for curve in curves)
    others = params_of_model - before if wish.of == "model" else 0
    room = f"{max(budget, 0):,} parameters" if budget > 0 else "no parameters"
    what, limit, _ = _limited(wish)
    within = f" with {what} errors of at most {limit:g}" if limit is not None else ""
    beside = f", beside {others:,} of other tensors" if others else ""
    reach = (before + others) / (least + others)
    return (
        f"{wish} leaves {room} to the matrices chosen ({len(curves)}){beside}, but the smallest forms{within} have "
        f"{least:,}. What is in reach is {least + others:,} parameters, a ratio of {math.floor(reach * 100) / 100:g}: "
        "wish for that, allow a larger error, or choose more matrices."
    )


def _form(target: PlannedMatrix, curve: Curve, point: Point | None, reason: str) -> ChosenForm:
    size = (target.shape.out_size, target.shape.in_size)
    low_rank = curve.low_rank_within(curve.dense_params if point is None else point.n_params)
    return ChosenForm(target.name, size, point, low_rank, reason, curve)


def _why_dense(curve: Curve, wish: Wish, *, short: bool) -> str:
    """Why a matrix stays dense; ``short`` says that not all of its budget's matrices can."""
    if not curve.points:
        return f"no form has fewer parameters than its {curve.dense_params:,}"
    what, limit, error_of = _limited(wish)
    if limit is not None and not _acceptable(curve, wish):
        closest = min(curve.points, key=error_of)
        return (
            f"no smaller form keeps its {what} error within {limit:g}; the closest reaches {error_of(closest):.3g} "
            f"with {closest.n_params:,} of {curve.dense_params:,} parameters"
        )
    if not short:
        return "the budget has room for all matrices as they are"
    closest = curve.points[-1]
    error = f"{'weighted activation' if curve.on_inputs else 'weight'} error {closest.error:.3g}"
    return (
        f"even its most accurate form ({closest.n_params:,} of {curve.dense_params:,} parameters, {error}) would lose "
        "more than the other matrices gain by what it saves"
    )


def _fallback(form: ChosenForm, wish: Wish) -> Fallback | None:
    """What is fitted exactly, for a form whose fit may come out worse than foreseen."""
    if form.point is None or form.curve.on_inputs:
        return None  # what is priced on inputs is fitted to them later, where a weight error means nothing
    part = form.point.shape.part
    if part.core == "identity" and not part.order_sizes:
        return None
    at_equal_size = math.inf if form.low_rank is None else form.low_rank.error
    if wish.max_error is not None and wish.max_error < at_equal_size:
        within = (point.shape for point in form.curve.low_rank if point.error <= wish.max_error)
        return Fallback(wish.max_error, next(within, None))
    return None if form.low_rank is None else Fallback(at_equal_size, form.low_rank.shape)
