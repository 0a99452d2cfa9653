"""The steps of one direction of a layer as nodes: ONNX's ``LSTM`` operator, or a ``Scan`` over the step as defined.

A single step needs no ``Scan`` around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btcompress.export.forms import Form
from btcompress.export.graphs import Nodes, value
from btcompress.export.matrices import Matrix
from btcompress.export.operands import Operand
from btcompress.export.packed import Dequantizer
from btcompress.export.weights import Direction, Weight

if TYPE_CHECKING:
    import onnx_ir as ir

#: Torch's gates are i, f, g, o, and ONNX's i, o, f, c, which is g (onnx.ai, operator LSTM).
_ONNX_GATES = (0, 3, 1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One direction of a layer.

    Attributes:
        nodes: of the graph.
        direction: its matrices.
        hidden_size: ``H``.
        output_size: of hidden states.
        dequantizer: makes floats of packed numbers; None where there are none in the graph.
        lengths: steps of each sequence, int32, shape ``(B,)``; None where all have as many.
        one_step: whether there is never more than one step; without lengths.
        int8: whether a quantizer is to make integers of the constants.
    """

    nodes: Nodes
    direction: Direction
    hidden_size: int
    output_size: int
    dequantizer: Dequantizer | None
    lengths: ir.Value | None = None
    one_step: bool = False
    int8: bool = False

    @property
    def is_reverse(self) -> bool:
        """Whether it begins with the last step."""
        return self.direction.suffix.endswith("_reverse")

    def written(self, form: Form, x: ir.Value, h: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """All steps.

        Args:
            form: how they are written.
            x: inputs, ``(T, B, I)``.
            h: initial hidden state, ``(1, B, H)``, or the projected size.
            c: initial cell state, ``(1, B, H)``.

        Returns:
            Outputs ``(T, B, H)``, and the final states as the initial ones. Outputs after the end of a sequence are 0,
            and the states are those at its end.
        """
        if form.steps == "lstm":
            return self._by_operator(x, h, c)
        return self._by_definition(form, x, h, c)

    def _matrix(self, weight: Weight, rows: Tensor | None = None) -> Matrix:
        return Matrix(self.nodes, weight, self.dequantizer, rows, self.int8)

    def _by_operator(self, x: ir.Value, h: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        nodes, direction = self.nodes, self.direction
        gates = _gate_rows(self.hidden_size)
        w, u = self._matrix(direction.w, gates), self._matrix(direction.u, gates)
        if w.is_low_rank:
            left, right = w.low_rank()
            left = left.permuted(nodes, 1, 0)
            x = nodes.op("MatMul", x, right.permuted(nodes, 1, 0).value(nodes))
        else:
            left = w.dense()
        matrices = [_stacked(nodes, each) for each in (left, u.dense())]
        bias = None
        if direction.biases is not None:
            own = [Operand.of(each, self.dequantizer).taken(nodes, gates, 0).value(nodes) for each in direction.biases]
            bias = nodes.op("Unsqueeze", nodes.op("Concat", *own, axis=0), nodes.integers(0))
        y, hn, cn = nodes.ops(
            "LSTM",
            x,
            *matrices,
            bias,
            self.lengths,
            h,
            c,
            n_outputs=3,
            hidden_size=self.hidden_size,
            direction="reverse" if self.is_reverse else "forward",
        )
        return nodes.op("Squeeze", y, nodes.integers(1)), hn, cn

    def _by_definition(self, form: Form, x: ir.Value, h: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        nodes, direction = self.nodes, self.direction
        z = self._matrix(direction.w).product(x, by_factors=form.inputs == "factors")
        if direction.biases is not None:
            first, second = direction.biases
            bias = nodes.weight(first.name, (first.values.double() + second.values.double()).float().cpu())
            z = nodes.op("Add", z, bias)
        axis = nodes.integers(0)
        states = [nodes.op("Squeeze", each, axis) for each in (h, c)]
        if self.one_step:
            hn, cn = (
                nodes.op("Unsqueeze", each, axis)
                for each in self._step(nodes, form, nodes.op("Squeeze", z, axis), *states)
            )
            return nodes.op("Identity", hn), hn, cn
        scanned = [z] if self.lengths is None else [z, _is_running(nodes, z, self.lengths)]
        backward = int(self.is_reverse)
        hn, cn, y = nodes.ops(
            "Scan",
            *states,
            *scanned,
            n_outputs=3,
            body=self._body(form, masked=self.lengths is not None),
            num_scan_inputs=len(scanned),
            scan_input_directions=[backward] * len(scanned),
            scan_output_directions=[backward],
        )
        return y, nodes.op("Unsqueeze", hn, axis), nodes.op("Unsqueeze", cn, axis)

    def _body(self, form: Form, *, masked: bool) -> ir.Graph:
        """A step as the body of a ``Scan``."""
        nodes, size = self.nodes.subgraph(), self.hidden_size
        h, c = value(nodes.name("h"), "B", self.output_size), value(nodes.name("c"), "B", size)
        z = value(nodes.name("z"), "B", 4 * size)
        inputs: list[ir.Value] = [h, c, z]
        new_h, new_c = self._step(nodes, form, z, h, c)
        y = nodes.op("Identity", new_h)
        if masked:
            running = value(nodes.name("running"), "B", 1, dtype="BOOL")
            inputs.append(running)
            y = nodes.op("Where", running, new_h, nodes.number(0.0))
            new_h, new_c = nodes.op("Where", running, new_h, h), nodes.op("Where", running, new_c, c)
        outputs: Sequence[ir.Value] = (new_h, new_c, y)
        return nodes.graph(nodes.name("step"), inputs, _typed(outputs, (self.output_size, size, self.output_size)))

    def _step(self, nodes: Nodes, form: Form, z: ir.Value, h: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value]:
        """``i, f, g, o = split(z + U h)``, ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, then ``h'``."""
        by_factors = form.recurrent == "factors"
        added = nodes.op("Add", self._step_product(nodes, self.direction.u, h, by_factors=by_factors), z)
        i, f, g, o = nodes.ops("Split", added, n_outputs=4, axis=1, num_outputs=4)
        i, f, o = (nodes.op("Sigmoid", gate) for gate in (i, f, o))
        new_c = nodes.op("Add", nodes.op("Mul", f, c), nodes.op("Mul", i, nodes.op("Tanh", g)))
        new_h = nodes.op("Mul", o, nodes.op("Tanh", new_c))
        if self.direction.p is not None:
            new_h = self._step_product(nodes, self.direction.p, new_h, by_factors=by_factors)
        return new_h, new_c

    def _step_product(self, nodes: Nodes, weight: Weight, h: ir.Value, *, by_factors: bool) -> ir.Value:
        """The product of states with a matrix; what is formed of constants alone stays out of the steps."""
        matrix = Matrix(nodes, weight, self.dequantizer, int8=self.int8)
        return matrix.product(h, by_factors=by_factors)


def _gate_rows(hidden_size: int) -> Tensor:
    """Which row of torch's each row of ONNX's matrices is."""
    return torch.cat([torch.arange(hidden_size) + gate * hidden_size for gate in _ONNX_GATES])


def _stacked(nodes: Nodes, matrix: Operand) -> ir.Value:
    """A matrix as the operator has it: in a stack of one for each of its directions."""
    return matrix.reshaped(nodes, 1, *matrix.shape).value(nodes)


def _is_running(nodes: Nodes, z: ir.Value, lengths: ir.Value) -> ir.Value:
    """Whether each sequence has such a step: bool, ``(T, B, 1)``."""
    n_steps = nodes.op("Shape", z, start=0, end=1)
    scalar = nodes.op("Squeeze", n_steps, nodes.integers(0))
    zero, one = (nodes.op("Squeeze", nodes.integers(each), nodes.integers(0)) for each in (0, 1))
    steps = nodes.op("Unsqueeze", nodes.op("Range", zero, scalar, one), nodes.integers(1))
    wide = nodes.op("Unsqueeze", nodes.op("Cast", lengths, to=7), nodes.integers(0))
    return nodes.op("Unsqueeze", nodes.op("Less", steps, wide), nodes.integers(2))


def _typed(values: Sequence[ir.Value], sizes: Sequence[int]) -> list[ir.Value]:
    """Outputs of a subgraph, which have to say what they are."""
    for each, size in zip(values, sizes, strict=True):
        typed = value("", "B", size)
        each.type, each.shape = typed.type, typed.shape
    return list(values)
