"""Recurrent nodes of ONNX graphs: ``LSTM``, ``GRU`` and ``RNN``, whose gates are ordered i,o,f,c and z,r,h.

What a node computes, its attributes say: https://onnx.ai/onnx/operators/onnx__LSTM.html and beside it. Their defaults
are torch's functions, but for the reset gate of ``GRU``; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from btcompress.dialects.arranging import Direction, as_layers, in_order
from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.shapes import GATES, Cell, Nonlinearity


def _find(_: Mapping[str, Tensor]) -> Iterator[Found]:
    """None: what is a recurrent layer, the nodes say, and not the names of tensors."""
    return iter(())


#: Of the layers that nodes are.
DIALECT = Dialect("ONNX", _find)

_CELLS: dict[str, Cell] = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}
#: The order of the gates by torch's letters.
_ORDERS: dict[Cell, str] = {"lstm": "iofg", "gru": "zrn", "rnn": "h"}
#: Functions for each direction that torch has as well.
_FUNCTIONS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
_NONLINEARITIES: dict[str, Nonlinearity] = {"tanh": "tanh", "relu": "relu"}

_MATRIX_AXES = 3


@dataclass(frozen=True, slots=True)
class RecurrentNode:
    """A node of a graph, and the constants that it is given.

    Attributes:
        name: of the layer that it is.
        operator: ``"LSTM"``, ``"GRU"`` or ``"RNN"``.
        attributes: as the node has them; texts as such.
        weights: the names of its constants, by ``"W"``, ``"R"``, ``"B"`` and ``"P"``; those that it has.
    """

    name: str
    operator: str
    attributes: Mapping[str, object]
    weights: Mapping[str, str]


def layer_of(node: RecurrentNode, tensors: Mapping[str, Tensor]) -> Found:
    """The layer of torch's that a node is.

    Args:
        node: one of an operator that is known.
        tensors: the constants by name, of which those of the node are looked at.
    """
    cell = _CELLS[node.operator]
    weights = {part: tensors[key] for part, key in node.weights.items()}
    keys = tuple(node.weights.values())
    direction = _text(node.attributes.get("direction", "forward"))
    obstacle = _misfit(node, weights, direction) or _obstacle(node, weights, direction)
    if obstacle is not None:
        return Refused(node.name, keys, obstacle)
    notices: tuple[str, ...] = ()
    if direction == "reverse":
        told = f"{node.name or 'the top'} runs from the end of a sequence to its beginning in the graph. The layer here"
        notices = (f"{told} runs forward: turn its inputs round, and its outputs.",)
    nonlinearity = _NONLINEARITIES[_functions(node, direction)[0]] if cell == "rnn" else None
    return Converted(node.name, keys, partial(_make, cell, weights), nonlinearity, notices)


def _make(cell: Cell, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torch's class: of W (D, G H, I), R (D, G H, H) and B (D, 2 G H)."""
    arranged = partial(in_order, order=_ORDERS[cell], kind=cell)
    directions = []
    for n in range(weights["W"].shape[0]):
        biases = [arranged(each) for each in weights["B"][n].chunk(2)] if "B" in weights else [None, None]
        directions.append(Direction(arranged(weights["W"][n]), arranged(weights["R"][n]), *biases))
    return as_layers(directions, bidirectional=len(directions) > 1)


def _misfit(node: RecurrentNode, weights: Mapping[str, Tensor], direction: str) -> str | None:
    """Where the constants are not those of such a node."""
    n_directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    if n_directions is None:
        return f"its direction is {direction!r}, which ONNX does not have; export the model again"
    inputs, recurrent = weights["W"], weights["R"]
    if inputs.dim() != _MATRIX_AXES or recurrent.dim() != _MATRIX_AXES or not inputs.numel() or not recurrent.numel():
        return f"W {tuple(inputs.shape)} and R {tuple(recurrent.shape)} are no stacked matrices; export the model again"
    gates, hidden = len(GATES[_CELLS[node.operator]]), recurrent.shape[2]
    rows = gates * hidden
    sizes: dict[str, tuple[int, ...]] = {
        "W": (n_directions, rows, inputs.shape[2]),
        "R": (n_directions, rows, hidden),
        "B": (n_directions, 2 * rows),
    }
    for part, size in sizes.items():
        found = tuple(weights[part].shape) if part in weights else size
        if found != size:
            return f"{part} has shape {found} where {size} follows from its attributes and R; export the model again"
    said = node.attributes.get("hidden_size", hidden)
    if said != hidden:
        return f"its hidden_size is {said}, but R has {hidden} columns; export the model again"
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) > 1 or not inputs.is_floating_point():
        return "its weights are not floating-point numbers of one type; export the model again"
    return None


def _obstacle(node: RecurrentNode, weights: Mapping[str, Tensor], direction: str) -> str | None:
    """What the node computes otherwise than torch's layers, and what to do."""
    cell = _CELLS[node.operator]
    advice = "which torch's does not, so there is no lossless form of it"
    if "P" in weights and bool(weights["P"].any()):
        return f"an LSTM with peepholes (its input P), {advice}"
    if "clip" in node.attributes:
        return f"it clips its sums at {node.attributes['clip']} (clip), {advice}"
    if node.attributes.get("input_forget", 0):
        return f"its input and forget gates are one (input_forget), {advice}"
    if cell == "gru" and not node.attributes.get("linear_before_reset", 0):
        return (
            "a GRU whose reset gate acts before the recurrent matrix (linear_before_reset is 0), where torch's acts "
            "after it: another function"
        )
    functions = _functions(node, direction)
    expected = _FUNCTIONS[cell] * (2 if direction == "bidirectional" else 1)
    if cell == "rnn" and functions[0] in _NONLINEARITIES:
        expected = functions[:1] * len(expected)
    if functions != expected:
        return f"its functions are {', '.join(functions)}, where torch's are {', '.join(expected)}"
    return None


def _functions(node: RecurrentNode, direction: str) -> tuple[str, ...]:
    given = node.attributes.get("activations")
    if isinstance(given, list | tuple) and given:
        return tuple(_text(each).lower() for each in given)
    return _FUNCTIONS[_CELLS[node.operator]] * (2 if direction == "bidirectional" else 1)


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value)
