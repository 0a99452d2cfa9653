"""What a recurrent layer has of its own: its gates and states, and what it computes at each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from btcompress.contraction import autocast
from btcompress.nn.weight import Multiplier
from btcompress.shapes import GATES, Cell

#: ``h``, and ``c`` of an LSTM.
State = tuple[Tensor, ...]

#: Functions of ``torch`` that run a layer.
KernelName = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]


class CellType(ABC):
    """A cell, without its matrices.

    A layer computes ``W x`` for all steps at once and ``U h`` step by step; a cell says what becomes of the two.

    Attributes:
        name: of the cell.
        kernel: the function of ``torch`` that runs a layer of it.
        states: names of the tensors of its state.
    """

    name: ClassVar[Cell]
    kernel: KernelName
    states: ClassVar[tuple[str, ...]] = ("h",)

    @property
    def n_gates(self) -> int:
        """Rows of ``W`` and ``U`` per hidden unit."""
        return len(GATES[self.name])

    def input_bias(self, biases: tuple[Tensor, Tensor]) -> Tensor:
        """What is added to ``W x``: both biases at once."""
        return biases[0] + biases[1]

    def recurrent_bias(self, biases: tuple[Tensor, Tensor]) -> Tensor | None:  # noqa: ARG002 - others look at them
        """What is added to ``U h``: nothing, as the biases are added already."""
        return None

    def autocast(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Inputs and states as ``torch.autocast`` has the layer compute with them; unchanged where it is off."""
        inputs, *cast = autocast(inputs, *state)
        return inputs, tuple(cast)

    @abstractmethod
    def layer(self, input_size: int, hidden_size: int, **arguments: Any) -> nn.RNNBase:  # noqa: ANN401 - torch's
        """Torch's own module of such a layer.

        Args:
            input_size: ``I``.
            hidden_size: ``H``.
            **arguments: what else it is built with.
        """

    @abstractmethod
    def step(self, z: Tensor, state: State, recurrent: Sequence[Multiplier], bias: Tensor | None) -> State:
        """The next state, by definition; differentiable.

        Args:
            z: ``W x`` with the bias of the inputs, shape ``(n, gates * H)``.
            state: tensors of shape ``(n, H)``, or ``(n, projected size)`` for ``h``.
            recurrent: ``U``, and ``P`` where there is a projection.
            bias: of the hidden states, as :meth:`recurrent_bias` has it.
        """
