"""What ONNX has for each cell: its operator, the order of gates there, and the definition of a step as nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from btcompress.export.graphs import Nodes
from btcompress.export.request import Steps
from btcompress.shapes import Cell, Nonlinearity

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Sums:
    """What the gates of a step are made of.

    Attributes:
        z: ``W x`` and what is added to it beforehand, shape ``(B, gates * H)``.
        u: ``U h``.
        bias: added to the last rows of ``U h``, where it is not among ``z``.
        hidden_size: ``H``.
    """

    z: ir.Value
    u: ir.Value
    bias: ir.Value | None
    hidden_size: int


#: The states after a step, as nodes, by its sums and the states before.
Step = Callable[[Nodes, Sums, Sequence["ir.Value"]], tuple["ir.Value", ...]]


@dataclass(frozen=True, slots=True)
class OnnxCell:
    """How ONNX writes a cell.

    Attributes:
        operator: ONNX's, for all steps of a direction.
        gates: which of torch's gates each of the operator's is (onnx.ai, of each operator).
        states: what there is of a state.
        activations: that the operator is told, where they are not those that it takes anyway.
        reset: gates, the last ones, whose bias of ``U h`` stays with that, as both are multiplied; all others are added
            to ``W x`` beforehand.
        in_integers: whether ONNX Runtime's quantizer knows the operator.
        step: the definition.
    """

    operator: Literal["LSTM", "GRU", "RNN"]
    gates: tuple[int, ...]
    states: tuple[Literal["h", "c"], ...]
    step: Step
    activations: tuple[str, ...] = ()
    reset: int = 0
    in_integers: bool = False

    @property
    def steps(self) -> Steps:
        """What the operator is called among the ways to write steps."""
        return _STEPS[self.operator]

    @property
    def attributes(self) -> dict[str, int | list[str]]:
        """Those of the operator beside its size and direction."""
        told: dict[str, int | list[str]] = {"activations": list(self.activations)} if self.activations else {}
        return {**told, "linear_before_reset": 1} if self.reset else told

    def rows(self, hidden_size: int) -> Tensor | None:
        """Which row of torch's each row of the operator's matrices is; None where they are the same."""
        if self.gates == tuple(sorted(self.gates)):
            return None
        return torch.cat([torch.arange(hidden_size) + gate * hidden_size for gate in self.gates])

    def biases(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is added to ``W x``, and to the last rows of ``U h``.

        Args:
            first: the bias of ``W x``.
            second: the bias of ``U h``.
        """
        n_added = len(second) * (len(self.gates) - self.reset) // len(self.gates)
        own = second[n_added:]
        return first + torch.cat([second[:n_added], torch.zeros_like(own)]), own if len(own) else None


_STEPS: dict[Literal["LSTM", "GRU", "RNN"], Steps] = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}


def cell_of(cell: Cell, nonlinearity: Nonlinearity = "tanh") -> OnnxCell:
    """How ONNX writes a cell.

    Args:
        cell: what it computes.
        nonlinearity: of a plain RNN.
    """
    return _CELLS[f"{cell}_{nonlinearity}" if cell == "rnn" else cell]


def _lstm_step(nodes: Nodes, sums: Sums, states: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    """``i, f, g, o = split(z + U h)``, ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h' = sigmoid(o) tanh(c')``."""
    i, f, g, o = nodes.ops("Split", nodes.op("Add", sums.u, sums.z), n_outputs=4, axis=1, num_outputs=4)
    i, f, o = (nodes.op("Sigmoid", gate) for gate in (i, f, o))
    c = nodes.op("Add", nodes.op("Mul", f, states[1]), nodes.op("Mul", i, nodes.op("Tanh", g)))
    return nodes.op("Mul", o, nodes.op("Tanh", c)), c


def _gru_step(nodes: Nodes, sums: Sums, states: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    """``r, z = split(sigmoid(W x + U h + b))``, ``n = tanh(W_n x + b_n + r (U_n h + d_n))``, ``h' = n + z (h - n)``."""
    sizes = nodes.integers(2 * sums.hidden_size, sums.hidden_size)
    (z, z_new), (u, u_new) = (nodes.ops("Split", each, sizes, n_outputs=2, axis=1) for each in (sums.z, sums.u))
    reset, update = nodes.ops("Split", nodes.op("Sigmoid", nodes.op("Add", u, z)), n_outputs=2, axis=1, num_outputs=2)
    if sums.bias is not None:
        u_new = nodes.op("Add", u_new, sums.bias)
    new = nodes.op("Tanh", nodes.op("Add", nodes.op("Mul", reset, u_new), z_new))
    return (nodes.op("Add", new, nodes.op("Mul", update, nodes.op("Sub", states[0], new))),)


def _rnn_step(activation: str) -> Step:
    """``h' = tanh(z + U h)``, or with another function."""
    return lambda nodes, sums, _: (nodes.op(activation, nodes.op("Add", sums.u, sums.z)),)


_CELLS = {
    # Torch's gates are i, f, g, o, and ONNX's i, o, f, c, which is g.
    "lstm": OnnxCell("LSTM", (0, 3, 1, 2), ("h", "c"), _lstm_step, in_integers=True),
    # Torch's are r, z, n, and ONNX's z, r, h, which is n.
    "gru": OnnxCell("GRU", (1, 0, 2), ("h",), _gru_step, reset=1),
    "rnn_tanh": OnnxCell("RNN", (0,), ("h",), _rnn_step("Tanh"), ("Tanh",)),
    "rnn_relu": OnnxCell("RNN", (0,), ("h",), _rnn_step("Relu"), ("Relu",)),
}
