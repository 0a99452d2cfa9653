"""Fit and round every matrix of a plan, and put the results in the place of the dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from os import PathLike
from typing import Any, cast

from torch import nn

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    CompressedMatrix,
    RoundedMatrix,
    from_state_dict,
    read,
)
from btcompress.checkpoint.precisions import Stored
from btcompress.errors import CheckpointError
from btcompress.factorization.matrices import AsItWas, Factorized, Outcome, factorized, named, rounded
from btcompress.factorization.told import nothing_to_do, orders_told
from btcompress.fit import FitOptions, MatrixFit, OnSweep, described, explained, one_thread_for
from btcompress.orders import fit_ordered, share_orders
from btcompress.plan import Plan
from btcompress.results import FitProgress, LeftDense, Sweep
from btcompress.shapes import Nonlinearity

Weights = str | PathLike[str] | Mapping[str, Any] | nn.Module
OnProgress = Callable[[FitProgress], None]


def open_weights(weights: Weights, container: str | None = None) -> Checkpoint:
    """Read a file, or take a state dict or a module's, as a checkpoint; a module says nonlinearities too.

    Raises:
        CheckpointError: as :func:`btcompress.checkpoint.read`.
    """
    if isinstance(weights, nn.Module):
        named = weights.named_modules(remove_duplicate=False)
        told = {
            name: cast(Nonlinearity, each.nonlinearity) for name, each in named if isinstance(each, nn.RNN | nn.RNNCell)
        }
        checkpoint = from_state_dict(weights.state_dict(), type(weights).__name__)
        return replace(checkpoint, nonlinearities={**checkpoint.nonlinearities, **told})
    if isinstance(weights, Mapping):
        return from_state_dict(weights)
    return read(weights, container)


def factorize_as_planned(
    checkpoint: Checkpoint,
    plan: Plan,
    options: FitOptions = FitOptions(),
    on_progress: OnProgress | None = None,
    *,
    order_units: bool = False,
    record: Mapping[str, Any] | None = None,
    unrounded: Collection[str] = (),
) -> CompressedCheckpoint:
    """Fit every matrix of a plan, round it, and put what there is then in place of the dense matrix.

    A matrix that has several names, as that of an LSTM used twice, is fitted once and has its form under all of these.

    Args:
        checkpoint: what the plan was made for.
        plan: the form and the precision of each matrix; one with orders gets the best that are found for just these
            sides.
        options: effort, seed and device of the fit.
        on_progress: called after every sweep of every fit.
        order_units: look for orders that pay of matrices whose shape has none: of each matrix by itself, as
            :func:`btcompress.orders.fit_ordered` does, and of an LSTM layer's hidden units in all of its matrices, as
            :func:`btcompress.orders.share_orders` does. Not for a plan that meets a wish, as they may exceed it.
        record: of the job that the plan is part of, as JSON knows it, for the history.
        unrounded: keys of matrices that are fitted alone, as they are rounded later, by what they give on inputs.

    Raises:
        CheckpointError: the plan has no matrix to factorize or to round, or none of them could be.
        BTCompressError: a matrix is not finite.
    """
    if not plan.matrices and not plan.rounded:
        raise CheckpointError(nothing_to_do(checkpoint, plan))
    indices = {planned.name: index for index, planned in enumerate(plan.matrices)}

    def on_sweep_of(name: str) -> OnSweep:
        def on_sweep(sweep: Sweep) -> None:
            if on_progress is not None:
                on_progress(FitProgress(name, indices[name], len(indices), sweep))

        return on_sweep

    outcomes: dict[str, Outcome] = {}
    sizes = [planned.shape.dense_params for planned in plan.matrices] + [math.prod(each.size) for each in plan.rounded]
    with one_thread_for(max(sizes)):
        ready = _in_orders(checkpoint, plan, options, on_sweep_of) if order_units else {}
        for planned in plan.matrices:
            name, rounds = planned.name, planned.name not in unrounded
            fit, matrix = ready.get(name), checkpoint.tensors[name]
            outcomes[name] = factorized(planned, matrix, options, on_sweep_of(name), fit, rounds=rounds)
        for each in plan.rounded:
            if each.name not in unrounded:
                outcomes[each.name] = rounded(each, checkpoint.tensors[each.name])
    # How the tensors of other names are stored follows those that they are one with.
    outcomes |= {name: outcomes[first] for name, first in plan.twins.items() if first in outcomes}
    return _put_together(checkpoint, plan, outcomes, record or {}, unrounded, told_of_orders=order_units)


def _put_together(
    checkpoint: Checkpoint,
    plan: Plan,
    outcomes: Mapping[str, Outcome],
    record: Mapping[str, Any],
    unrounded: Collection[str],
    *,
    told_of_orders: bool,
) -> CompressedCheckpoint:
    """The result, and what to know of it."""
    parts: dict[str, tuple[BlockTerm, ...]] = {}
    matrices: dict[str, CompressedMatrix] = {}
    dense: dict[str, RoundedMatrix] = {}
    stored: dict[str, Stored] = {}
    left_dense = list(plan.left_dense)
    told: list[str] = []
    wanted = {planned.name: planned.shape for planned in plan.matrices}
    wanted |= {name: wanted[first] for name, first in plan.twins.items() if first in wanted}
    for name, outcome in outcomes.items():
        if isinstance(outcome, AsItWas):
            left_dense.append(LeftDense(name, outcome.reason))
        elif isinstance(outcome, Factorized):
            parts[name], matrices[name] = outcome.parts, outcome.matrix
            stored |= outcome.stored
            if outcome.matrix.shape.ordered() != wanted[name].ordered():
                told.append(
                    f"{name}: its block terms came out worse than foreseen, so it is low rank "
                    f"{outcome.matrix.shape.part.ranks[0]} instead."
                )
        else:
            dense[name], stored[name] = outcome.matrix, outcome.stored
            if name in wanted:
                told.append(f"{name}: its block terms came out worse than foreseen, so it is rounded alone instead.")
    if not parts and not dense and not any(each.name in unrounded for each in plan.rounded):
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in left_dense)
        raise CheckpointError(
            f"{checkpoint.source.name}: nothing could be factorized. {reasons}. Convert it to float32 first."
        )
    told += orders_told(parts, also_without=told_of_orders)
    step = {"step": "factorize", "recipe": dict(record), "left_dense": [asdict(left) for left in left_dense]}
    others = tuple(f"{other.name or 'the checkpoint'}: {other.reason}; left as it is." for other in plan.others)
    notices = (*plan.told, *told, *others)
    return CompressedCheckpoint.of(checkpoint, matrices, parts, [step], notices, dense, stored)


def _in_orders(
    checkpoint: Checkpoint, plan: Plan, options: FitOptions, on_sweep_of: Callable[[str], OnSweep]
) -> dict[str, MatrixFit]:
    """The fits of matrices without orders in those that pay: a matrix's own, or one that several have in common."""
    shapes = {planned.name: planned.shape for planned in plan.matrices if not planned.shape.part.order_sizes}
    matrices = {name: checkpoint.tensors[name] for name in shapes}
    own = {}
    for name, shape in shapes.items():
        with named(name), explained(described(shape.part)):
            own[name] = fit_ordered(matrices[name], shape, options, on_sweep_of(name))
    units = [sides for lstm in plan.recurrent for sides in lstm.unit_sides]
    return share_orders(matrices, shapes, units, own, options, on_sweep_of)
