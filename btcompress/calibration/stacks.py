"""What layers give that stay as they are, run once over each sequence of a file; and sequences to train a layer on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from btcompress.calibration.layers import Layer
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.networks import Recurrent, States
from btcompress.finetune.tasks import HiddenStates

#: Bytes of states that are kept of all layers of one entry.
MOST_KEPT = 1 << 30


@dataclass(slots=True)
class Room:
    """What is left of the memory that the stacks of one entry share.

    Attributes:
        left: bytes.
    """

    left: int = MOST_KEPT


class Stack:
    """The lowest layers of an entry, fixed: what the uppermost of them gives on sequences, and the final states of all.

    States are kept where sequences have names, as long as there is room; those of the stack below then leave it. What
    is kept depends in its last digits on the batch that it came from.

    Args:
        layer: the uppermost layer.
        network: it.
        room: for what is kept.
        below: the layers below it; None for the first.
    """

    def __init__(self, layer: Layer, network: Recurrent, room: Room, below: Stack | None = None) -> None:
        self.layer = layer
        self.network = network.requires_grad_(False).eval()
        self.room = room
        self.below = below
        self._kept: dict[tuple[str, int], States] = {}

    def states(self, batch: Batch) -> States:
        """Hidden states of the uppermost layer, shape ``(B, T, ..)``, and final states of all layers.

        Args:
            batch: sequences of the entry's inputs, ``T`` the steps of the longest; initial states are of all layers.
        """
        names = batch.names or ()
        if names and all(name in self._kept for name in names):
            hidden, *final = zip(*(self._kept[name] for name in names), strict=True)
            padded, device = pad_sequence(list(hidden), batch_first=True), batch.x.device
            return padded.to(device), *(torch.stack(each, 1).to(device) for each in final)
        states = self._run(batch)
        self._keep(names, batch.lengths, states)
        return states

    @torch.no_grad()
    def _run(self, batch: Batch) -> States:
        own, network = self.layer.state(batch.state), self.network.to(batch.x.device).eval()
        if self.below is None:
            return cast(States, network(batch.x, batch.lengths, own))
        below, *final = self.below.states(batch)
        hidden, *own_final = network(below, batch.lengths, own)
        return hidden, *(torch.cat(each) for each in zip(final, own_final, strict=True))

    def _keep(self, names: tuple[tuple[str, int], ...], lengths: Tensor | None, states: States) -> None:
        freed = 0 if self.below is None else self.below.size_of(names)
        if _size(states) > self.room.left + freed:
            return
        if self.below is not None:
            self.below.forget(names)
        hidden, *final = (state.cpu() for state in states)
        for n, name in enumerate(names):
            n_steps = hidden.shape[1] if lengths is None else int(lengths[n])
            self._kept[name] = (hidden[n, :n_steps].clone(), *(state[:, n].clone() for state in final))
            self.room.left -= _size(self._kept[name])

    def size_of(self, names: tuple[tuple[str, int], ...]) -> int:
        """Bytes of what is kept of these sequences."""
        return sum(_size(self._kept[name]) for name in names if name in self._kept)

    def forget(self, names: tuple[tuple[str, int], ...]) -> None:
        """Keep the states of these sequences no longer."""
        for name in names:
            states = self._kept.pop(name, None)
            self.room.left += 0 if states is None else _size(states)


def _size(states: States) -> int:
    return sum(state.nbytes for state in states)


@dataclass(frozen=True, slots=True, eq=False)
class TaughtBatch(Batch):
    """Some sequences, and the states that are to be given on them.

    Attributes:
        wanted: hidden states at all steps, and final states.
    """

    wanted: States | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """Inputs of an entry, or of one of its layers, with the states of the dense one.

    Attributes:
        source: sequences of the entry's inputs.
        teacher: the dense entry, or its layers up to this one.
        device: to compute on.
        dtype: to compute in.
        part: the layer; None for the whole.
        below: what gives the layer its inputs, the layers below it; None for the first and for the whole.
    """

    source: Data
    teacher: Stack
    device: torch.device
    dtype: torch.dtype
    part: Layer | None = None
    below: Stack | None = None

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def layer(self) -> str | None:
        """The source's."""
        return self.source.layer

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: Tensor) -> TaughtBatch:
        """The sequences at these positions, as long as the longest of them."""
        batch = self.source.batch(rows).to(self.device, self.dtype)
        if batch.lengths is not None:
            batch = replace(batch, x=batch.x[:, : int(batch.lengths.max())])
        wanted = self.teacher.states(batch)
        if self.part is None:
            return TaughtBatch(batch.x, None, batch.lengths, batch.names, batch.state, wanted)
        own = self.part.positions
        x = batch.x if self.below is None else self.below.states(batch)[0]
        state, wanted = self.part.state(batch.state), (wanted[0], *(each[own] for each in wanted[1:]))
        return TaughtBatch(x, None, batch.lengths, batch.names, state, wanted)


class GivenStates(HiddenStates):
    """Give the states that come with each batch."""

    def __init__(self) -> None:
        self.teacher = None

    def wanted(self, batch: Batch) -> States:
        """Those of the batch."""
        return tuple(each.to(batch.x.device) for each in cast(States, cast(TaughtBatch, batch).wanted))
