"""What a GRU computes at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from btcompress.contraction import autocast
from btcompress.nn.celltype import CellType, KernelName, State
from btcompress.nn.weight import Multiplier, multiply
from btcompress.shapes import Cell


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

    def step(self, z: Tensor, state: State, recurrent: Sequence[Multiplier], bias: Tensor | None) -> State:
        """The next ``h``; ``z`` is ``W x + b_i``, shape ``(n, 3H)``, and ``bias`` is ``b_h``."""
        (h,) = state
        sums, gates = multiply(h, recurrent[0], bias), 2 * h.shape[1]
        reset, update = torch.sigmoid(z[:, :gates] + sums[:, :gates]).chunk(2, dim=1)
        new = torch.tanh(torch.addcmul(z[:, gates:], reset, sums[:, gates:]))
        # Autocast leaves h in its own dtype here, as it does torch's GRU.
        return (new + update * (h - new),)


#: The one there is.
GRU = GRUType()
