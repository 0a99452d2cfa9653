"""All layers of an LSTM, a GRU or a plain RNN as nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from btcompress.export.costs import choose_form
from btcompress.export.graphs import Nodes
from btcompress.export.packed import Dequantizer
from btcompress.export.request import GraphRequest, Steps
from btcompress.export.steps import Run
from btcompress.export.weights import Weights

if TYPE_CHECKING:
    import onnx_ir as ir


def written(
    nodes: Nodes,
    weights: Weights,
    request: GraphRequest,
    x: ir.Value,
    states: Sequence[ir.Value],
    lengths: ir.Value | None = None,
    *,
    one_step: bool = False,
) -> tuple[tuple[ir.Value, ...], Mapping[str, Steps]]:
    """A recurrent layer as nodes.

    Args:
        nodes: of the graph, to which they are added.
        weights: matrices and biases.
        request: how it is to be written.
        x: inputs, ``(T, B, I)``, or ``(B, T, I)`` where that is asked for.
        states: initial hidden states, ``(layers * directions, B, H)``, or of the projected size; and of an LSTM the
            cell states, ``(layers * directions, B, H)``.
        lengths: steps of each sequence, int32 or int64, shape ``(B,)``; None where all have as many.
        one_step: whether there is never more than one step; without lengths.

    Returns:
        ``y``, ``(T, B, directions * H)``, or the batch first, and the final states as the initial ones; and how the
        steps of each layer and direction are written, by its suffix.

    Raises:
        BTCompressError: no form that is asked for can write a layer.
    """
    if lengths is not None:
        lengths = nodes.op("Cast", lengths, to=6)
    outputs = nodes.op("Transpose", x, perm=[1, 0, 2]) if request.batch_first else x
    # The quantizer makes integers of floats alone.
    dequantizer = None if request.int8 else Dequantizer(nodes, weights.tensors(), request.dequantize)
    forms: dict[str, Steps] = {}
    finals: list[tuple[ir.Value, ...]] = []
    for directions in weights.layers:
        given, found = outputs, []
        for direction in directions:
            form = choose_form(direction, weights.hidden_size, request)
            forms[direction.suffix] = form.steps
            sizes = weights.hidden_size, weights.output_size
            run = Run(nodes, direction, *sizes, dequantizer, lengths, one_step, request.int8)
            y, final = run.written(form, given, [_state(nodes, each, weights, len(finals)) for each in states])
            found.append(y)
            finals.append(final)
        outputs = _joined(nodes, found, 2)
    if request.batch_first:
        outputs = nodes.op("Transpose", outputs, perm=[1, 0, 2])
    return (outputs, *(_joined(nodes, list(each), 0) for each in zip(*finals, strict=True))), forms


def _state(nodes: Nodes, states: ir.Value, weights: Weights, number: int) -> ir.Value:
    """The initial state of one layer and direction, ``(1, B, H)``."""
    if len(weights.layers) * weights.n_directions == 1:
        return states
    return nodes.op("Slice", states, nodes.integers(number), nodes.integers(number + 1), nodes.integers(0))


def _joined(nodes: Nodes, values: list[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else nodes.op("Concat", *values, axis=axis)
