"""What each matrix of a dense LSTM is multiplied with, as it runs over sequences."""

from __future__ import annotations

from collections.abc import Iterator
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


def inputs_of(entry: LSTMEntry, layers: list[Recurrent], batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The inputs that each ``W`` and ``U`` has in the dense LSTM at all steps that count, shape ``(n, inputs)``."""
    counts = steps_that_count(batch)
    n_directions = 1 + entry.bidirectional
    below = batch.x
    for layer, recurrent in enumerate(layers):
        hidden = recurrent(batch.x, batch.lengths)[0]  # (B, T, directions * H), 0 beyond a sequence's end
        for direction, own in enumerate(hidden.chunk(n_directions, dim=-1)):
            position = layer * n_directions + direction
            before = torch.zeros_like(own)
            if direction:
                before[:, :-1] = own[:, 1:]
            else:
                before[:, 1:] = own[:, :-1]
            yield entry.input_keys[position], below[counts]
            yield entry.recurrent_keys[position], before[counts]
        below = hidden
