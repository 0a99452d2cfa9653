"""What a recurrent layer has of its own: its gates and states, and what it computes at each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from btcompress.contraction import autocast
from btcompress.nn.weight import Multiplier
from btcompress.shapes import GATES, Cell

#: ``h``, and ``c`` of an LSTM.
State = tuple[Tensor, ...]

#: Functions of ``torch`` that run a layer.
KernelName = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]


class StepScratch(ABC):
    """Memory that single steps of one thread write over, where no gradient is asked for.

    Args:
        z: ``W x`` with the bias of the inputs, shape ``(gates * H)``, or with several sequences ``(B, gates * H)``.

    Attributes:
        gates: of the same shape; to hold :meth:`added` ``+ U h``.
    """

    def __init__(self, z: Tensor) -> None:
        self.gates = torch.empty_like(z)

    def added(self, z: Tensor, bias: Tensor | None) -> Tensor | None:  # noqa: ARG002 - others look at it
        """What is added to ``U h``: ``z``, unless the two do not simply add up."""
        return z

    @abstractmethod
    def next(self, z: Tensor, state: State) -> State:
        """The next state, not projected, once :attr:`gates` holds what it is to."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A direction in a loop over its steps, where no gradient is asked for.

    Attributes:
        added: what is added to ``U h`` at each step, shape ``(T, gates * H)``, or ``(T, gates * H, B)``.
        gates: that of one step; to hold the sum.
        advance: given the step, the hidden state before it and memory for that after it, not projected, computes and
            returns the latter, once :attr:`gates` holds the sum; the rest of the state is written over.
        rest: of the state, ``c`` of an LSTM.
    """

    added: Tensor
    gates: Tensor
    advance: Callable[[int, Tensor, Tensor], Tensor]
    rest: State = ()


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
    def after(self, z: Tensor, v: Tensor, state: State) -> State:
        """The next state from both sums, by definition; differentiable, and without the projection of an LSTM.

        Args:
            z: the input part, ``W x`` and its bias, shape ``(n, gates * H)``.
            v: the recurrent part, ``U h`` and its bias, likewise. With all of the biases in one of the two, or each in
                its own, the same comes of it, but for a GRU, whose biases stay apart.
            state: tensors of shape ``(n, H)``.
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

    @abstractmethod
    def scratch(self, z: Tensor) -> StepScratch:
        """Memory for single steps like that of ``z``."""

    @abstractmethod
    def loop(self, z: Tensor, state: State, bias: Tensor | None) -> Loop:
        """What a loop over steps needs.

        Args:
            z: ``W x`` with the bias of the inputs at each step, shape ``(T, gates * H)`` of one sequence, or of several
                ``(T, gates * H, B)``; may be written over.
            state: initial one, shapes ``(H)`` or ``(H, B)``, or with the projected size for ``h``.
            bias: of the hidden states.
        """
