"""Which form a layer is written in: a table of what there is, and the one that is expected to run the fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from btcompress.export.request import GraphRequest, Steps
from btcompress.export.weights import Direction, Weight
from btcompress.nn.ways import Operand, is_low_rank

#: Entries of the largest matrix that a session may form of factors.
_MOST_FORMED = 2**25


@dataclass(frozen=True, slots=True)
class Form:
    """How one direction of a layer is written.

    Attributes:
        steps: by which operator.
        inputs: what multiplies the inputs, for all steps at once. An operator does it with a dense matrix, or with the
            left factor of a low-rank one.
        recurrent: what multiplies the hidden states, step by step.
    """

    steps: Steps
    inputs: Operand
    recurrent: Operand


def possible_forms(direction: Direction, request: GraphRequest) -> Iterator[Form]:
    """All forms of a direction that are asked for, in the order of preference.

    ONNX's operators have no projections, and take dense matrices for the states. What they would have to be given may
    be too large to be formed, and integers of what is formed take more bytes than those of factors: they are for whom
    asks for the operator, if it is one that can be in integers.
    """
    recurrent = [weight for weight in (direction.u, direction.p) if weight is not None]
    operands = operands_of(recurrent, request)
    if request.form != "scan" and has_operator(direction, request) and "dense" in operands:
        low_rank = direction.w.shape is not None and is_low_rank(direction.w.shape)
        if low_rank or "dense" in operands_of([direction.w], request):
            yield Form(direction.cell.steps, "factors" if low_rank else "dense", "dense")
    if request.form != "operator":
        for inputs in operands_of([direction.w], request):
            for states in operands:
                yield Form("scan", inputs, states)


def has_operator(direction: Direction, request: GraphRequest) -> bool:
    """Whether there is an operator for the steps of a direction."""
    return direction.p is None and (direction.cell.in_integers or not request.int8)


def operands_of(weights: list[Weight], request: GraphRequest) -> tuple[Operand, ...]:
    """What may multiply by all of some matrices."""
    shapes = [weight.shape for weight in weights if weight.shape is not None]
    if not shapes:
        return ("dense",)
    small = all(shape.dense_params <= _MOST_FORMED for shape in shapes)
    formed = small and (not request.int8 or request.form == "operator")
    return ("factors", "dense") if formed else ("factors",)
