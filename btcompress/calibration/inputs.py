"""What each matrix of a dense LSTM is multiplied with, as it runs over sequences."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from btcompress.checkpoint import Checkpoint, LSTMEntry
from btcompress.finetune.data import Batch
from btcompress.finetune.networks import Recurrent, teacher_of


def layers_of(entry: LSTMEntry, dense: Checkpoint, dtype: torch.dtype) -> list[Recurrent]:
    """The dense LSTM cut off after each of its layers, for :func:`inputs_of`.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    return [teacher_of(dense, replace(entry, num_layers=n + 1), dtype) for n in range(entry.num_layers)]


def steps_that_count(batch: Batch) -> Tensor:
    """Which steps of a batch are no padding, boolean, shape ``(B, T)``."""
    n_sequences, n_steps = batch.x.shape[:2]
    if batch.lengths is None:
        return torch.ones(n_sequences, n_steps, dtype=torch.bool)
    return torch.arange(n_steps) < batch.lengths[:, None]


def inputs_of(
    entry: LSTMEntry, layers: list[Recurrent], batch: Batch, keys: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """The inputs that a ``W`` or ``U`` has in the dense LSTM at all steps that count, shape ``(n, inputs)``.

    Args:
        entry: the LSTM.
        layers: what :func:`layers_of` gave.
        batch: sequences of its inputs.
        keys: of the matrices asked for; no layer runs that none of them needs.
    """
    counts = steps_that_count(batch)
    n_directions = 1 + entry.bidirectional
    below, left = batch.x, {*entry.input_keys, *entry.recurrent_keys} & set(keys)
    for layer, recurrent in enumerate(layers):
        positions = slice(layer * n_directions, (layer + 1) * n_directions)
        for key in entry.input_keys[positions]:
            if key in left:
                yield key, below[counts]
        left -= set(entry.input_keys[positions])
        if not left:
            return
        hidden = recurrent(batch.x, batch.lengths)[0]  # (B, T, directions * H), 0 beyond a sequence's end
        own_keys = entry.recurrent_keys[positions]
        for direction, (key, own) in enumerate(zip(own_keys, hidden.chunk(n_directions, dim=-1), strict=True)):
            if key not in left:
                continue
            before = torch.zeros_like(own)
            if direction:
                before[:, :-1] = own[:, 1:]
            else:
                before[:, 1:] = own[:, :-1]
            yield key, before[counts]
        left -= set(own_keys)
        below = hidden
