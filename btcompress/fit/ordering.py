"""Orders of rows and columns in which block terms fit a matrix better.

The order of an LSTM's hidden units means nothing, but paired modes fit best where neighbours are alike. So the rows
of a matrix, alike in all gates, and its columns may be given an order of their own, which is stored with the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform
from torch import Tensor

from btcompress.fit.blockfit import Fit, FitOptions, MatrixFit, OnSweep, check_finite, fit, fit_matrix, joined
from btcompress.shapes import BlockTermShape, MatrixShape

#: Entries of a matrix up to which it is copied in float64 to find orders; rows or columns that are compared in pairs.
_MOST_ENTRIES = 2**20
_MOST_PAIRED = 2**11
#: Tucker ranks at which rows and columns are moved to better places, one after the other, before the form's own.
_RISING_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
#: Moves at each rank, and sweeps of the fit after each.
_MOVES = 10
_SWEEPS = 20
#: A side of fewer places has no order worth storing.
_FEWEST = 4

Orders = dict[str, Tensor]


def fit_ordered(
    matrix: Tensor, shape: MatrixShape, options: FitOptions = FitOptions(), on_sweep: OnSweep | None = None
) -> MatrixFit:
    """Fit a matrix as :func:`btcompress.fit.fit_matrix` does, or in better orders of its rows and columns.

    Orders are found for rows, for columns and for both; those that are kept leave the share of ``||W||_F^2`` that
    each parameter explains, the integers of the orders counted, higher than it is without, and the form smaller than
    the matrix. If none do, or the form is plain low rank, of order 1 or of a matrix of more than 2^20 entries, the
    matrix keeps its order.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        shape: block-term shape, without orders; ranks beyond what its modes hold are lowered.
        options: effort and device.
        on_sweep: called after each joint sweep of a final fit.

    Returns:
        The forms, whose shapes say which orders they have.

    Raises:
        ShapeError: the matrix does not have the shape's size, or the shape has orders.
        BTCompressError: the matrix is not finite.
    """
    plain = fit_matrix(matrix, shape, options, on_sweep)
    if shape.part.is_low_rank or shape.part.order == 1 or matrix.numel() > _MOST_ENTRIES or not plain.weight_error:
        return plain
    stacked = matrix.detach().reshape(shape.n_parts, shape.part.out_size, shape.in_size)
    plain_params = shape.limited().n_params
    price = (1 - plain.weight_error**2) / plain_params
    best, best_gain = plain, 0.0
    for names in _sides(shape.part):
        tries = [_in_best_orders(part, shape.part, names, options, on_sweep) for part in stacked]
        ordered = joined([fitted for fitted, _ in tries])
        n_added = shape.n_parts * sum(shape.part.ordered(names).order_sizes.values())
        gain = plain.weight_error**2 - ordered.weight_error**2 - price * n_added
        if gain > best_gain and plain_params + n_added < shape.dense_params:
            forms = (form.ordered(orders) for form, (_, orders) in zip(ordered.parts, tries, strict=True))
            best, best_gain = MatrixFit(tuple(forms), ordered.weight_error), gain
    return best


def in_orders(matrix: Tensor, orders: Mapping[str, Tensor], n_gates: int) -> Tensor:
    """The matrix with the rows of each gate, and the columns, in these orders.

    Args:
        matrix: shape ``(out_size, in_size)``.
        orders: ``row_order``, integers of shape ``(out_size / n_gates,)``, and ``column_order``, ``(in_size,)``; a
            side without one stays as it is.
        n_gates: row groups, ordered alike.
    """
    if "row_order" in orders:
        rows = orders["row_order"].to(matrix.device)
        matrix = matrix.reshape(n_gates, -1, matrix.shape[1]).index_select(1, rows).reshape(matrix.shape)
    if "column_order" in orders:
        matrix = matrix.index_select(1, orders["column_order"].to(matrix.device))
    return matrix


def neighbours(vectors: Tensor) -> Tensor:
    """An order in which like vectors are neighbours: the leaves of a tree of average linkage on correlation.

    Args:
        vectors: shape ``(n, m)``, float64, with ``n`` at least 2.

    Returns:
        Their indices, int32.
    """
    centred = vectors - vectors.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    directions = centred / torch.where(norms > 0, norms, 1.0)
    distances = (1 - directions @ directions.T).clamp_min(0).fill_diagonal_(0)
    symmetric = (distances + distances.T).div(2).cpu().numpy()
    tree = linkage(squareform(symmetric, checks=False), "average", optimal_ordering=True)
    return torch.from_numpy(leaves_list(tree).astype("int32"))


def best_places(vectors: Tensor, places: Tensor) -> Tensor:
    """The order of vectors that puts them nearest, in the sum of squared distances, to what stands at each place.

    Args:
        vectors: shape ``(n, m)``, float64.
        places: likewise.

    Returns:
        For each place the index of the vector to put there, int32.
    """
    _, chosen = linear_sum_assignment((places @ vectors.T).cpu().numpy(), maximize=True)
    return torch.from_numpy(chosen.astype("int32"))


def _sides(shape: BlockTermShape) -> Iterator[tuple[str, ...]]:
    """The sides to order: rows, columns, both; none that is too short or too long."""
    every = ("row_order", "column_order") if shape.out_size % shape.n_gates == 0 else ("column_order",)
    sizes = shape.ordered(every).order_sizes
    names = tuple(name for name, size in sizes.items() if _FEWEST <= size <= _MOST_PAIRED)
    yield from ((name,) for name in names)
    if len(names) > 1:
        yield names


def _in_best_orders(
    matrix: Tensor, shape: BlockTermShape, names: tuple[str, ...], options: FitOptions, on_sweep: OnSweep | None
) -> tuple[Fit, Orders]:
    """The better fit of two: with like rows or columns as neighbours, and after moving them to better places."""
    device = torch.device(options.device)
    scaled = matrix.to(device, torch.float64) / (check_finite(matrix) or 1.0)
    start = {name: neighbours(_vectors(scaled, name, shape.n_gates)) for name in names}
    moved = start
    for rung in _rungs(shape):
        moved = _moved(scaled, rung, moved, options)
    fits = [fit(in_orders(matrix, each, shape.n_gates), shape, options, on_sweep) for each in (start, moved)]
    return min(zip(fits, (start, moved), strict=True), key=lambda one: one[0].weight_error)


def _rungs(shape: BlockTermShape) -> Iterator[BlockTermShape]:
    """Single blocks of rising ranks, and then the form itself.

    At the form's own ranks hardly any move pays, as the fit has adapted to where everything stands.
    """
    for rank in _RISING_RANKS:
        if rank < max(shape.ranks):
            yield replace(shape, n_blocks=1, ranks=tuple(min(rank, own) for own in shape.ranks))
    yield shape


def _moved(matrix: Tensor, shape: BlockTermShape, orders: Orders, options: FitOptions) -> Orders:
    """Move rows and columns to where the fit is like them, fit anew, and repeat while the error falls."""
    options = replace(options, max_sweeps=min(options.max_sweeps, _SWEEPS), restarts=0)
    best = fit(in_orders(matrix, orders, shape.n_gates), shape, options)
    for _ in range(_MOVES):
        approximation, candidate = best.value.to_dense(), dict(orders)
        for name in orders:
            others = {other: order for other, order in candidate.items() if other != name}
            target = in_orders(matrix, others, shape.n_gates)
            vectors = (_vectors(each, name, shape.n_gates) for each in (target, approximation))
            candidate[name] = best_places(*vectors)
        if all(torch.equal(candidate[name], orders[name]) for name in orders):
            break
        fitted = fit(in_orders(matrix, candidate, shape.n_gates), shape, options)
        if fitted.weight_error >= best.weight_error:
            break
        best, orders = fitted, candidate
    return orders


def _vectors(matrix: Tensor, name: str, n_gates: int) -> Tensor:
    """What is to be ordered: the rows, those of all gates side by side, or the columns; each a row of the result."""
    if name == "column_order":
        return matrix.T
    return matrix.reshape(n_gates, -1, matrix.shape[1]).transpose(0, 1).reshape(-1, n_gates * matrix.shape[1])
