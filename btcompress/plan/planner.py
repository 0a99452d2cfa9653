"""From a wish to a plan: price the forms of every matrix, and choose among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from btcompress.checkpoint import Checkpoint
from btcompress.checkpoint.tensors import count_bytes
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import Samples, explained
from btcompress.modes import Objective, ShapeRequest
from btcompress.orders import obstacle_to_orders
from btcompress.packing import Precision, precision_text
from btcompress.plan.candidates import Candidates, candidates
from btcompress.plan.choice import Fallback, Plan, PlannedMatrix, PlannedRounding
from btcompress.plan.filesize import bytes_beside
from btcompress.plan.ledger import Group, Ledger, acceptable, limited, told_of_budgets
from btcompress.plan.priced import ChosenForm, PricedPlan
from btcompress.plan.wish import Wish
from btcompress.pricing import (
    BitCurve,
    Curve,
    Point,
    Room,
    obstacle_to,
    price,
    price_in_bits,
    price_in_orders,
    price_on_inputs,
    stored,
)
from btcompress.pricing.roundings import Rounder
from btcompress.results import LeftDense, PricingProgress

OnPricing = Callable[[PricingProgress], None]
#: Allocations after which nothing more is rounded, but where even the smallest forms are only foretold.
_ALLOCATIONS = 12
#: What takes no more than this part of a matrix's bytes is priced even where a wish leaves less than that in all.
_PRICED_ANYWAY = 16


def meet(
    checkpoint: Checkpoint,
    chosen: Plan,
    wish: Wish,
    request: ShapeRequest = ShapeRequest(),
    *,
    samples: Mapping[str, Samples] | None = None,
    precision: Precision | None = None,
    others: torch.dtype | None = None,
    order_units: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: OnPricing | None = None,
) -> PricedPlan:
    """Choose forms for the matrices of a plan, and precisions, so that a wish is met at the least loss.

    With a budget of parameters or bytes, the sum over the matrices of the squared weight error is least, or of what
    their outputs on sample inputs add to the squared hidden-state error. These two cannot be compared, so where there
    are matrices of both kinds, each kind has a budget of its own, in proportion to its size. Without a budget, each
    matrix gets the smallest form within the error wished for. Where the objective of the request is speed, the time of
    forms counts as :mod:`btcompress.plan.speed` says.

    Where sizes are bytes, a matrix may become any form in any precision, or stay dense in any. Whatever is chosen was
    really rounded; what else a curve shows may be foretold.

    Args:
        checkpoint: what the plan was made for.
        chosen: which matrices there are, those it would factorize; its shapes do not matter.
        wish: what to meet.
        request: modes, gates and objective to keep to, modes where they fit; its ranks do not matter.
        samples: what matrices meet in the model, by their keys; these are priced on it, unless a weight error is
            wished for. All others are priced by their weight errors.
        precision: of all matrices. With a wish in bytes the only one that is priced; with one in parameters, what forms
            are stored in that were chosen in the matrices' own dtypes. With an error alone, sizes are then bytes.
        others: what all other tensors are going to be stored as, for the size of a file; None for what they are.
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
            + (
                f" {reasons}."
                if reasons
                else " Give a checkpoint with a recurrent layer, or loosen the layer patterns."
            )
        )
    unmeasured = [target.name for target in targets if target.name not in samples]
    if wish.max_activation_error is not None and unmeasured:
        raise BTCompressError(
            f"an activation error was wished for, but there are no sample inputs of {', '.join(unmeasured)}. Give "
            "those of their layers (--calibration), or choose only matrices that have them."
        )
    in_bytes = wish.in_bytes or (precision is not None and not wish.has_size)
    if precision is not None and not in_bytes and wish.errors != (None, None):
        raise BTCompressError(
            f"{wish} was wished for, stored as {precision_text(precision)}. Rounding adds to errors, which parameters "
            "do not pay for: wish for a size in bytes (--max-bytes, or --of bytes), or leave the bits or the error out."
        )
    on = samples if wish.max_error is None else {}
    planner = _Planner(checkpoint, targets, wish, on, in_bytes, precision, others, request.objective)
    planner.price(request, order_units, seed, device, on_progress)
    planner.choose()
    return planner.priced(chosen, order_units=order_units)


class _Planner:
    """One plan in the making."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        targets: Sequence[PlannedMatrix],
        wish: Wish,
        samples: Mapping[str, Samples],
        in_bytes: bool,
        precision: Precision | None,
        others: torch.dtype | None,
        objective: Objective,
    ) -> None:
        self._tensors, self._params_of_model = checkpoint.tensors, checkpoint.source.n_params
        self._targets = targets
        self._wish = wish
        self._samples = samples
        self._in_bytes = in_bytes
        self._precision = precision
        self._bytes_of_model = count_bytes(checkpoint.tensors)
        names = tuple(target.name for target in targets)
        counted = in_bytes and wish.of_all
        beside = bytes_beside(checkpoint.tensors, names, others, checkpoint.layout) if counted else None
        of_model = self._bytes_of_model if in_bytes else self._params_of_model
        self._ledger = Ledger(wish, names, of_model, beside, precision if in_bytes else None, objective)
        self._bits: list[BitCurve] = []
        self._curves: list[Curve] = []
        self._groups: list[Group] = []
        self._picked: list[Point | None] = []

    def price(
        self,
        request: ShapeRequest,
        order_units: bool,
        seed: int,
        device: torch.device | str,
        on_progress: OnPricing | None,
    ) -> None:
        """Price the forms of every matrix."""
        for index, target in enumerate(self._targets):

            def on_step(done: int, count: int, name: str = target.name, index: int = index) -> None:
                if on_progress is not None:
                    on_progress(PricingProgress(name, index, len(self._targets), done / count))

            shape, matrix = target.shape, self._tensors[target.name]
            tried = candidates(target.name, shape.out_size, shape.in_size, shape.n_gates, request)
            job = _Job(matrix, tried, self._samples.get(target.name), seed, device, on_step, order_units=order_units)
            try:
                with explained(f"pricing forms of its {shape.out_size} x {shape.in_size} entries"):
                    if self._in_bytes:
                        self._bits.append(job.in_bits(self._precision, self._room(matrix)))
                    else:
                        self._curves.append(job.in_params())
            except BTCompressError as error:
                raise type(error)(f"{target.name}: {error}") from error

    def choose(self) -> None:
        """Spend what there is; where sizes are bytes, round what is to be chosen and spend anew, until all of it is."""
        ledger, n_allocations = self._ledger, 0
        while True:
            n_allocations += 1
            if self._in_bytes:
                self._curves = [each.curve() for each in self._bits]
            curves = self._curves
            if n_allocations > _ALLOCATIONS:
                known = [replace(each, points=tuple(p for p in each.points if p.measured)) for each in curves]
                curves = known if ledger.fits(known) else curves
            if ledger.fits(curves):
                self._groups, self._picked = self._spent(curves)
                wanted = list(enumerate(self._picked))
            else:
                wanted = [(n, ledger.smallest(n, curve)[1]) for n, curve in enumerate(curves)]
            unsure = [(n, point) for n, point in wanted if point is not None and not point.measured]
            if not unsure:
                # Where nothing fits, this says so.
                self._groups = ledger.groups(curves)
                return
            for n, point in unsure:
                with explained(f"rounding {self._targets[n].name}"):
                    self._bits[n].measure(point)

    def priced(self, chosen: Plan, *, order_units: bool) -> PricedPlan:
        """The plan, and all that there is to say of it."""
        forms = tuple(map(self._form, range(len(self._targets))))
        if self._precision is not None and not self._in_bytes:
            forms = tuple(map(self._stored, forms))
        planned = tuple(
            PlannedMatrix(form.name, form.point.shape, self._fallback(form), form.point.precision)
            for form in forms
            if form.point is not None and form.point.shape is not None
        )
        rounded = tuple(
            PlannedRounding(form.name, form.size, form.point.precision)
            for form in forms
            if form.point is not None and form.point.shape is None and form.point.precision is not None
        )
        left_dense = tuple(LeftDense(form.name, form.reason) for form in forms if form.point is None)
        notices = (*told_of_budgets(self._groups, self._curves, self._ledger), *self._told(order_units=order_units))
        plan = replace(
            chosen,
            matrices=planned,
            rounded=rounded,
            left_dense=(*chosen.left_dense, *left_dense),
            notices=notices,
        )
        ledger = self._ledger
        sizes = [
            ledger.size(n, curve, form.point) for n, (curve, form) in enumerate(zip(self._curves, forms, strict=True))
        ]
        return PricedPlan(
            plan,
            self._wish,
            forms,
            self._params_of_model,
            self._bytes_of_model,
            self._in_bytes,
            None if ledger.beside is None else ledger.beside + sum(sizes),
        )

    def _room(self, matrix: Tensor) -> Room | None:
        """What the wish leaves to a matrix; None where it does not say."""
        ledger = self._ledger
        dense = sum(self._tensors[name].nbytes for name in ledger.names)
        budget = self._wish.budget(dense, ledger.of_model, ledger.beside)
        if budget is None:
            return None
        mean = max(budget, 0) * matrix.nbytes // max(dense, 1)
        return Room(mean, max(budget, matrix.nbytes // _PRICED_ANYWAY))

    def _spent(self, curves: Sequence[Curve]) -> tuple[list[Group], list[Point | None]]:
        groups = self._ledger.groups(curves)
        picked = [self._ledger.first(n, curve) for n, curve in enumerate(curves)]
        for group in groups:
            for n, point in zip(group.members, self._ledger.spend(group, curves), strict=True):
                picked[n] = point
        return groups, picked

    def _form(self, n: int) -> ChosenForm:
        target, curve, point = self._targets[n], self._curves[n], self._picked[n]
        size = curve.dense_size if point is None else curve.size_of(point)
        return ChosenForm(
            target.name,
            (target.shape.out_size, target.shape.in_size),
            point,
            curve.low_rank_within(size),
            self._why_dense(n) if point is None else "",
            curve,
            self._tensors[target.name].dtype,
            curve.rounding_within(size),
        )

    def _stored(self, form: ChosenForm) -> ChosenForm:
        """A form that was chosen in its own dtype, in the precision that all are to be stored in."""
        matrix, precision = self._tensors[form.name], self._precision
        if precision is None or precision == matrix.dtype or obstacle_to(precision, matrix):
            return form
        if form.point is not None:
            return replace(form, point=replace(form.point, precision=precision, measured=False))
        loss = Rounder(matrix, self._samples.get(form.name), torch.device("cpu")).dense(precision)
        return replace(form, point=Point(None, loss.error, loss.activation_error, precision, form.size), reason="")

    def _fallback(self, form: ChosenForm) -> Fallback | None:
        """What is taken, and comes out as foreseen, for a form whose fit may come out worse."""
        point = form.point
        if point is None or point.shape is None or form.curve.on_inputs:
            return None  # what is priced on inputs is fitted to them later, where a weight error means nothing
        part, rounded = point.shape.part, point.precision not in (None, form.dtype)
        if rounded and not self._in_bytes:
            return None  # it was chosen by the error that it has before it is rounded
        if part.core == "identity" and not part.order_sizes and not rounded:
            return None
        rivals = [each for each in (form.low_rank, form.rounding) if each is not None]
        at_equal_size = min((each.error for each in rivals), default=math.inf)
        limit = self._wish.max_error
        if limit is not None and limit < at_equal_size:
            every = sorted((*form.curve.low_rank, *form.curve.roundings), key=form.curve.size_of)
            within = next((each for each in every if each.error <= limit), None)
            return Fallback(limit, None) if within is None else Fallback(limit, within.shape, within.precision)
        if not rivals:
            return None
        best = min(rivals, key=lambda each: each.error)
        return Fallback(at_equal_size, best.shape, best.precision)

    def _why_dense(self, n: int) -> str:
        """Why a matrix stays as it is."""
        curve, wish = self._curves[n], self._wish
        whole = f"{curve.dense_size:,} {'bytes' if self._in_bytes else 'parameters'}"
        if not curve.points:
            obstacle = obstacle_to(self._precision, self._tensors[self._targets[n].name]) if self._precision else ""
            return obstacle or f"no form has fewer {whole.split(' ')[1]} than its {whole.split(' ')[0]}"
        what, limit, error_of = limited(wish)
        if limit is not None and not acceptable(curve, wish):
            closest = min(curve.points, key=error_of)
            return (
                f"no smaller form keeps its {what} error within {limit:g}; the closest reaches {error_of(closest):.3g} "
                f"with {curve.size_of(closest):,} of {whole}"
            )
        budgets = {m: group for group in self._groups for m in group.members}
        if n not in budgets or budgets[n].budget >= budgets[n].dense_size(self._curves):
            return "the budget has room for all matrices as they are"
        closest = curve.points[-1]
        error = f"{'weighted activation' if curve.on_inputs else 'weight'} error {closest.error:.3g}"
        return (
            f"even its most accurate form ({curve.size_of(closest):,} of {whole}, {error}) would lose more than the "
            "other matrices gain by what it saves"
        )

    def _told(self, *, order_units: bool) -> Iterator[str]:
        """What else to know."""
        for target in self._targets if order_units else ():
            on_inputs = target.name in self._samples
            why = "they are priced on sample inputs" if on_inputs else obstacle_to_orders(target.shape)
            if why:
                yield f"{target.name}: none of its forms has an order, as {why}."
        if order_units and self._in_bytes:
            yield "Forms in orders were priced in the matrices' own dtypes alone."
        if self._precision is not None and not self._in_bytes:
            yield f"Forms were chosen by their errors before they are rounded to {precision_text(self._precision)}."


@dataclass(frozen=True, slots=True)
class _Job:
    """The pricing of one matrix.

    Attributes:
        matrix: what to price.
        tried: the forms.
        samples: what it meets; None to price it by its entries.
        seed: of random starts.
        device: where to compute.
        on_step: told of steps done and steps in all.
        order_units: price forms in orders, too.
    """

    matrix: Tensor
    tried: Candidates
    samples: Samples | None
    seed: int
    device: torch.device | str
    on_step: Callable[[int, int], None]
    order_units: bool

    def in_bits(self, precision: Precision | None, room: Room | None) -> BitCurve:
        """Forms in all precisions, or in one."""
        others: tuple[Point, ...] = ()
        if self.order_units and self.samples is None:
            plain = price(self.matrix, self.tried.without_core, (), seed=self.seed, device=self.device)
            ordered = self._ordered(plain, lambda _, __: None).points
            others = tuple(each for each in ordered if each.shape is not None and each.shape.part.order_sizes)
        return price_in_bits(
            self.matrix,
            self.tried.without_core,
            self.tried.with_core,
            precision,
            self.samples,
            others=others,
            room=room,
            seed=self.seed,
            device=self.device,
            on_step=self.on_step,
        )

    def in_params(self) -> Curve:
        """Forms in the matrix's own dtype, errors with rounding to it."""
        forms = (self.matrix, self.tried.without_core, self.tried.with_core)
        if self.samples is not None:
            curve = price_on_inputs(*forms, self.samples, seed=self.seed, device=self.device, on_step=self.on_step)
        else:
            curve = price(*forms, seed=self.seed, device=self.device, on_step=self.on_step)
            if self.order_units:
                curve = self._ordered(curve, self.on_step)
        return replace(curve, points=stored(curve.points, self.matrix), low_rank=stored(curve.low_rank, self.matrix))

    def _ordered(self, curve: Curve, on_step: Callable[[int, int], None]) -> Curve:
        forms = (self.tried.without_core, self.tried.with_core)
        return price_in_orders(self.matrix, curve, *forms, seed=self.seed, device=self.device, on_step=on_step)
