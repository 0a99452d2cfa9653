"""One order of an LSTM layer's hidden units for all sides of matrices that stand for them.

The units' order is one free permutation: of the rows of ``W`` and ``U`` in each gate, of the columns of ``U`` and of
the columns of the next layer's ``W``. Where it serves them all well enough, it is stored and counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm, params_of
from btcompress.fit.arranged import in_orders
from btcompress.fit.blockfit import Fit, FitOptions, MatrixFit, OnSweep, fit, joined
from btcompress.fit.measures import frobenius_norm
from btcompress.orders.ordering import parts_of, sides_to_order
from btcompress.orders.search import Orders, Piece, Tie, by_similarity, moved_to_better_places, orders_of, quick_fits
from btcompress.shapes import MatrixShape

#: The key of a matrix, and ``row_order`` or ``column_order``.
Side = tuple[str, str]
Fits = Mapping[str, MatrixFit]


def share_orders(
    matrices: Mapping[str, Tensor],
    shapes: Mapping[str, MatrixShape],
    units: Sequence[Sequence[Side]],
    own: Fits,
    options: FitOptions = FitOptions(),
    on_sweep: Callable[[str], OnSweep] | None = None,
) -> dict[str, MatrixFit]:
    """Put several sides of matrices in one order where that explains more per parameter.

    For each set of sides, one order is found for all of them, and one for the two sides of each matrix that has two
    there. The matrices are scaled to norm 1 for it, and the sum of their squared weight errors is least. What is kept,
    the fits as they were included, explains the largest share of ``||W||_F^2`` of the set's matrices, added up,
    per parameter, each order counted once.

    Args:
        matrices: by key, any real floating dtype; read only.
        shapes: of each matrix, without orders.
        units: sets of sides, in each of which the same index stands for the same unit; sides of matrices without a
            shape, or that can have no order, are passed over. No side is in two sets.
        own: the fit of each matrix by itself, in orders of its own or in none.
        options: effort and device.
        on_sweep: gives by a matrix's key what to call after each joint sweep of its final fit.

    Returns:
        The fit of each matrix. Sides that share an order have the very same tensor.
    """
    fits, tied = dict(own), frozenset[Side]()
    for sides in units:
        eligible = tuple(
            (key, name)
            for key, name in sides
            if key in shapes and own[key].weight_error and name in sides_to_order(shapes[key])
        )
        keys = tuple(dict.fromkeys(key for key, _ in eligible))
        best, best_sides = dict(fits), frozenset[Side]()
        for chosen in _sets(eligible):
            found = {**fits, **_Search(matrices, shapes, fits, tied, chosen, options).fits(on_sweep)}
            smaller = all(params_of(found[key].parts) < shapes[key].dense_params for key in keys)
            if smaller and _explained_per_parameter(found, keys) > _explained_per_parameter(best, keys):
                best, best_sides = found, frozenset(chosen)
        fits, tied = best, tied | best_sides
    return fits


def _sets(sides: tuple[Side, ...]) -> list[tuple[Side, ...]]:
    """All sides, and the two of each matrix that has two."""
    of_one = [tuple(side for side in sides if side[0] == key) for key in dict.fromkeys(key for key, _ in sides)]
    return [each for each in dict.fromkeys([sides, *of_one]) if len(each) > 1]


def _explained_per_parameter(fits: Fits, keys: Sequence[str]) -> float:
    explained = sum(1 - fits[key].weight_error ** 2 for key in keys)
    return explained / params_of([part for key in keys for part in fits[key].parts])


class _Search:
    """The best order of some sides, and with it of the other sides of their matrices that have an order now.

    What is in the way of a set of sides that has its order already stays as it is.
    """

    def __init__(
        self,
        matrices: Mapping[str, Tensor],
        shapes: Mapping[str, MatrixShape],
        now: Fits,
        tied: frozenset[Side],
        sides: Sequence[Side],
        options: FitOptions,
    ) -> None:
        self._options = options
        self._keys: list[str] = []
        self._rows: list[Tensor] = []
        self._fixed: list[Orders] = []
        self._pieces: list[Piece] = []
        shared: list[tuple[int, str]] = []
        free: dict[tuple[int, str], Tensor] = {}
        starts: list[Tensor] = []
        for key in dict.fromkeys(key for key, _ in sides):
            shape, norm = shapes[key], frobenius_norm(matrices[key])
            for rows, form in zip(parts_of(matrices[key], shape), now[key].parts, strict=True):
                at, orders = len(self._keys), dict(zip(form.shape.order_sizes, form.orders, strict=True))
                shared += [(at, name) for name in sides_to_order(shape) if (key, name) in sides]
                for name, order in orders.items():
                    if (key, name) in sides:
                        # Gates in orders of their own offer none that is the matrix's.
                        starts += [order] * (shape.n_parts == 1)
                    elif (key, name) not in tied:
                        free[at, name] = order
                fixed = {name: order for name, order in orders.items() if (key, name) in tied}
                rows = in_orders(rows, fixed, shape.part.n_gates)
                scaled = rows.to(torch.device(options.device), torch.float64) / norm
                self._keys.append(key)
                self._rows.append(rows)
                self._fixed.append(fixed)
                self._pieces.append(Piece(scaled, shape.part))
        self._ties: list[Tie] = [tuple(shared), *((side,) for side in free)]
        similar = by_similarity(self._pieces, self._ties[0])
        self._starts = [[start, *free.values()] for start in (similar, *starts)]

    def fits(self, on_sweep: Callable[[str], OnSweep] | None) -> dict[str, MatrixFit]:
        """The fits of the matrices in the best orders found, from several to begin with."""
        pieces, ties, options = self._pieces, self._ties, self._options
        tries = [moved_to_better_places(pieces, ties, start, options) for start in self._starts]
        best = min((*self._starts, *tries), key=lambda orders: quick_fits(pieces, ties, orders, options)[0])
        fits: dict[str, list[Fit]] = {key: [] for key in self._keys}
        forms: dict[str, list[BlockTerm]] = {key: [] for key in self._keys}
        for at, (key, rows, piece) in enumerate(zip(self._keys, self._rows, pieces, strict=True)):
            orders = orders_of(at, ties, best)
            ordered = in_orders(rows, orders, piece.shape.n_gates)
            fitted = fit(ordered, piece.shape, options, None if on_sweep is None else on_sweep(key))
            fits[key].append(fitted)
            forms[key].append(fitted.value.ordered({**self._fixed[at], **orders}))
        return {key: MatrixFit(tuple(forms[key]), joined(fits[key]).weight_error) for key in fits}
