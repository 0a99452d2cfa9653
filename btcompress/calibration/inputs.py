"""What each matrix of a dense layer is multiplied with, as it runs over sequences."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from btcompress.calibration.layers import dense_layers, layers_of
from btcompress.checkpoint import Checkpoint, LinearEntry, RecurrentEntry
from btcompress.finetune.data import Batch
from btcompress.finetune.networks import Recurrent, training_dtype
from btcompress.finetune.outputs import steps_that_count

Entry = RecurrentEntry | LinearEntry
Inputs = Iterator[tuple[tuple[str, ...], Tensor]]


class Meets(Protocol):
    """Says what the matrices of a layer meet."""

    def __call__(self, batch: Batch, keys: Collection[str]) -> Inputs:
        """The inputs of matrices at all steps that count, shape ``(n, I)``, with the keys of those that have them.

        Args:
            batch: sequences of the layer's inputs.
            keys: of the matrices asked for; nothing runs that none of them needs.
        """


def matrices_of(entry: Entry) -> tuple[str, ...]:
    """The keys of a layer's matrices."""
    if isinstance(entry, LinearEntry):
        return (entry.key,)
    return (*entry.input_keys, *entry.recurrent_keys, *entry.projection_keys)


def dtype_of(entry: Entry, tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype to compute a layer in whose matrices these are."""
    if isinstance(entry, RecurrentEntry):
        return training_dtype(tensors, entry)
    return torch.float64 if tensors[entry.key].dtype == torch.float64 else torch.float32


def meets(entry: Entry, dense: Checkpoint, dtype: torch.dtype, head: LinearEntry | None = None) -> Meets:
    """What says what the matrices of a dense layer meet.

    Args:
        entry: the layer.
        dense: holds it.
        dtype: to run it in.
        head: the linear layer that meets a recurrent layer's hidden states of all steps, if it is among the matrices.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    if isinstance(entry, LinearEntry):
        return lambda batch, keys: iter([((entry.key,), rows_of(batch))] if entry.key in keys else [])
    networks = dense_layers(entry, dense, dtype)
    return lambda batch, keys: _met_in(entry, networks, head, batch, keys)


def rows_of(batch: Batch) -> Tensor:
    """The inputs of all steps that count, shape ``(n, I)``; of a batch without steps each of its inputs."""
    return batch.x if batch.x.dim() == 2 else batch.x[steps_that_count(batch, batch.x.shape[1])]


def _met_in(
    entry: RecurrentEntry, networks: list[Recurrent], head: LinearEntry | None, batch: Batch, keys: Collection[str]
) -> Inputs:
    counts = steps_that_count(batch, batch.x.shape[1])
    of_head = () if head is None else (head.key,)
    left, below = {*matrices_of(entry), *of_head} & set(keys), batch.x
    for layer, network in zip(layers_of(entry), networks, strict=True):
        input_keys, recurrent_keys, projection_keys = (
            every[layer.positions] for every in (entry.input_keys, entry.recurrent_keys, entry.projection_keys)
        )
        if wanted := tuple(key for key in input_keys if key in left):
            yield wanted, below[counts]
        left -= set(input_keys)
        if not left:
            return
        state = layer.state(batch.state)
        hidden = network(below, batch.lengths, state)[0]  # (B, T, directions * H), 0 beyond a sequence's end
        for n, own in enumerate(hidden.chunk(1 + entry.bidirectional, dim=-1)):
            before = _before(own, counts, None if state is None else state[0][n], reverse=bool(n))
            if recurrent_keys[n] in left:
                yield (recurrent_keys[n],), before[counts]
            if projection_keys and projection_keys[n] in left:
                cell = None if state is None else state[1][n]
                yield (projection_keys[n],), _unprojected(network, n, below, before, counts, cell)[counts]
        left -= {*recurrent_keys, *projection_keys}
        below = hidden
    if left:
        yield of_head, below[counts]


def _before(hidden: Tensor, counts: Tensor, initial: Tensor | None, *, reverse: bool) -> Tensor:
    """The hidden states that each step of a direction begins with, shape ``(B, T, H)``."""
    before = torch.zeros_like(hidden)
    if reverse:
        before[:, :-1] = hidden[:, 1:]
    else:
        before[:, 1:] = hidden[:, :-1]
    if initial is not None:
        first = counts.sum(1) - 1 if reverse else torch.zeros(len(hidden), dtype=torch.long)
        before[torch.arange(len(hidden)), first] = initial
    return before


def _unprojected(
    network: Recurrent, direction: int, below: Tensor, before: Tensor, counts: Tensor, cell: Tensor | None
) -> Tensor:
    """What the projection of a direction is multiplied with: ``sigmoid(o) tanh(c)``, shape ``(B, T, H)``."""
    tensors = dict(network.layer.named_parameters())
    suffix = ("_l0", "_l0_reverse")[direction]
    z = linear(below, tensors[f"weight_ih{suffix}"], bias_of(tensors, suffix))
    z = z + linear(before, tensors[f"weight_hh{suffix}"])
    i, f, g, o = z.chunk(4, dim=-1)
    kept, added = torch.sigmoid(f), torch.sigmoid(i) * torch.tanh(g)
    c = torch.zeros_like(added[:, 0]) if cell is None else cell
    cells = torch.empty_like(added)
    steps = range(added.shape[1])
    for t in reversed(steps) if direction else steps:
        # A sequence that is still padding, seen from behind, keeps its initial state.
        c = torch.where(counts[:, t, None], kept[:, t] * c + added[:, t], c)
        cells[:, t] = c
    return torch.sigmoid(o) * torch.tanh(cells)


def bias_of(tensors: Mapping[str, Tensor], suffix: str) -> Tensor | None:
    """Both biases of a direction at once; None without biases."""
    biases = [tensors[name] for name in (f"bias_ih{suffix}", f"bias_hh{suffix}") if name in tensors]
    return torch.stack(biases).sum(0) if biases else None
