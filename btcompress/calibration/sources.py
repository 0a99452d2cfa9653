"""Find the layers of a checkpoint that sample inputs are for, and split the sequences of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btcompress.calibration.inputs import Entry, matrices_of, rows_of
from btcompress.calibration.lengths import by_length
from btcompress.calibration.request import CalibrationRequest, SampleInputs
from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    LinearEntry,
    RecurrentEntry,
    check_plain,
    find_linear,
    tied_layers,
)
from btcompress.checkpoint.tied import Tied
from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.data import Data, open_data, recorded_layers, split
from btcompress.finetune.heads import deciding_head
from btcompress.finetune.networks import check_inputs, kinds_of, named
from btcompress.finetune.recorded import is_same_layer
from btcompress.text import listed

_MOST_SHOWN = 8
_WITHOUT = "Leave its inputs out: its matrices are then fitted to their entries."


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Sample inputs of one layer of a checkpoint.

    Attributes:
        entry: the layer.
        data: sequences of its inputs.
        head: the linear layer that takes a recurrent layer's outputs, where the file says which and it has no inputs of
            its own.
        tied: the names, as layers, of a recurrent layer that has several, its own among them.
    """

    entry: Entry
    data: Data
    head: LinearEntry | None = None
    tied: tuple[RecurrentEntry, ...] = ()

    @property
    def name(self) -> str:
        """The layer's, for messages."""
        return _name(self.entry)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of all matrices whose inputs are known."""
        return (*matrices_of(self.entry), *(() if self.head is None else (self.head.key,)))

    def aliases(self, key: str) -> tuple[str, ...]:
        """All keys of a matrix, where the layer has several names."""
        own = self.entry.keys if isinstance(self.entry, RecurrentEntry) else ()
        return tuple(each.keys[own.index(key)] for each in self.tied) if key in own else (key,)

    def chosen(self, keys: Collection[str]) -> tuple[str, ...]:
        """Those of its matrices that are among these under any of their names."""
        return tuple(key for key in self.keys if any(name in keys for name in self.aliases(key)))

    def split(self, request: CalibrationRequest, seed: int) -> tuple[Data, Data]:
        """The sequences to fit and train on, and those held back, each by length."""
        train, held = split(self.data, request.held_fraction, seed)
        return by_length(train), by_length(held)


def sources_of(
    checkpoint: Checkpoint | CompressedCheckpoint,
    inputs: Sequence[SampleInputs],
    keys: Collection[str] | None = None,
) -> tuple[Source, ...]:
    """The layers that sample inputs are for, in the order of the checkpoint, recurrent ones first.

    Args:
        checkpoint: holds them.
        inputs: the sample inputs.
        keys: of the matrices asked for. Where it is not said which recurrent layer inputs are for, it is the only one
            with such matrices; linear layers of a recorded file without any are left out.

    Raises:
        CheckpointError: tensors lie beside those of a recurrent layer, so that its hidden states are not known.
        BTCompressError: there is no such layer, it is not clear which is meant, there are two inputs for one layer,
            or a file cannot be read.
        ShapeError: the inputs of a layer have other sizes.
    """
    tensors = checkpoint.tensors if isinstance(checkpoint, Checkpoint) else checkpoint.outline()
    found, tied = checkpoint.recurrent(), tied_layers(checkpoint)
    linear = list(find_linear(tensors, found))
    given: dict[Entry, SampleInputs] = {}
    for each in inputs:
        for entry in _layers_for(each, tied, linear, keys):
            same = tied[entry] if isinstance(entry, RecurrentEntry) else (entry,)
            if other := next((one for one in same if one in given), None):
                names = " and ".join(dict.fromkeys((_name(other), _name(entry))))
                one = "" if other == entry else ", which are one and the same layer"
                raise BTCompressError(
                    f"{given[other].data} and {each.data} are both for {names}{one}. Give one for each layer."
                )
            if isinstance(entry, RecurrentEntry):
                check_plain(entry, "calibrating and measuring on its inputs", _WITHOUT)
            given[entry] = each
    order: list[Entry] = [*tied, *linear]
    opened = {entry: _opened(given[entry], entry) for entry in order if entry in given}
    return tuple(
        Source(
            entry,
            data,
            _head(tensors, entry, opened, keys),
            tied[entry] if isinstance(entry, RecurrentEntry) else (),
        )
        for entry, data in opened.items()
    )


def _layers_for(
    inputs: SampleInputs, tied: Tied, linear: Sequence[LinearEntry], keys: Collection[str] | None
) -> Iterator[Entry]:
    entries: list[Entry] = [*tied, *linear]
    recorded = recorded_layers(inputs.data)
    if inputs.layer is not None:
        named = [entry for entry in entries if entry.name == inputs.layer]
        if not named:
            raise BTCompressError(
                f"there is no {kinds_of([*tied])} or linear layer named {inputs.layer!r} for {inputs.data}: those in "
                f"the checkpoint are {_listed(entries)}. Name one of them: NAME={inputs.data}."
            )
        yield named[0]
    elif recorded:
        known = [entry for entry in entries if entry.name in recorded] or [
            entry for entry in entries if any(is_same_layer(name, entry.name) for name in recorded)
        ]
        if not known:
            raise BTCompressError(
                f"{inputs.data} holds inputs of {listed(recorded, _MOST_SHOWN)}, but none of them is a layer of "
                f"the checkpoint, which has {_listed(entries)}. Say which one they are for."
            )
        yield from _once([entry for entry in known if isinstance(entry, RecurrentEntry)], tied)
        yield from (entry for entry in known if isinstance(entry, LinearEntry) and _is_asked(entry, keys))
    else:
        every = _once(tied, tied)
        asked = _once([entry for entry in tied if _is_asked(entry, keys)], tied)
        if len(every) != 1 and len(asked) != 1:
            raise BTCompressError(
                f"it is not clear which {kinds_of(asked or every)} {inputs.data} is for: they are "
                f"{_listed(asked or every)}. Name one of them: NAME={inputs.data}."
            )
        yield asked[0] if len(asked) == 1 else every[0]


def _once(entries: Iterable[RecurrentEntry], tied: Tied) -> list[RecurrentEntry]:
    """The entries, of those that are one and the same the first."""
    found: dict[tuple[RecurrentEntry, ...], RecurrentEntry] = {}
    for entry in entries:
        found.setdefault(tied[entry], entry)
    return list(found.values())


def _is_asked(entry: Entry, keys: Collection[str] | None) -> bool:
    return keys is None or any(key in keys for key in matrices_of(entry))


def _opened(inputs: SampleInputs, entry: Entry) -> Data:
    """The sequences, once they are found to be inputs of the layer."""
    data = open_data(inputs.data, inputs.scale, layer=entry.name)
    first = data.batch(torch.tensor([0]))
    if isinstance(entry, RecurrentEntry):
        check_inputs(data, first, entry)
    elif first.x.dim() not in (2, 3) or rows_of(first).shape[1] != entry.in_features:
        raise ShapeError(
            f"{data.name}: x has sequences of shape {tuple(first.x.shape[1:])}, but {_name(entry)} takes "
            f"{entry.in_features} inputs. Give the inputs of this layer."
        )
    return data


def _head(
    tensors: Mapping[str, Tensor], entry: Entry, opened: Collection[Entry], keys: Collection[str] | None
) -> LinearEntry | None:
    if isinstance(entry, LinearEntry):
        return None
    head = deciding_head(tensors, entry)
    return head if head is not None and head not in opened and _is_asked(head, keys) else None


def _listed(entries: Sequence[Entry]) -> str:
    def shown(entry: Entry) -> str:
        n_inputs = entry.input_size if isinstance(entry, RecurrentEntry) else entry.in_features
        return f"{entry.name or '(top)'} ({n_inputs} inputs)"

    return listed([shown(entry) for entry in entries], _MOST_SHOWN)


def _name(entry: Entry) -> str:
    return named(entry) if isinstance(entry, RecurrentEntry) else entry.name or "the linear layer"
