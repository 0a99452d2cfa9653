"""Batches of sequences, and what training takes them from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from btcompress.errors import BTCompressError
from btcompress.nn.celltype import State


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some sequences.

    Attributes:
        x: inputs, shape ``(B, T, I)``; for a user's model any shape that begins with ``B``.
        y: labels or targets, beginning with ``B``; None without labels.
        lengths: steps of each sequence, shape ``(B,)``, on the CPU; None where all have ``T``.
        names: of the sequences, if the same name always means the same sequence; None for what a user's code makes.
        state: initial ``h``, and ``c`` of an LSTM, of every layer and direction, shapes ``(directions * L, B, H)``;
            None for zeros.
    """

    x: Tensor
    y: Tensor | None = None
    lengths: Tensor | None = None
    names: tuple[tuple[str, int], ...] | None = None
    state: State | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same on a device, floating-point numbers in this dtype; lengths stay, as packing wants them.

        Raises:
            BTCompressError: a number is beyond the range of the dtype.
        """

        def moved(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value.to(device)
            narrower = dtype.itemsize < value.element_size() and value.numel() > 0
            if narrower and (largest := float(value.abs().max())) > torch.finfo(dtype).max:
                raise BTCompressError(
                    f"the sequences hold {largest:g}, which is beyond the range of "
                    f"{str(dtype).removeprefix('torch.')}, in which the network computes. Scale them (--scale)."
                )
            return value.to(device, dtype)

        state = None if self.state is None else tuple(map(moved, self.state))
        return replace(self, x=moved(self.x), y=None if self.y is None else moved(self.y), state=state)


class Data(Protocol):
    """What training takes its batches from."""

    @property
    def name(self) -> str:
        """What to call it in messages and records."""

    @property
    def layer(self) -> str | None:
        """The layer that these were recorded as inputs of; None where nobody knows."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Batch:
        """The sequences at these positions.

        Raises:
            BTCompressError: an input is not finite.
        """
