"""What a plain RNN computes at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from btcompress.nn.celltype import CellType, KernelName, Loop, State, StepScratch
from btcompress.nn.weight import Multiplier, add_product
from btcompress.shapes import Cell, Nonlinearity


class _Scratch(StepScratch):
    def __init__(self, z: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(z)
        self.function = function

    def next(self, z: Tensor, state: State) -> State:  # noqa: ARG002 - they are in the gates
        return (self.function(self.gates),)


class RNNType(CellType):
    """``h' = tanh(W x + U h + b)``, or ``relu`` of it.

    Args:
        nonlinearity: which of the two.
    """

    name: ClassVar[Cell] = "rnn"

    def __init__(self, nonlinearity: Nonlinearity) -> None:
        self.nonlinearity = nonlinearity
        self.kernel: KernelName = "rnn_tanh" if nonlinearity == "tanh" else "rnn_relu"
        self._function: Callable[[Tensor], Tensor] = torch.tanh if nonlinearity == "tanh" else torch.relu

    def layer(self, input_size: int, hidden_size: int, **arguments: Any) -> nn.RNN:  # noqa: ANN401 - torch's
        """Torch's own module of such a layer."""
        return nn.RNN(input_size, hidden_size, nonlinearity=self.nonlinearity, **arguments)

    def after(self, z: Tensor, v: Tensor, state: State) -> State:  # noqa: ARG002
        """The next ``h``, of ``W x`` and ``U h`` with their biases, shape ``(n, H)``."""
        return (self._function(z + v),)

    def step(self, z: Tensor, state: State, recurrent: Sequence[Multiplier], bias: Tensor | None) -> State:  # noqa: ARG002
        """The next ``h``; ``z`` is ``W x + b``, shape ``(n, H)``."""
        return (self._function(add_product(z, recurrent[0], state[0])),)

    def scratch(self, z: Tensor) -> StepScratch:
        """Memory for single steps like that of ``z``."""
        return _Scratch(z, self._function)

    def loop(self, z: Tensor, state: State, bias: Tensor | None) -> Loop:  # noqa: ARG002
        """What a loop over steps needs; see :meth:`CellType.loop`."""
        gates = z.new_empty(z.shape[1:])

        def by_tanh(_: int, __: Tensor, out: Tensor) -> Tensor:
            return torch.tanh(gates, out=out)

        def by_relu(_: int, __: Tensor, out: Tensor) -> Tensor:
            return torch.clamp(gates, min=0, out=out)

        return Loop(z, gates, by_tanh if self.nonlinearity == "tanh" else by_relu)


#: By their nonlinearities.
RNN: dict[Nonlinearity, RNNType] = {"tanh": RNNType("tanh"), "relu": RNNType("relu")}
