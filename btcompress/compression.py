"""Do the job that a step says, in the one place that knows the order: read, choose, sample, price, fit, calibrate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch

from btcompress import calibration
from btcompress import plan as planning
from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    check_target,
    claimed,
    is_compressed,
    others_stored_as,
    read,
    read_compressed,
    write,
)
from btcompress.devices import check_device
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.factorization import Weights, factorize_as_planned, open_weights
from btcompress.finetune.readback import check_same_outputs
from btcompress.fit import Samples, one_thread_for
from btcompress.kinds import KINDS
from btcompress.packing import FLOATS
from btcompress.plan import Plan, PricedPlan, Wish
from btcompress.recipe import FactorizeStep
from btcompress.reporting import with_yardsticks
from btcompress.results import CalibrationProgress, FitProgress, PricingProgress

Progress = FitProgress | PricingProgress | CalibrationProgress
OnProgress = Callable[[Progress], None]

P = ParamSpec("P")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What there is to factorize.

    Attributes:
        dense: every tensor in dense form.
        result: the result that it is the dense form of, whose block terms stay; None for a dense checkpoint.
    """

    dense: Checkpoint
    result: CompressedCheckpoint | None = None

    @classmethod
    def of(cls, weights: Weights | Checkpoint | Opened, step: FactorizeStep) -> Opened:
        """Read a file, or take what is in memory.

        Raises:
            CheckpointError: it cannot be read, or is not what the step says.
        """
        if isinstance(weights, Opened):
            return weights
        if isinstance(weights, Checkpoint):
            return cls(weights)
        if isinstance(weights, str | PathLike) and is_compressed(Path(fspath(weights))):
            if step.container is not None:
                raise CheckpointError(f"{weights} is a result, one plain state dict: leave the container out.")
            result = read_compressed(fspath(weights))
            tensors = result.dense_state_dict()
            known = (result.source, result.notices, result.files, result.layout, result.nonlinearities)
            return cls(Checkpoint(tensors, *known).with_nonlinearity(step.nonlinearity), result)
        if isinstance(weights, str | PathLike):
            dense = read(weights, step.container, strict=step.strict)
        else:
            dense = open_weights(weights, step.container)
        return cls(dense.with_nonlinearity(step.nonlinearity))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was read from."""
        return self.dense.files

    def left(self, plan: Plan) -> Plan:
        """The plan without what is in block-term form, or rounded, already.

        Raises:
            CheckpointError: nothing else was chosen.
        """
        if self.result is None:
            return plan
        before = self.result.chosen
        names = [*(each.name for each in plan.matrices), *(each.name for each in plan.rounded)]
        done = [name for name in names if name in before]
        kept = tuple(each for each in plan.matrices if each.name not in before)
        rounded = tuple(each for each in plan.rounded if each.name not in before)
        if done and not kept and not rounded:
            terms = [name for name in done if name in self.result.matrices]
            others = [name for name in done if name in self.result.rounded]
            both = (f"{', '.join(terms)} are block terms", f"{', '.join(others)} are rounded")
            said = " and ".join(text for text, names in zip(both, (terms, others), strict=True) if names)
            raise CheckpointError(
                f"{self.dense.source.name}: {said} already, and no other matrix was chosen. "
                "Choose others (--matrices, --layer), or factorize its dense form (a step dense in a recipe)."
            )
        forms = {name: "in block-term form" if name in self.result.matrices else "rounded" for name in done}
        told = (f"{name}: {form} already; left as it is." for name, form in forms.items())
        left_dense = tuple(each for each in plan.left_dense if each.name not in before)
        notices = (*plan.notices, *told)
        twins = {name: first for name, first in plan.twins.items() if name not in before}
        return replace(plan, matrices=kept, rounded=rounded, left_dense=left_dense, notices=notices, twins=twins)

    def with_block_terms(self, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        """A result of factorizing the rest, with the block terms, the precisions and the history of before."""
        before = self.result
        if before is None:
            return compressed
        dense = {key: tensor for key, tensor in compressed.tensors.items() if key not in before.matrices}
        kept = {name: tensor for name, tensor in before.tensors.items() if name not in before.keys}
        tensors = {**dense, **kept}
        # What is stored in fewer bits is still the same tensor, unless it was chosen now.
        stored = {name: how for name, how in before.stored.items() if tensors.get(name) is before.tensors[name]}
        return replace(
            compressed,
            tensors=tensors,
            matrices={**before.matrices, **compressed.matrices},
            history=(*before.history, *compressed.history),
            rounded={**before.rounded, **compressed.rounded},
            stored={**stored, **compressed.stored},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A job up to its fits.

    Attributes:
        opened: what there is to factorize.
        plan: the form that each matrix is to get.
        samples: what matrices meet on the sample inputs; None without these.
    """

    opened: Opened
    plan: Plan
    samples: Mapping[str, Samples] | None


def compress(
    weights: Weights | Checkpoint | Opened, step: FactorizeStep = FactorizeStep(), on_progress: OnProgress | None = None
) -> CompressedCheckpoint:
    """Do all that a step says to a checkpoint.

    Args:
        weights: a weight file, a result to factorize further, a state dict, or a module; never changed.
        step: what to take, how small, on which sample inputs, how hard.
        on_progress: called now and then with where a fit, the pricing or the calibration stands.

    Returns:
        The compressed checkpoint; :func:`btcompress.save` writes it, :func:`btcompress.report` sums it up.

    Raises:
        CheckpointError: the weights cannot be read, or hold no matrix that was chosen.
        ShapeError: modes, ranks and sizes do not fit together.
        BTCompressError: a matrix is not finite, a wish cannot be met, or sample inputs do not fit.
    """
    with _on_device(step):
        return finish(prepare(weights, step, on_progress=on_progress), step, on_progress)


def prepare(
    weights: Weights | Checkpoint | Opened,
    step: FactorizeStep,
    samples: Mapping[str, Samples] | None = None,
    on_progress: OnProgress | None = None,
) -> Prepared:
    """Choose the form of each matrix; see :func:`compress`.

    Args:
        weights: as there.
        step: as there.
        samples: what matrices meet, where it is known already; else it is gathered on the step's sample inputs.
        on_progress: as there.
    """
    chosen = _chosen(weights, step, samples, on_progress)
    if step.wish is None:
        return chosen
    priced = _priced(chosen, step.wish, step, on_progress)
    return replace(chosen, plan=priced.plan)


def _chosen(
    weights: Weights | Checkpoint | Opened,
    step: FactorizeStep,
    samples: Mapping[str, Samples] | None,
    on_progress: OnProgress | None,
) -> Prepared:
    """Which matrices are taken, and what they meet; their shapes where no wish chooses these."""
    opened = Opened.of(weights, step)
    plan = opened.left(_planned(opened.dense, step))
    if samples is None:
        samples = _gathered(opened, step, plan, on_progress)
    return Prepared(opened, plan, samples)


def _planned(dense: Checkpoint, step: FactorizeStep) -> Plan:
    if isinstance(step.plan, PricedPlan):
        return step.plan.plan
    if step.plan is not None:
        every = planning.make_plan(
            dense, step.shapes, matrices=KINDS, allow_growth=True, allow_nonfinite=step.allow_nonfinite
        )
        return planning.read_plan(step.plan, dense, every, allow_growth=step.allow_growth)
    growth = step.allow_growth or step.wish is not None or step.rounds_only
    plan = planning.make_plan(
        dense,
        step.shapes,
        step.layers,
        matrices=step.matrices,
        allow_growth=growth,
        allow_nonfinite=step.allow_nonfinite,
    )
    if step.rounds_only and step.precision is not None:
        return plan.rounded_to(step.precision)
    return plan.stored_as(step.precision)


def _priced(chosen: Prepared, wish: Wish, step: FactorizeStep, on_progress: OnProgress | None) -> PricedPlan:
    return planning.meet(
        chosen.opened.dense,
        chosen.plan,
        wish,
        step.shapes,
        samples=chosen.samples,
        precision=step.precision,
        others=None if step.others is None else FLOATS[step.others],
        order_units=step.order_units,
        seed=step.seed,
        device=step.device,
        on_progress=on_progress,
    )


def finish(prepared: Prepared, step: FactorizeStep, on_progress: OnProgress | None = None) -> CompressedCheckpoint:
    """Fit the forms chosen and round them, with sample inputs calibrate them through it; see :func:`compress`."""
    opened, plan, samples = prepared.opened, prepared.plan, prepared.samples or {}
    # A plan that was priced, or written, says itself which sides have an order.
    search = step.order_units and step.wish is None and step.plan is None
    compressed = factorize_as_planned(
        opened.dense,
        plan,
        step.fit_options,
        on_progress,
        order_units=search,
        record=step.record,
        unrounded=[key for key in plan.precisions if key in samples],
    )
    compressed = opened.with_block_terms(compressed)
    if step.calibration:
        later = {key: precision for key, precision in plan.precisions.items() if key in samples}
        training = replace(step.training, batch_size=calibration.BATCH_IN_FEW_BITS) if later else step.training
        compressed = calibration.calibrate(
            compressed,
            opened.dense,
            step.calibration_request,
            training,
            on_progress,
            prepared.samples,
            precisions=later,
        )
    if step.others is not None:
        compressed = others_stored_as(compressed, FLOATS[step.others])
    # What was there before is held against the matrices that it was made from, which are not at hand.
    new = [key for key in compressed.chosen if opened.result is None or key not in opened.result.chosen]
    with one_thread_for(max((opened.dense.tensors[key].numel() for key in new), default=0)):
        return with_yardsticks(compressed, opened.dense, prepared.samples, new, step.device)


def compress_to(
    target: Path,
    weights: Weights | Opened,
    step: FactorizeStep,
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> CompressedCheckpoint:
    """Do all that a step says, and write the result whole or not at all.

    Args:
        target: the file, kept for this process from the start.
        weights: as for :func:`compress`.
        step: likewise.
        force: replace an existing file, though never one that is read.
        on_progress: as for :func:`compress`.

    Raises:
        OutputError: the file cannot or must not be written, or another process is writing it.
    """
    opened = Opened.of(weights, step)
    check_target(target, force=force, inputs=[*opened.files, *step.files])
    with claimed(target):
        compressed = compress(opened, step, on_progress)
        write(compressed, target, force=force, check=partial(check_same_outputs, compressed))
    return compressed


@contextmanager
def _on_device(step: FactorizeStep) -> Iterator[None]:
    """Let training take the GPU that the step names, where there are several."""
    check_device(step.device)
    with torch.cuda.device(step.device) if step.device.startswith("cuda:") else nullcontext():
        yield


def _gathered(
    opened: Opened, step: FactorizeStep, plan: Plan, on_progress: OnProgress | None = None
) -> dict[str, Samples] | None:
    """Samples of what the matrices of a plan meet, and those that are block terms already; None without inputs."""
    if not step.calibration:
        return None
    before = () if opened.result is None else opened.result.chosen
    planned = [*(each.name for each in plan.matrices), *(each.name for each in plan.rounded)]
    keys = [*planned, *before]
    return calibration.gather_samples(opened.dense, step.calibration_request, step.seed, keys, on_progress)


def priced_plan(
    weights: Weights | Checkpoint | Opened,
    step: FactorizeStep,
    *,
    samples: Mapping[str, Samples] | None = None,
    on_progress: OnProgress | None = None,
) -> PricedPlan:
    """Choose the form of each matrix that :func:`compress` would take, so that a step's wish is met at the least loss.

    Args:
        weights: as for :func:`compress`.
        step: likewise; what it says of fits and training does not matter.
        samples: what matrices meet, where it is known already.
        on_progress: called now and then while forms are priced.

    Returns:
        The plan with the curve of every matrix.

    Raises:
        BTCompressError: the step has no wish; and as :func:`compress`.
    """
    wish = check_wish(step)
    with _on_device(step):
        return _priced(_chosen(weights, step, samples, on_progress), wish, step, on_progress)


def check_wish(step: FactorizeStep) -> Wish:
    """What a step wishes for; without it there is nothing to plan.

    Raises:
        BTCompressError: it has none.
    """
    if step.wish is None:
        raise BTCompressError("nothing is wished for. Give a target ratio, a number of parameters or an error.")
    return step.wish


def _faced(
    name: str, do: Callable[[Weights, FactorizeStep], _T], make: Callable[P, FactorizeStep]
) -> Callable[Concatenate[Weights, P], _T]:
    """A job as a function of the weights and a step's fields, whose list then stands once."""

    def faced(weights: Weights, /, *args: P.args, **kwargs: P.kwargs) -> _T:
        return do(weights, make(*args, **kwargs))

    weights = inspect.Parameter("weights", inspect.Parameter.POSITIONAL_ONLY)
    fields = inspect.signature(make, eval_str=True).parameters.values()
    result = inspect.signature(do, eval_str=True).return_annotation
    faced.__name__ = faced.__qualname__ = name
    faced.__signature__ = inspect.Signature([weights, *fields], return_annotation=result)  # type: ignore[attr-defined]
    faced.__annotations__ = {each.name: each.annotation for each in fields} | {"return": result}
    told = "Keywords are the fields of :class:`btcompress.FactorizeStep`:"
    faced.__doc__ = f"{inspect.cleandoc(do.__doc__ or '')}\n\n{told}\n\n{inspect.cleandoc(make.__doc__ or '')}"
    return faced


factorize = _faced("factorize", compress, FactorizeStep)
plan_for = _faced("plan_for", priced_plan, FactorizeStep)
