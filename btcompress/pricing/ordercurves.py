"""Forms in orders of rows and columns, on the same curve as those without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from btcompress.orders.ordering import choices_of_sides, in_similar_orders, sides_to_order
from btcompress.pricing.curves import Curve, FormsWithCore, price
from btcompress.shapes import MatrixShape


def price_in_orders(
    matrix: Tensor,
    curve: Curve,
    without_core: Sequence[MatrixShape],
    with_core: Sequence[FormsWithCore],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Curve:
    """A curve with forms in orders by similarity, which cost little to find, wherever one beats what was on it.

    :func:`btcompress.orders.fit_ordered` finds orders of the same sides that are at least as good.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        curve: of the same forms without orders.
        without_core: as for :func:`btcompress.pricing.price`; forms that have no orders are passed over.
        with_core: likewise.
        seed: likewise.
        device: likewise.
        on_step: likewise.
    """
    shapes = [shape for shape in without_core if sides_to_order(shape)]
    forms = [each for each in with_core if sides_to_order(each.shape)]
    every = [*shapes, *(each.shape for each in forms)]
    # Gates in orders of their own make another matrix than gates ordered alike.
    tries = [
        (names, gates)
        for gates in dict.fromkeys(shape.gates for shape in every)
        for names in choices_of_sides(next(shape for shape in every if shape.gates == gates))
    ]
    for done, (names, gates) in enumerate(tries):

        def step(part: int, count: int, done: int = done) -> None:
            if on_step is not None:
                on_step(done * count + part, len(tries) * count)

        like = next(shape for shape in every if shape.gates == gates)
        found = price(
            in_similar_orders(matrix, like, names, device),
            [shape.ordered(names) for shape in shapes if shape.gates == gates],
            [replace(each, shape=each.shape.ordered(names)) for each in forms if each.shape.gates == gates],
            known=curve.points,
            seed=seed,
            device=device,
            on_step=step,
        )
        curve = replace(curve, points=found.points)
    return curve
