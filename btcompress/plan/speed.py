"""What the time of a form counts in a plan, where its objective is speed."""

from __future__ import annotations

from btcompress.contraction import MOVE_COST, plan_chain
from btcompress.pricing import Curve, Point
from btcompress.shapes import MatrixShape

#: A form that takes as long as the dense matrix loses this share more than it does; a faster one, less in proportion.
WEIGHT = 0.25
#: Of forms within an error wished for, those of at most this times the size of the smallest count as its equals.
MARGIN = 1.1


def row_cost(shape: MatrixShape) -> int:
    """Estimated time of one row's product by the factors, in floating-point operations."""
    part = shape.part
    if not part.is_low_rank:
        return shape.n_parts * plan_chain(part.n_blocks, part.in_modes, part.out_modes, part.ranks).cost
    rank, sides = part.ranks[0], part.in_size + part.out_size
    return shape.n_parts * (2 * rank * sides + MOVE_COST * (sides + 2 * rank))


def slowness(curve: Curve, point: Point) -> float:
    """The time of a form over that of the dense matrix, at most 1."""
    if point.shape is None:
        return 1.0
    rows, columns = point.shape.out_size, point.shape.in_size
    return min(1.0, row_cost(point.shape) / (2 * curve.dense_params + MOVE_COST * (rows + columns)))


def weighed(loss: float, curve: Curve, point: Point) -> float:
    """A squared loss with what the time of the form adds to it."""
    return loss * (1 + WEIGHT * slowness(curve, point))
