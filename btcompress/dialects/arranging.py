"""Gates and axes of recurrent layers brought into torch's order, and the tensors put under torch's names.

Gates are called by torch's letters whatever a project calls them: ``i``, ``f``, ``g``, ``o`` of an LSTM, where others
write ``c`` or ``j`` for ``g``; ``r``, ``z``, ``n`` of a GRU; ``h`` of a plain RNN. The order in which a project stacks
them is given as one text, such as ``"ifgo"`` for Keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from btcompress.shapes import GATES, Cell


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction of one layer, or a single step, with gates and axes in torch's order; ``G`` rows per hidden unit.

    Attributes:
        weight_ih: (G H, I).
        weight_hh: (G H, H), or (G H, P) with a projection.
        bias_ih: (G H); None for zeros.
        bias_hh: (G H); None for zeros.
        weight_hr: the projection of an LSTM's hidden state, (P, H).
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    weight_hr: Tensor | None = None


def as_layers(directions: Sequence[Direction], *, bidirectional: bool = False) -> dict[str, Tensor]:
    """The tensors of ``torch.nn.LSTM``, ``GRU`` or ``RNN`` by their names.

    Args:
        directions: from the first layer on; of each layer forward before reverse.
        bidirectional: there are two of each layer.
    """
    steps = ("", "_reverse") if bidirectional else ("",)
    has_bias = any(_has_bias(each) for each in directions)
    named: dict[str, Tensor] = {}
    for n, direction in enumerate(directions):
        named |= _named(direction, f"_l{n // len(steps)}{steps[n % len(steps)]}", has_bias=has_bias)
    return named


def as_cell(direction: Direction) -> dict[str, Tensor]:
    """The tensors of ``torch.nn.LSTMCell``, ``GRUCell`` or ``RNNCell`` by their names."""
    return _named(direction, "", has_bias=_has_bias(direction))


def in_order(stacked: Tensor, order: str, kind: Cell, negated: str = "") -> Tensor:
    """Rows of stacked gates in torch's order.

    Args:
        stacked: (G H, ...), one gate after another: a matrix, or a bias.
        order: the gates as they are stacked, by torch's letters.
        kind: of the layer, whose gates these are.
        negated: gates whose sign changes. A GRU whose ``z`` lets the new state in, where torch's keeps the old one, is
            torch's with ``z`` negated, as ``1 - sigmoid(x) = sigmoid(-x)``.
    """
    gates = stacked.chunk(len(order))
    return stack({gate: -each if gate in negated else each for gate, each in zip(order, gates, strict=True)}, kind)


def stack(gates: Mapping[str, Tensor], kind: Cell) -> Tensor:
    """The gates' own tensors, of (H, ...) each, stacked in torch's order; of a mapping by torch's letters."""
    names = GATES[kind]
    return gates[names[0]] if len(names) == 1 else torch.cat([gates[name] for name in names])


def turned(matrix: Tensor) -> Tensor:
    """The transposed matrix, row after row in memory: of one that rows of inputs are multiplied by from the left."""
    return matrix.t().contiguous()


def raised(bias: Tensor, gate: str, by: float, kind: Cell) -> Tensor:
    """A bias in torch's order, (G H), with a number added to all of one gate, as TensorFlow's ``forget_bias`` is."""
    position, hidden = GATES[kind].index(gate), bias.shape[0] // len(GATES[kind])
    changed = bias.clone()
    changed[position * hidden : (position + 1) * hidden] += by
    return changed


def _has_bias(direction: Direction) -> bool:
    return direction.bias_ih is not None or direction.bias_hh is not None


def _named(direction: Direction, suffix: str, *, has_bias: bool) -> dict[str, Tensor]:
    """By names with a suffix; biases that are not there are zeros where the class has them all."""
    named: dict[str, Tensor] = {}
    for name in (field.name for field in fields(direction)):
        tensor = getattr(direction, name)
        if tensor is None and has_bias and name.startswith("bias_"):
            tensor = direction.weight_ih.new_zeros(direction.weight_ih.shape[0])
        if tensor is not None:
            named[name + suffix] = tensor
    return named
