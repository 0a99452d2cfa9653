"""Fit every matrix of a plan, measure the fits, and put them in the place of the dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

from torch import Tensor, nn

from btcompress.blockterm import BlockTerm, params_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, CompressedMatrix, from_state_dict, read
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import (
    FitOptions,
    MatrixFit,
    OnSweep,
    described,
    explained,
    fit_matrix,
    one_thread_for,
    weight_error,
)
from btcompress.orders import fit_ordered, share_orders
from btcompress.plan import Plan, PlannedMatrix
from btcompress.results import FitProgress, LeftDense, Sweep
from btcompress.shapes import MatrixShape
from btcompress.yardsticks import truncated_svd

Weights = str | PathLike[str] | Mapping[str, Any] | nn.Module
OnProgress = Callable[[FitProgress], None]

_SIDE_WORDS = {"row_order": "rows", "column_order": "columns"}
#: Random starts of a fit that came out worse than its plan foresaw.
_RESTARTS_FOR_A_PLAN = 3


def open_weights(weights: Weights, container: str | None = None) -> Checkpoint:
    """Read a file, or take a state dict or a module's, as a checkpoint.

    Raises:
        CheckpointError: as :func:`btcompress.checkpoint.read`.
    """
    if isinstance(weights, nn.Module):
        return from_state_dict(weights.state_dict(), type(weights).__name__)
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
) -> CompressedCheckpoint:
    """Fit every matrix of a plan and put the block terms in place of the dense matrices.

    Precisions are not its business: block terms are in the matrix's dtype, and what is only rounded stays as it is.

    Args:
        checkpoint: what the plan was made for.
        plan: the shape of each matrix; one with orders gets the best that are found for just these sides.
        options: effort, seed and device of the fit.
        on_progress: called after every sweep of every fit.
        order_units: look for orders that pay of matrices whose shape has none: of each matrix by itself, as
            :func:`btcompress.orders.fit_ordered` does, and of an LSTM layer's hidden units in all of its matrices, as
            :func:`btcompress.orders.share_orders` does. Not for a plan that meets a wish, as they may exceed it.
        record: of the job that the plan is part of, as JSON knows it, for the history.

    Raises:
        CheckpointError: the plan has no matrix to factorize or to round, or none whose block terms fit the range of its dtype.
        BTCompressError: a matrix is not finite.
    """
    if not plan.matrices and not plan.rounded:
        raise CheckpointError(_nothing_to_do(checkpoint, plan))
    parts: dict[str, tuple[BlockTerm, ...]] = {}
    matrices: dict[str, CompressedMatrix] = {}
    left_dense = list(plan.left_dense)
    told: list[str] = []
    indices = {planned.name: index for index, planned in enumerate(plan.matrices)}

    def on_sweep_of(name: str) -> OnSweep:
        def on_sweep(sweep: Sweep) -> None:
            if on_progress is not None:
                on_progress(FitProgress(name, indices[name], len(indices), sweep))

        return on_sweep

    fits: dict[str, tuple[tuple[BlockTerm, ...], CompressedMatrix] | None] = {}
    with one_thread_for(max((planned.shape.dense_params for planned in plan.matrices), default=0)):
        ready = _in_orders(checkpoint, plan, options, on_sweep_of) if order_units else {}
        for planned in plan.matrices:
            name = planned.name
            fits[name] = _fit(planned, checkpoint.tensors[name], options, on_sweep_of(name), ready.get(name))
    for planned in plan.matrices:
        fit = fits[planned.name]
        if fit is None:
            left_dense.append(LeftDense(planned.name, "its block terms came out worse than foreseen"))
            continue
        fitted, measured = fit
        if measured.shape.ordered() != planned.shape.ordered():
            told.append(
                f"{planned.name}: its block terms came out worse than foreseen, so it is low rank "
                f"{measured.shape.part.ranks[0]} instead."
            )
        if math.isfinite(measured.weight_error):
            parts[planned.name], matrices[planned.name] = fitted, measured
        else:
            reason = "its block terms, or the matrix that they form, do not fit the range of"
            left_dense.append(LeftDense(planned.name, f"{reason} {checkpoint.tensors[planned.name].dtype}"))
    if not parts and not plan.rounded:
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in left_dense)
        raise CheckpointError(
            f"{checkpoint.source.name}: nothing could be factorized. {reasons}. Convert it to float32 first."
        )
    told += _orders_told(parts, also_without=order_units)
    step = {
        "step": "factorize",
        "recipe": dict(record or {}),
        "left_dense": [asdict(left) for left in left_dense],
    }
    others = tuple(f"{other.name or 'the checkpoint'}: {other.reason}; left as it is." for other in plan.others)
    return CompressedCheckpoint.of(checkpoint, matrices, parts, [step], (*plan.notices, *told, *others))


def _in_orders(
    checkpoint: Checkpoint, plan: Plan, options: FitOptions, on_sweep_of: Callable[[str], OnSweep]
) -> dict[str, MatrixFit]:
    """The fits of matrices without orders in those that pay: a matrix's own, or one that several have in common."""
    shapes = {planned.name: planned.shape for planned in plan.matrices if not planned.shape.part.order_sizes}
    matrices = {name: checkpoint.tensors[name] for name in shapes}
    own = {}
    for name, shape in shapes.items():
        with _named(name), explained(described(shape.part)):
            own[name] = fit_ordered(matrices[name], shape, options, on_sweep_of(name))
    units = [sides for lstm in plan.lstms for sides in lstm.unit_sides]
    return share_orders(matrices, shapes, units, own, options, on_sweep_of)


def _fit(
    planned: PlannedMatrix, matrix: Tensor, options: FitOptions, on_sweep: OnSweep, ready: MatrixFit | None
) -> tuple[tuple[BlockTerm, ...], CompressedMatrix] | None:
    """The block terms of a matrix and their measure; None where they, and their fallback, leave it dense."""
    fallback = planned.fallback
    parts, measured = _fit_shape(planned.name, planned.shape, matrix, options, on_sweep, ready)
    if fallback is not None and not measured.weight_error <= fallback.max_error:
        harder = replace(options, restarts=max(options.restarts, _RESTARTS_FOR_A_PLAN))
        parts, measured = _fit_shape(planned.name, planned.shape, matrix, harder, on_sweep)
        if not measured.weight_error <= fallback.max_error:
            if fallback.shape is None:
                return None
            parts, measured = _fit_shape(planned.name, fallback.shape, matrix, options, on_sweep)
    return parts, measured


def _fit_shape(
    name: str,
    shape: MatrixShape,
    matrix: Tensor,
    options: FitOptions,
    on_sweep: OnSweep,
    ready: MatrixFit | None = None,
) -> tuple[tuple[BlockTerm, ...], CompressedMatrix]:
    with _named(name), explained(described(shape.part)):
        fit_one = fit_ordered if shape.part.order_sizes else fit_matrix
        fitted = ready or fit_one(matrix, shape, options, on_sweep)
        parts = tuple(part.to("cpu").to(matrix.dtype) for part in fitted.parts)
        yardstick = truncated_svd(matrix, params_of(parts), options.device)
        error = weight_error(matrix, parts, matrix.dtype)
    # Ranks stay as planned: those beyond what the modes hold are lowered there already.
    shape = shape.ordered(parts[0].shape.order_sizes)
    return parts, CompressedMatrix(shape, matrix.dtype, error, yardstick.rank, yardstick.error)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put a matrix's name before what is wrong with it."""
    try:
        yield
    except BTCompressError as error:
        raise type(error)(f"{name}: {error}") from error


def _orders_told(parts: Mapping[str, Sequence[BlockTerm]], *, also_without: bool) -> Iterator[str]:
    """What the orders of matrices are and cost; ``also_without``: and which matrices have none."""
    held = [
        (name, _SIDE_WORDS[side], order)
        for name, forms in parts.items()
        for form in forms
        for side, order in zip(form.shape.order_sizes, form.orders, strict=True)
    ]
    holders: dict[int, dict[tuple[str, str], int]] = {}
    for name, side, order in held:
        holders.setdefault(order.data_ptr(), {})[name, side] = len(order)
    for name in parts:
        own = [(side, order) for owner, side, order in held if owner == name and len(holders[order.data_ptr()]) == 1]
        if own:
            sides = " and ".join(dict.fromkeys(side for side, _ in own))
            n_integers = sum(len(order) for _, order in own)
            yield f"{name}: its {sides} are in an order of their own, {n_integers:,} integers that count as parameters."
        elif also_without and name not in {owner for owner, _, _ in held}:
            yield f"{name}: its rows and columns stay in their order, as no other pays."
    for sharing in holders.values():
        if len(sharing) > 1:
            who = ", ".join(f"the {side} of {name}" for name, side in sharing)
            yield f"One order of units holds for {who}: {max(sharing.values()):,} integers that count once."


def _nothing_to_do(checkpoint: Checkpoint, plan: Plan) -> str:
    name = checkpoint.source.name
    if plan.left_dense:
        reasons = "; ".join(f"{left.name}: {left.reason}" for left in plan.left_dense)
        return f"{name}: no matrix is worth factorizing. {reasons}."
    if plan.lstms:
        return (
            f"{name}: the kinds of matrices ({', '.join(plan.kinds)}) and the layer patterns leave no matrix to "
            "factorize. Ask for more kinds, or loosen the patterns."
        )
    others = "; ".join(f"{other.name or 'the checkpoint'}: {other.reason}" for other in plan.others)
    found = f" What looks alike: {others}." if others else ""
    if "linear" in plan.kinds:
        what, advice = "neither an LSTM nor a linear layer that was chosen", "an LSTM or a linear layer"
    else:
        what, advice = "no LSTM", "an LSTM, or ask for linear matrices"
    return (
        f"{name} holds {what}, only {len(checkpoint.tensors)} tensors of other layers.{found} "
        f"Give a checkpoint with {advice}."
    )
