"""One layer of a recurrent entry as an entry of its own: cut out of a checkpoint, run alone, and put back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, RecurrentEntry
from btcompress.checkpoint.precisions import Stored
from btcompress.finetune.networks import Recurrent, teacher_of
from btcompress.nn.celltype import State

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a recurrent entry, both directions.

    Attributes:
        whole: the entry with all its layers.
        number: which layer, from 0.
    """

    whole: RecurrentEntry
    number: int

    @property
    def entry(self) -> RecurrentEntry:
        """The layer as an entry of one layer, under the same prefix."""
        return replace(self.whole, num_layers=1, input_size=input_size(self.whole, self.number))

    @property
    def keys(self) -> dict[str, str]:
        """The keys of the whole that are of this layer, by those of :attr:`entry`."""
        return {key: self.named(key) for key in self.entry.keys}

    def named(self, own: str) -> str:
        """What the whole calls a tensor of :attr:`entry`, or a tensor of its block terms."""
        part, dot, rest = own.removeprefix(self.whole.prefix).partition(".")
        return f"{self.whole.prefix}{part.replace('_l0', f'_l{self.number}')}{dot}{rest}"

    def state(self, state: State | None) -> State | None:
        """The initial states of this layer among those of all layers."""
        if state is None:
            return None
        own = self.positions
        return tuple(each[own] for each in state)

    @property
    def positions(self) -> slice:
        """Where this layer's directions are among those of all layers."""
        n = 1 + self.whole.bidirectional
        return slice(self.number * n, (self.number + 1) * n)

    def cut(self, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        """The layer as a compressed checkpoint of its own; tensors are shared."""
        keys = self.keys
        own = {self.named(key): key for key in keys}
        names: dict[str, str] = {}
        for name in compressed.tensors:
            key = next((theirs for theirs in own if name == theirs or name.startswith(f"{theirs}.")), None)
            if key is not None:
                names[own[key] + name.removeprefix(key)] = name
        return replace(
            compressed,
            tensors=_renamed(compressed.tensors, names),
            matrices=_renamed(compressed.matrices, keys),
            keys=tuple(keys),
            history=(),
            notices=(),
            rounded=_renamed(compressed.rounded, keys),
            stored=_renamed(compressed.stored, names),
            layout=None,
        )

    def put_back(
        self, compressed: CompressedCheckpoint, tensors: Mapping[str, Tensor], stored: Mapping[str, Stored]
    ) -> CompressedCheckpoint:
        """The whole with new tensors of this layer, by the names that they have in :meth:`cut`.

        Args:
            compressed: the whole.
            tensors: the new ones.
            stored: how those of them are stored that are not stored as they are.
        """
        own = {name: self.named(name) for name in tensors}
        return compressed.with_tensors(
            {own[name]: tensor for name, tensor in tensors.items()}, {own[name]: how for name, how in stored.items()}
        )


def _renamed(values: Mapping[str, _T], names: Mapping[str, str]) -> dict[str, _T]:
    """The values that there are of these, by the names that they get."""
    return {new: values[old] for new, old in names.items() if old in values}


def layers_of(entry: RecurrentEntry) -> list[Layer]:
    """Its layers from the lowest on."""
    return [Layer(entry, n) for n in range(entry.num_layers)]


def dense_layers(entry: RecurrentEntry, dense: Checkpoint, dtype: torch.dtype) -> list[Recurrent]:
    """Each layer of a dense entry as a network of its own.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    whole = teacher_of(dense, entry, dtype).requires_grad_(False).eval().file_tensors()
    return [
        Recurrent(layer.entry, {own: whole[key] for own, key in layer.keys.items()}, {}, dtype)
        .requires_grad_(False)
        .eval()
        for layer in layers_of(entry)
    ]


def input_size(entry: RecurrentEntry, layer: int) -> int:
    """Inputs of a layer."""
    return entry.input_size if not layer else entry.n_outputs
