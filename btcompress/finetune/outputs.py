"""What networks give: the tensors in it, in one order, and what of them counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from btcompress.finetune.data import Batch


def tensors_in(outputs: object) -> Iterator[Tensor]:
    """The floating-point tensors of outputs, whatever tuples, lists and mappings they lie in, in their order."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from tensors_in(value)


def n_steps_of(batch: Batch) -> int | None:
    """The steps of a batch's inputs: of ``(B, T, ...)``, or ``(B, T)`` of whole numbers; None without steps."""
    has_steps = batch.x.dim() > 2 or (batch.x.dim() == 2 and not batch.x.is_floating_point())
    return batch.x.shape[1] if has_steps or batch.lengths is not None else None


def steps_axis(output: Tensor, batch: Batch) -> int | None:
    """Which axis of an output is that of the inputs' steps: ``(B, T, ...)``, or ``(B, C, T)``; None where none is."""
    n_steps = n_steps_of(batch)
    if n_steps is None or output.dim() < 2 or len(output) != len(batch.x):
        return None
    if output.shape[1] == n_steps:
        return 1
    return 2 if output.dim() == 3 and output.shape[2] == n_steps else None


def steps_that_count(batch: Batch, n_steps: int) -> Tensor:
    """Which steps of a batch are no padding, boolean, shape ``(B, n_steps)``, on the CPU."""
    if batch.lengths is None:
        return torch.ones(len(batch.x), n_steps, dtype=torch.bool)
    return torch.arange(n_steps) < batch.lengths.cpu()[:, None]
