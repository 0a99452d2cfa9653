"""What an LSTM computes at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from btcompress.nn.celltype import CellType, KernelName, Loop, State, StepScratch
from btcompress.nn.weight import Multiplier, add_product, multiply
from btcompress.shapes import Cell


class _Scratch(StepScratch):
    def __init__(self, z: Tensor) -> None:
        super().__init__(z)
        hidden = z.shape[-1] // 4
        self.tanh = z.new_empty(*z.shape[:-1], hidden)
        self.sigmoids = self.gates[..., : 2 * hidden]
        self.i, self.f, self.g, self.o = self.gates.chunk(4, dim=-1)

    def next(self, z: Tensor, state: State) -> State:  # noqa: ARG002 - it is in the gates
        self.sigmoids.sigmoid_()
        self.g.tanh_()
        self.o.sigmoid_()
        c = torch.mul(self.f, state[1]).addcmul_(self.i, self.g)
        return torch.mul(self.o, torch.tanh(c, out=self.tanh)), c


class LSTMType(CellType):
    """The gates ``i, f, g, o`` of ``W x + U h + b``; see :func:`lstm_step`."""

    name: ClassVar[Cell] = "lstm"
    kernel: KernelName = "lstm"
    states: ClassVar[tuple[str, ...]] = ("h", "c")

    def layer(self, input_size: int, hidden_size: int, **arguments: Any) -> nn.LSTM:  # noqa: ANN401 - torch's
        """Torch's own module of such a layer."""
        return nn.LSTM(input_size, hidden_size, **arguments)

    def after(self, z: Tensor, v: Tensor, state: State) -> State:
        """The next ``h``, which a projection is still to be applied to, and ``c``; sums of shape ``(n, 4H)``."""
        return _after(z + v, state[1])

    def step(self, z: Tensor, state: State, recurrent: Sequence[Multiplier], bias: Tensor | None) -> State:  # noqa: ARG002
        """As :func:`lstm_step`; biases are in ``z``."""
        h, c = state
        return lstm_step(z, (h, c), *recurrent)

    def scratch(self, z: Tensor) -> StepScratch:
        """Memory for single steps like that of ``z``."""
        return _Scratch(z)

    def loop(self, z: Tensor, state: State, bias: Tensor | None) -> Loop:  # noqa: ARG002
        """What a loop over steps needs; see :meth:`CellType.loop`."""
        gates, c = z.new_empty(z.shape[1:]), state[1].clone()
        i, f, g, o = gates.chunk(4)
        sigmoids, tanh = gates[: 2 * len(c)], torch.empty_like(c)

        def advance(_: int, __: Tensor, out: Tensor) -> Tensor:
            sigmoids.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            c.mul_(f).addcmul_(i, g)
            torch.tanh(c, out=tanh)
            return torch.mul(o, tanh, out=out)

        return Loop(z, gates, advance, (c,))


def lstm_step(
    z: Tensor, state: tuple[Tensor, Tensor], weight_hh: Multiplier, weight_hr: Multiplier | None = None
) -> tuple[Tensor, Tensor]:
    """The next hidden and cell state.

    ``i, f, g, o = split(z + U h)``; ``c' = sigmoid(f) c + sigmoid(i) tanh(g)``; ``h' = sigmoid(o) tanh(c')``,
    projected by ``P`` where there is one.

    Args:
        z: ``W x + b``, shape ``(n, 4H)``.
        state: ``h`` and ``c``, shapes ``(n, H)``, or ``(n, projected size)`` for ``h``.
        weight_hh: ``U``, shape ``(4H, H)`` or ``(4H, projected size)``.
        weight_hr: ``P``, shape ``(projected size, H)``.
    """
    h, c = state
    h, c = _after(add_product(z, weight_hh, h), c)
    return (h if weight_hr is None else multiply(h, weight_hr, None)), c


def _after(sums: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden state without its projection, and the next cell state."""
    i, f, g, o = sums.chunk(4, dim=1)
    c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
    return torch.sigmoid(o) * torch.tanh(c), c


#: The one there is.
LSTM = LSTMType()
