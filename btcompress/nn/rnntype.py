"""What a plain RNN computes at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from btcompress.nn.celltype import CellType, KernelName, State
from btcompress.nn.weight import Multiplier, add_product
from btcompress.shapes import Cell, Nonlinearity


class RNNType(CellType):
    """``h' = tanh(W x + U h + b)``, or ``relu`` of it.

    Args:
        nonlinearity: which of the two.
    """

    name: ClassVar[Cell] = "rnn"

    def __init__(self, nonlinearity: Nonlinearity) -> None:
        self.nonlinearity = nonlinearity
        self.kernel: KernelName = "rnn_tanh" if nonlinearity == "tanh" else "rnn_relu"
        self._function = torch.tanh if nonlinearity == "tanh" else torch.relu

    def layer(self, input_size: int, hidden_size: int, **arguments: Any) -> nn.RNN:  # noqa: ANN401 - torch's
        """Torch's own module of such a layer."""
        return nn.RNN(input_size, hidden_size, nonlinearity=self.nonlinearity, **arguments)

    def step(self, z: Tensor, state: State, recurrent: Sequence[Multiplier], bias: Tensor | None) -> State:  # noqa: ARG002
        """The next ``h``; ``z`` is ``W x + b``, shape ``(n, H)``."""
        return (self._function(add_product(z, recurrent[0], state[0])),)


#: By their nonlinearities.
RNN: dict[Nonlinearity, RNNType] = {"tanh": RNNType("tanh"), "relu": RNNType("relu")}
