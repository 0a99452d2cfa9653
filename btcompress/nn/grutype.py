"""What a GRU computes at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from btcompress.contraction import autocast
from btcompress.nn.celltype import CellType, KernelName, Loop, State, StepScratch
from btcompress.nn.weight import Multiplier, multiply
from btcompress.shapes import Cell


class _Scratch(StepScratch):
    def __init__(self, z: Tensor) -> None:
        super().__init__(z)
        self.hidden = z.shape[-1] // 3
        self.sigmoids = self.gates[..., : 2 * self.hidden]
        self.reset, self.update, self.new = self.gates.chunk(3, dim=-1)

    def added(self, z: Tensor, bias: Tensor | None) -> Tensor | None:  # noqa: ARG002
        return bias

    def next(self, z: Tensor, state: State) -> State:
        gates, new = z.split([2 * self.hidden, self.hidden], dim=-1)
        self.sigmoids.add_(gates).sigmoid_()
        torch.addcmul(new, self.reset, self.new, out=self.new).tanh_()
        return (torch.lerp(self.new, state[0], self.update),)


class GRUType(CellType):
    """``r, z, n`` of ``W x + b_i`` and ``U h + b_h``, of which the reset gate ``r`` acts on the latter's ``n`` alone.

    ``r = sigmoid(x_r + u_r)``; ``z = sigmoid(x_z + u_z)``; ``n = tanh(x_n + r u_n)``; ``h' = (1 - z) n + z h``. So the
    two biases stay apart.
    """

    name: ClassVar[Cell] = "gru"
    kernel: KernelName = "gru"

    def input_bias(self, biases: tuple[Tensor, Tensor]) -> Tensor:
        """``b_i``."""
        return biases[0]

    def recurrent_bias(self, biases: tuple[Tensor, Tensor]) -> Tensor:
        """``b_h``."""
        return biases[1]

    def autocast(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Inputs as they are to be; on a CPU torch's GRU leaves the states, and so its outputs, in their own dtype."""
        return (autocast(inputs)[0], state) if inputs.device.type == "cpu" else super().autocast(inputs, state)

    def layer(self, input_size: int, hidden_size: int, **arguments: Any) -> nn.GRU:  # noqa: ANN401 - torch's
        """Torch's own module of such a layer."""
        return nn.GRU(input_size, hidden_size, **arguments)

    def after(self, z: Tensor, v: Tensor, state: State) -> State:
        """The next ``h``, of ``W x + b_i`` and ``U h + b_h``, shape ``(n, 3H)``."""
        (h,) = state
        gates = 2 * h.shape[1]
        reset, update = torch.sigmoid(z[:, :gates] + v[:, :gates]).chunk(2, dim=1)
        new = torch.tanh(torch.addcmul(z[:, gates:], reset, v[:, gates:]))
        # Autocast leaves h in its own dtype here, as it does torch's GRU.
        return (new + update * (h - new),)

    def step(self, z: Tensor, state: State, recurrent: Sequence[Multiplier], bias: Tensor | None) -> State:
        """The next ``h``; ``z`` is ``W x + b_i``, shape ``(n, 3H)``, and ``bias`` is ``b_h``."""
        return self.after(z, multiply(state[0], recurrent[0], bias), state)

    def scratch(self, z: Tensor) -> StepScratch:
        """Memory for single steps like that of ``z``."""
        return _Scratch(z)

    def loop(self, z: Tensor, state: State, bias: Tensor | None) -> Loop:
        """What a loop over steps needs; see :meth:`CellType.loop`.

        ``x_n`` is kept apart, and ``b_hn`` takes its place in ``z``, so that a step has one sum less to make.
        """
        hidden = len(state[0])
        x_n = z[:, 2 * hidden :].clone()
        if bias is None:
            z[:, 2 * hidden :] = 0
        else:
            columns = bias.view(-1, *[1] * (z.dim() - 2))
            z[:, : 2 * hidden] += columns[: 2 * hidden]
            z[:, 2 * hidden :] = columns[2 * hidden :]
        gates, inputs = z.new_empty(z.shape[1:]), x_n.unbind()
        sigmoids = gates[: 2 * hidden]
        reset, update, new = gates.chunk(3)

        def advance(step: int, h: Tensor, out: Tensor) -> Tensor:
            sigmoids.sigmoid_()
            torch.addcmul(inputs[step], reset, new, out=new)
            new.tanh_()
            return torch.lerp(new, h, update, out=out)

        return Loop(z, gates, advance)


#: The one there is.
GRU = GRUType()
