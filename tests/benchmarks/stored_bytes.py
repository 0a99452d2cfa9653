"""Bytes that tensors of a result take in its file, counted on the tensors, for other scripts here."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from btcompress.checkpoint import CompressedCheckpoint
from btcompress.checkpoint.compressed import part_names
from btcompress.packing import Packed


def names_of(found: CompressedCheckpoint, key: str) -> list[str]:
    """The tensors that a matrix is: itself, or its cores, factors and orders."""
    if key not in found.matrices:
        return [key]
    return [name for names in part_names(key, found.matrices[key].shape) for name in names]


def stored_bytes(found: CompressedCheckpoint, keys: Iterable[str], floats: torch.dtype | None = None) -> int:
    """Bytes of what stands for these keys of the dense checkpoint.

    Args:
        found: a result.
        keys: of the dense checkpoint.
        floats: count floating-point numbers as if they were stored in this dtype.
    """
    total = 0
    for name in (name for key in keys for name in names_of(found, key)):
        tensor, stored = found.tensors[name], found.stored.get(name)
        if isinstance(stored, Packed):
            total += stored.n_bytes
        elif tensor.is_floating_point():
            total += tensor.numel() * (floats or stored or tensor.dtype).itemsize
        else:
            total += tensor.nbytes
    return total
