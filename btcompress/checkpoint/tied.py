"""Which recurrent layers of a checkpoint are one and the same under several names."""

from __future__ import annotations

from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.checkpoint.names import RecurrentEntry
from btcompress.checkpoint.reader import Checkpoint
from btcompress.checkpoint.tensors import find_aliases

Tied = dict[RecurrentEntry, tuple[RecurrentEntry, ...]]


def tied_layers(checkpoint: Checkpoint | CompressedCheckpoint) -> Tied:
    """For each recurrent layer all that have the very same tensors, itself among them, in the checkpoint's order."""
    aliases = find_aliases(checkpoint.tensors)
    tensors: dict[RecurrentEntry, tuple[str, ...]] = {}
    for entry in checkpoint.recurrent():
        if isinstance(entry, RecurrentEntry):
            names = (name for key in entry.keys for name in _names_of(checkpoint, key))
            tensors[entry] = tuple(aliases.get(name, name) for name in names)
    return {entry: tuple(each for each, theirs in tensors.items() if theirs == own) for entry, own in tensors.items()}


def _names_of(checkpoint: Checkpoint | CompressedCheckpoint, key: str) -> tuple[str, ...]:
    return (key,) if isinstance(checkpoint, Checkpoint) else checkpoint.names_of(key)
