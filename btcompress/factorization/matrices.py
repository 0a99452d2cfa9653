"""One matrix of a plan: fit its form, round it, and measure what that leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from btcompress.blockterm import BlockTerm, params_of
from btcompress.checkpoint import CompressedMatrix, RoundedMatrix
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.precisions import Stored, values_of
from btcompress.errors import BTCompressError
from btcompress.fit import (
    FitOptions,
    MatrixFit,
    OnSweep,
    Samples,
    described,
    difference_error,
    explained,
    fit_matrix,
    obstacle_to_integers,
    round_matrix,
    round_parts,
    weight_error,
)
from btcompress.fit.blockfit import check_finite
from btcompress.orders import fit_ordered
from btcompress.packing import Integers, Precision, precision_text
from btcompress.plan import PlannedMatrix, PlannedRounding
from btcompress.shapes import MatrixShape
from btcompress.yardsticks import truncated_svd

#: Random starts of a fit that came out worse than its plan foresaw.
_RESTARTS_FOR_A_PLAN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Factorized:
    """A matrix in block-term form.

    Attributes:
        parts: its block terms, with the values that are stored.
        matrix: how it is written.
        stored: how tensors are stored that are not stored as they are, by name.
    """

    parts: tuple[BlockTerm, ...]
    matrix: CompressedMatrix
    stored: dict[str, Stored]


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A matrix that stays dense.

    Attributes:
        matrix: how it is written.
        stored: how it is stored.
    """

    matrix: RoundedMatrix
    stored: Stored


@dataclass(frozen=True, slots=True)
class AsItWas:
    """A matrix that stays dense, and as it was.

    Attributes:
        reason: why, in words.
    """

    reason: str


Outcome: TypeAlias = Factorized | Rounded | AsItWas


def factorized(
    planned: PlannedMatrix,
    matrix: Tensor,
    options: FitOptions,
    on_sweep: OnSweep,
    ready: MatrixFit | None,
    *,
    rounds: bool,
) -> Outcome:
    """The form of a matrix, or what its plan gives it where that comes out worse than foreseen.

    Args:
        planned: the form.
        matrix: what to fit it to.
        options: effort of the fit.
        on_sweep: called after each sweep.
        ready: the fit, where it is there already.
        rounds: whether to round to the precision planned; who has sample inputs does that later.
    """
    name, fallback = planned.name, planned.fallback
    precision = planned.precision if rounds else None
    found = _fitted(name, planned.shape, precision, matrix, options, on_sweep, ready)
    if fallback is not None and not found.matrix.weight_error <= fallback.max_error:
        harder = replace(options, restarts=max(options.restarts, _RESTARTS_FOR_A_PLAN))
        found = _fitted(name, planned.shape, precision, matrix, harder, on_sweep)
        if not found.matrix.weight_error <= fallback.max_error:
            if fallback.shape is not None:
                instead = fallback.precision if rounds else None
                found = _fitted(name, fallback.shape, instead, matrix, options, on_sweep)
            elif fallback.precision is not None:
                size = (planned.shape.out_size, planned.shape.in_size)
                return rounded(PlannedRounding(name, size, fallback.precision), matrix)
            else:
                return AsItWas("its block terms came out worse than foreseen")
    if not math.isfinite(found.matrix.weight_error):
        return AsItWas(f"its block terms, or the matrix that they form, do not fit the range of {matrix.dtype}")
    return found


def rounded(planned: PlannedRounding, matrix: Tensor, samples: Samples | None = None) -> Rounded | AsItWas:
    """A matrix that stays dense, its numbers in the precision planned.

    Args:
        planned: the precision.
        matrix: to round.
        samples: what it meets, to feed errors back; where left out, each number becomes the nearest.
    """
    precision = planned.precision
    with named(planned.name):
        check_finite(matrix)
    if isinstance(precision, Integers):
        if obstacle := obstacle_to_integers(matrix):
            return AsItWas(obstacle)
        stored: Stored = round_matrix(matrix, precision, samples)
    elif precision.itemsize >= matrix.dtype.itemsize:
        return AsItWas(f"its own dtype, {precision_text(matrix.dtype)}, takes no more bytes")
    else:
        stored = precision
    error = difference_error(matrix, values_of(matrix, stored))
    if not math.isfinite(error):
        return AsItWas(f"its numbers do not fit the range of {precision_text(precision)}")
    return Rounded(RoundedMatrix.of(matrix, stored, error), stored)


def _fitted(
    name: str,
    shape: MatrixShape,
    precision: Precision | None,
    matrix: Tensor,
    options: FitOptions,
    on_sweep: OnSweep,
    ready: MatrixFit | None = None,
) -> Factorized:
    with named(name), explained(described(shape.part)):
        fit_one = fit_ordered if shape.part.order_sizes else fit_matrix
        fit = ready or fit_one(matrix, shape, options, on_sweep)
        parts = tuple(part.to("cpu").to(matrix.dtype) for part in fit.parts)
        # Ranks stay as planned: those beyond what the modes hold are lowered there already.
        shape = shape.ordered(parts[0].shape.order_sizes)
        stored: dict[str, Stored] = {}
        if precision is not None and precision != matrix.dtype:
            parts, stored = in_precision(name, shape, matrix, parts, precision)
        yardstick = truncated_svd(matrix, params_of(parts), options.device)
        error = weight_error(matrix, parts, matrix.dtype)
    return Factorized(parts, CompressedMatrix(shape, matrix.dtype, error, yardstick.rank, yardstick.error), stored)


def in_precision(
    name: str,
    shape: MatrixShape,
    matrix: Tensor,
    parts: tuple[BlockTerm, ...],
    precision: Precision,
    samples: Samples | None = None,
) -> tuple[tuple[BlockTerm, ...], dict[str, Stored]]:
    """Block terms rounded to a precision, and how their tensors are stored, by name.

    What does not suit scales of float16 stays as it is.

    Args:
        name: key of the matrix.
        shape: their form.
        matrix: what they stand for.
        parts: the block terms.
        precision: of their numbers.
        samples: what the matrix meets, to feed errors back; where left out, its entries count alike.
    """
    tensors = [tensor for part in parts for tensor in part.tensors]
    if isinstance(precision, Integers) and any(obstacle_to_integers(tensor) for tensor in tensors):
        return parts, {}
    form = round_parts(matrix, parts, precision, samples)
    names = part_names(name, shape)
    stored = {
        each: how
        for own, of_part in zip(names, form.stored, strict=True)
        for each, how in zip(own, of_part, strict=False)  # orders, behind the others, stay as they are
    }
    return form.parts, stored


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put a matrix's name before what is wrong with it."""
    try:
        yield
    except BTCompressError as error:
        raise type(error)(f"{name}: {error}") from error
