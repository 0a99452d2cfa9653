"""The steps of one direction of a layer as nodes: ONNX's operator of the cell, or a ``Scan`` over the step as defined.

A single step needs no ``Scan`` around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from btcompress.export.cells import Sums
from btcompress.export.forms import Form
from btcompress.export.graphs import Nodes, value
from btcompress.export.matrices import Matrix
from btcompress.export.operands import Operand
from btcompress.export.packed import Dequantizer
from btcompress.export.weights import Direction, Weight

if TYPE_CHECKING:
    import onnx_ir as ir


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

    def written(self, form: Form, x: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        """All steps.

        Args:
            form: how they are written.
            x: inputs, ``(T, B, I)``.
            states: initial ones, ``(1, B, H)`` each; the hidden state of the projected size, where there is one.

        Returns:
            Outputs ``(T, B, H)``, and the final states as the initial ones. Outputs after the end of a sequence are 0,
            and the states are those at its end.
        """
        if form.steps == "scan":
            return self._by_definition(form, x, states)
        return self._by_operator(x, states)

    def _matrix(self, weight: Weight, rows: Tensor | None = None) -> Matrix:
        return Matrix(self.nodes, weight, self.dequantizer, rows, self.int8)

    def _by_operator(self, x: ir.Value, states: Sequence[ir.Value]) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        nodes, direction, cell = self.nodes, self.direction, self.direction.cell
        gates = cell.rows(self.hidden_size)
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
        y, *final = nodes.ops(
            cell.operator,
            x,
            *matrices,
            bias,
            self.lengths,
            *states,
            n_outputs=1 + len(states),
            hidden_size=self.hidden_size,
            direction="reverse" if self.is_reverse else "forward",
            **cell.attributes,
        )
        return nodes.op("Squeeze", y, nodes.integers(1)), tuple(final)

    def _by_definition(
        self, form: Form, x: ir.Value, states: Sequence[ir.Value]
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        nodes, direction = self.nodes, self.direction
        z = self._matrix(direction.w).product(x, by_factors=form.inputs == "factors")
        outer, inner = self._biases()
        if outer is not None:
            z = nodes.op("Add", z, outer)
        axis = nodes.integers(0)
        rows = [nodes.op("Squeeze", each, axis) for each in states]
        if self.one_step:
            found = self._step(nodes, form, nodes.op("Squeeze", z, axis), rows, inner)
            final = tuple(nodes.op("Unsqueeze", each, axis) for each in found)
            return nodes.op("Identity", final[0]), final
        scanned = [z] if self.lengths is None else [z, _is_running(nodes, z, self.lengths)]
        backward = int(self.is_reverse)
        *last, y = nodes.ops(
            "Scan",
            *rows,
            *scanned,
            n_outputs=len(rows) + 1,
            body=self._body(form, inner, masked=self.lengths is not None),
            num_scan_inputs=len(scanned),
            scan_input_directions=[backward] * len(scanned),
            scan_output_directions=[backward],
        )
        return y, tuple(nodes.op("Unsqueeze", each, axis) for each in last)

    def _biases(self) -> tuple[ir.Value | None, ir.Value | None]:
        """What is added to the products with all inputs, and what in each step to the last rows of ``U h``."""
        if self.direction.biases is None:
            return None, None
        first, second = self.direction.biases
        outer, inner = self.direction.cell.biases(first.values.double().cpu(), second.values.double().cpu())
        added = self.nodes.weight(first.name, outer.float())
        return added, None if inner is None else self.nodes.weight(second.name, inner.float())

    def _body(self, form: Form, bias: ir.Value | None, *, masked: bool) -> ir.Graph:
        """A step as the body of a ``Scan``."""
        nodes = self.nodes.subgraph()
        sizes = [self.output_size if letter == "h" else self.hidden_size for letter in self.direction.cell.states]
        before = [
            value(nodes.name(letter), "B", size) for letter, size in zip(self.direction.cell.states, sizes, strict=True)
        ]
        z = value(nodes.name("z"), "B", len(self.direction.cell.gates) * self.hidden_size)
        inputs: list[ir.Value] = [*before, z]
        after = self._step(nodes, form, z, before, bias)
        y = nodes.op("Identity", after[0])
        if masked:
            running = value(nodes.name("running"), "B", 1, dtype="BOOL")
            inputs.append(running)
            y = nodes.op("Where", running, after[0], nodes.number(0.0))
            after = tuple(nodes.op("Where", running, *pair) for pair in zip(after, before, strict=True))
        return nodes.graph(nodes.name("step"), inputs, _typed((*after, y), (*sizes, self.output_size)))

    def _step(
        self, nodes: Nodes, form: Form, z: ir.Value, states: Sequence[ir.Value], bias: ir.Value | None
    ) -> tuple[ir.Value, ...]:
        """The states after a step, of ``z`` and ``U h``; the hidden one projected where there is a projection."""
        by_factors = form.recurrent == "factors"
        u = self._step_product(nodes, self.direction.u, states[0], by_factors=by_factors)
        after = self.direction.cell.step(nodes, Sums(z, u, bias, self.hidden_size), states)
        if self.direction.p is None:
            return after
        return self._step_product(nodes, self.direction.p, after[0], by_factors=by_factors), *after[1:]

    def _step_product(self, nodes: Nodes, weight: Weight, h: ir.Value, *, by_factors: bool) -> ir.Value:
        """The product of states with a matrix; what is formed of constants alone stays out of the steps."""
        matrix = Matrix(nodes, weight, self.dequantizer, int8=self.int8)
        return matrix.product(h, by_factors=by_factors)


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
