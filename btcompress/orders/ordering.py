"""Orders of rows and columns in which block terms fit a matrix better.

The order of an LSTM's hidden units means nothing, but paired modes fit best where neighbours are alike. So the rows
of a matrix, alike in all gates, and its columns may be given an order of their own, which is stored with the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from btcompress.errors import ShapeError
from btcompress.fit.arranged import in_orders
from btcompress.fit.blockfit import (
    Fit,
    FitOptions,
    MatrixFit,
    OnSweep,
    check_finite,
    check_size,
    fit,
    fit_matrix,
    joined,
)
from btcompress.orders.search import Orders, Piece, by_similarity, moved_to_better_places, orders_of
from btcompress.shapes import MatrixShape

#: Entries of a matrix up to which it is copied in float64 to find orders.
_MOST_ENTRIES = 2**20
#: Rows of a gate, or columns, that are compared in pairs; an order of fewer is not worth storing.
_FEWEST, _MOST = 4, 2**11
_SIDES = {"row_order": "rows", "column_order": "columns"}


def fit_ordered(
    matrix: Tensor, shape: MatrixShape, options: FitOptions = FitOptions(), on_sweep: OnSweep | None = None
) -> MatrixFit:
    """Fit a matrix as :func:`btcompress.fit.fit_matrix` does, or in better orders of its rows and columns.

    A shape with orders gets the best ones found for just these sides. For one without, orders are found for rows, for
    columns and for both; those that are kept leave the share of ``||W||_F^2`` that each parameter explains, the
    integers of the orders counted, higher than it is without, and the form smaller than the matrix. If none do, or
    the form is one of those that have no orders (:func:`sides_to_order`), the matrix keeps its order.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        shape: block-term shape; ranks beyond what its modes hold are lowered.
        options: effort and device.
        on_sweep: called after each joint sweep of a final fit.

    Returns:
        The forms, whose shapes say which orders they have.

    Raises:
        ShapeError: the matrix does not have the shape's size, or as :func:`check_orders`.
        BTCompressError: the matrix is not finite.
    """
    asked = tuple(shape.part.order_sizes)
    if asked:
        check_orders(shape)
        check_size(matrix, shape)
        return _in_best_orders(matrix, shape.ordered(), asked, options, on_sweep)
    plain = fit_matrix(matrix, shape, options, on_sweep)
    if not plain.weight_error:
        return plain
    plain_params = shape.limited().n_params
    price_each = (1 - plain.weight_error**2) / plain_params
    best, best_gain = plain, 0.0
    for names in choices_of_sides(shape):
        ordered = _in_best_orders(matrix, shape, names, options, on_sweep)
        n_added = shape.n_parts * sum(shape.part.ordered(names).order_sizes.values())
        gain = plain.weight_error**2 - ordered.weight_error**2 - price_each * n_added
        if gain > best_gain and plain_params + n_added < shape.dense_params:
            best, best_gain = ordered, gain
    return best


def sides_to_order(shape: MatrixShape) -> tuple[str, ...]:
    """Which of ``row_order`` and ``column_order`` a form may have.

    None, where it is plain low rank, which fits alike in every order, or of order 1, or where the matrix has more
    than 2^20 entries. Else each side of 4 to 2,048 rows of a gate, or columns.
    """
    return () if _obstacle(shape) else tuple(name for name in _SIDES if not _obstacle_of_side(shape, name))


def obstacle_to_orders(shape: MatrixShape) -> str:
    """Why a form may have no order at all, in words; empty where it may."""
    return _obstacle(shape) or (
        "" if sides_to_order(shape) else " and ".join(_obstacle_of_side(shape, n) for n in _SIDES)
    )


def choices_of_sides(shape: MatrixShape) -> Iterator[tuple[str, ...]]:
    """The sides that a form may have in orders of their own: each, and both."""
    names = sides_to_order(shape)
    yield from ((name,) for name in names)
    if len(names) > 1:
        yield names


def check_orders(shape: MatrixShape) -> None:
    """Refuse orders that :func:`fit_ordered` does not find.

    Raises:
        ShapeError: the shape has an order that is not among its :func:`sides_to_order`.
    """
    for name in shape.part.order_sizes:
        obstacle = _obstacle(shape) or _obstacle_of_side(shape, name)
        if obstacle:
            raise ShapeError(f"{name} was asked for, but {obstacle}. Leave it out.")


def _obstacle(shape: MatrixShape) -> str:
    if shape.part.is_low_rank:
        return "a plain low-rank matrix fits alike in every order"
    if shape.part.order == 1:
        return "a form of order 1 holds its rows and columns in one mode"
    if shape.dense_params > _MOST_ENTRIES:
        return f"the matrix has {shape.dense_params:,} entries, and orders are found for up to {_MOST_ENTRIES:,}"
    return ""


def _obstacle_of_side(shape: MatrixShape, name: str) -> str:
    part = shape.part
    if name == "row_order" and part.out_size % part.n_gates:
        return f"{part.out_size} rows of {part.n_gates} gates cannot be ordered alike in each"
    size = part.ordered((name,)).order_sizes[name]
    if not _FEWEST <= size <= _MOST:
        return f"there are {size:,} {_SIDES[name]}, and orders are found for {_FEWEST} to {_MOST:,}"
    return ""


def _in_best_orders(
    matrix: Tensor, shape: MatrixShape, names: Sequence[str], options: FitOptions, on_sweep: OnSweep | None
) -> MatrixFit:
    """Each part in the better orders of two: with like rows or columns as neighbours, or moved to better places."""
    tries = [_part_in_best_orders(rows, shape, names, options, on_sweep) for rows in parts_of(matrix, shape)]
    forms = (fitted.value.ordered(orders) for fitted, orders in tries)
    return MatrixFit(tuple(forms), joined([fitted for fitted, _ in tries]).weight_error)


def _part_in_best_orders(
    rows: Tensor, shape: MatrixShape, names: Sequence[str], options: FitOptions, on_sweep: OnSweep | None
) -> tuple[Fit, Orders]:
    pieces = [Piece(_scaled(rows, options.device), shape.part)]
    ties = [((0, name),) for name in names]
    similar = [by_similarity(pieces, tie) for tie in ties]
    tries = [orders_of(0, ties, each) for each in (similar, moved_to_better_places(pieces, ties, similar, options))]
    fits = [fit(in_orders(rows, each, shape.part.n_gates), shape.part, options, on_sweep) for each in tries]
    return min(zip(fits, tries, strict=True), key=lambda one: one[0].weight_error)


def in_similar_orders(matrix: Tensor, shape: MatrixShape, names: Sequence[str], device: torch.device | str) -> Tensor:
    """The matrix with like rows or columns as neighbours, in each part for itself."""
    ordered = []
    for rows in parts_of(matrix, shape):
        piece = Piece(_scaled(rows, device), shape.part)
        orders = {name: by_similarity([piece], ((0, name),)) for name in names}
        ordered.append(in_orders(rows, orders, shape.part.n_gates))
    return torch.cat(ordered)


def parts_of(matrix: Tensor, shape: MatrixShape) -> Tensor:
    """The rows of each form of a matrix, shape ``(n_parts, out_size / n_parts, in_size)``."""
    return matrix.detach().reshape(shape.n_parts, shape.part.out_size, shape.in_size)


def _scaled(matrix: Tensor, device: torch.device | str) -> Tensor:
    return matrix.to(torch.device(device), torch.float64) / (check_finite(matrix) or 1.0)
