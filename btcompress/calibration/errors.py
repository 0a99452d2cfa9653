"""How far block terms are off on inputs that the fit did not see: ``||(W - W') X|| / ||W X||`` for each matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LSTMEntry
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.networks import Recurrent, teacher_of


@torch.no_grad()
def activation_errors(
    compressed: CompressedCheckpoint, dense: Checkpoint, entry: LSTMEntry, data: Data, batch_size: int = 32
) -> dict[str, float]:
    """The activation error of each factorized matrix of an LSTM, on the inputs that it has in the dense LSTM.

    Those of ``W`` are the sequences, or the hidden states of the layer below; those of ``U`` are the hidden states
    of the step before. Projections are left out: what they take is not among the LSTM's outputs.

    Args:
        compressed: holds the block terms.
        dense: holds the matrices that they stand for.
        entry: the LSTM.
        data: sequences of its inputs.
        batch_size: sequences at once.

    Returns:
        The error of each matrix by its key; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    keys = [key for key in (*entry.input_keys, *entry.recurrent_keys) if key in compressed.matrices]
    layers = layers_of(entry, compressed, dense)
    dtype = next(layers[0].parameters()).dtype
    parts = {key: [part.to(dtype) for part in compressed.parts(key)] for key in keys}
    sums = {key: [0.0, 0.0] for key in keys}
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), dtype)
        for key, inputs in inputs_of(entry, layers, batch):
            if key in sums:
                wanted = inputs @ dense.tensors[key].to(dtype).T
                given = torch.cat([part.matmul(inputs) for part in parts[key]], dim=-1)
                sums[key][0] += float((wanted - given).square().sum())
                sums[key][1] += float(wanted.square().sum())
    return {key: math.sqrt(error / size) for key, (error, size) in sums.items() if size}


def layers_of(entry: LSTMEntry, compressed: CompressedCheckpoint, dense: Checkpoint) -> list[Recurrent]:
    """The dense LSTM cut off after each of its layers, for :func:`inputs_of`."""
    return [teacher_of(dense, compressed, replace(entry, num_layers=n + 1)) for n in range(entry.num_layers)]


def inputs_of(entry: LSTMEntry, layers: list[Recurrent], batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The inputs that each ``W`` and ``U`` has in the dense LSTM at all steps that count, shape ``(n, inputs)``."""
    steps = torch.arange(batch.x.shape[1])
    counts = steps < (batch.lengths[:, None] if batch.lengths is not None else batch.x.shape[1])
    counts = counts.expand(batch.x.shape[:2])
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
