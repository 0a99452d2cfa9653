"""The search for orders of rows and columns: like ones as neighbours, then each at the place that suits it best.

Matrices are searched together where sides of several have one order, as the hidden units of an LSTM layer have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from btcompress.fit.arranged import in_orders
from btcompress.fit.blockfit import Fit, FitOptions, fit
from btcompress.shapes import BlockTermShape

#: Tucker ranks at which rows and columns are moved to better places, one after the other, before the forms' own.
_RISING_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
#: Moves at each rank, and sweeps of the fits after each.
_MOVES = 10
_SWEEPS = 20

Orders = dict[str, Tensor]
#: Sides that have one order: of each the position of its piece, and ``row_order`` or ``column_order``.
Tie = tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A matrix that one block-term form is fitted to.

    Attributes:
        matrix: shape ``(out_size, in_size)``, float64. What is lost of several matrices is added up as it stands, so
            they should have norms that say what each is worth.
        shape: of the form, without orders.
    """

    matrix: Tensor
    shape: BlockTermShape


def neighbours(vectors: Tensor) -> Tensor:
    """An order in which like vectors are neighbours: the leaves of a tree of average linkage on correlation.

    Args:
        vectors: shape ``(n, m)``, float64, with ``n`` at least 2.

    Returns:
        Their indices, int32.
    """
    # Loaded here, as SciPy takes long to load and few jobs look for orders.
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

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
    from scipy.optimize import linear_sum_assignment

    _, chosen = linear_sum_assignment((places @ vectors.T).cpu().numpy(), maximize=True)
    return torch.from_numpy(chosen.astype("int32"))


def by_similarity(pieces: Sequence[Piece], tie: Tie) -> Tensor:
    """The order in which what a tie's sides have at the same index, side by side, is next to its like; int32."""
    return neighbours(torch.cat([_vectors(pieces[n].matrix, name, pieces[n].shape.n_gates) for n, name in tie], dim=1))


def orders_of(n: int, ties: Sequence[Tie], orders: Sequence[Tensor]) -> Orders:
    """The orders of the sides of piece ``n``, by name."""
    pairs = ((side, order) for tie, order in zip(ties, orders, strict=True) for side in tie)
    return {name: order for (piece, name), order in pairs if piece == n}


def moved_to_better_places(
    pieces: Sequence[Piece], ties: Sequence[Tie], orders: Sequence[Tensor], options: FitOptions
) -> list[Tensor]:
    """Orders found from others by moving rows and columns to where the fits, at rising ranks, are like them.

    Args:
        pieces: matrices and forms.
        ties: sides and what shares one order; each side once. Sides in none stay as they are.
        orders: of each tie, to begin with.
        options: of the fits, which are given few sweeps here.
    """
    orders = list(orders)
    for shapes in _rungs([piece.shape for piece in pieces]):
        rung = [replace(piece, shape=shape) for piece, shape in zip(pieces, shapes, strict=True)]
        orders = moved(rung, ties, orders, options)
    return orders


def moved(pieces: Sequence[Piece], ties: Sequence[Tie], orders: Sequence[Tensor], options: FitOptions) -> list[Tensor]:
    """Move rows and columns to where the fits are like them, fit anew, and repeat while the error falls.

    Args:
        pieces: matrices and forms.
        ties: as for :func:`moved_to_better_places`.
        orders: likewise.
        options: likewise.
    """
    orders = list(orders)
    error, fits = quick_fits(pieces, ties, orders, options)
    for _ in range(_MOVES):
        approximations = [each.value.to_dense() for each in fits]
        candidate = list(orders)
        for index, tie in enumerate(ties):
            candidate[index] = _better(pieces, approximations, ties, candidate, tie)
        if all(torch.equal(new, old) for new, old in zip(candidate, orders, strict=True)):
            break
        new_error, new_fits = quick_fits(pieces, ties, candidate, options)
        if new_error >= error:
            break
        error, fits, orders = new_error, new_fits, candidate
    return orders


def quick_fits(
    pieces: Sequence[Piece], ties: Sequence[Tie], orders: Sequence[Tensor], options: FitOptions
) -> tuple[float, list[Fit]]:
    """Fits of few sweeps in these orders, and before them the norm of all that they miss together."""
    options = replace(options, max_sweeps=min(options.max_sweeps, _SWEEPS), restarts=0)
    fits = [
        fit(in_orders(piece.matrix, orders_of(n, ties, orders), piece.shape.n_gates), piece.shape, options)
        for n, piece in enumerate(pieces)
    ]
    return math.hypot(*(each.weight_error * each.norm for each in fits)), fits


def _better(
    pieces: Sequence[Piece], approximations: Sequence[Tensor], ties: Sequence[Tie], orders: Sequence[Tensor], tie: Tie
) -> Tensor:
    """The best order of one tie for these approximations, each of its sides beside all other sides as they stand.

    Where both sides of one piece are in it, the other one stays as it is meanwhile: a linear assignment problem can
    place rows or columns, not what is both.
    """
    vectors, places = [], []
    for n, name in tie:
        piece = pieces[n]
        others = {other: order for other, order in orders_of(n, ties, orders).items() if other != name}
        vectors.append(_vectors(in_orders(piece.matrix, others, piece.shape.n_gates), name, piece.shape.n_gates))
        places.append(_vectors(approximations[n], name, piece.shape.n_gates))
    return best_places(torch.cat(vectors, dim=1), torch.cat(places, dim=1))


def _rungs(shapes: Sequence[BlockTermShape]) -> Iterator[list[BlockTermShape]]:
    """Single blocks of rising ranks, and then the forms themselves.

    At a form's own ranks hardly any move pays, as the fit has adapted to where everything stands.
    """
    for rank in _RISING_RANKS:
        if any(rank < max(shape.ranks) for shape in shapes):
            yield [
                replace(shape, n_blocks=1, ranks=tuple(min(rank, own) for own in shape.ranks))
                if rank < max(shape.ranks)
                else shape
                for shape in shapes
            ]
    yield list(shapes)


def _vectors(matrix: Tensor, name: str, n_gates: int) -> Tensor:
    """What is to be ordered: the rows, those of all gates side by side, or the columns; each a row of the result."""
    if name == "column_order":
        return matrix.T
    return matrix.reshape(n_gates, -1, matrix.shape[1]).transpose(0, 1).reshape(-1, n_gates * matrix.shape[1])
