"""Store what was not chosen in floats of half the bytes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.checkpoint.precisions import STANDS_FOR, values_of
from btcompress.packing import precision_text
from btcompress.text import listed

#: The largest relative change of a tensor: roundings of bfloat16 stay below half of this.
_MOST_CHANGE = 2.0**-8
#: Names of tensors that stay as they are, in a notice.
_SHOWN = 5


def others_stored_as(compressed: CompressedCheckpoint, dtype: torch.dtype) -> CompressedCheckpoint:
    """The same with every floating-point tensor that was not chosen stored in a dtype of fewer bytes.

    Tensors stored otherwise already, narrower ones, and empty ones stay; so does, with a notice, one whose numbers
    leave the dtype's range, at either end.

    Args:
        compressed: the result.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """
    candidates = {
        key: compressed.tensors[key]
        for key in compressed.others
        if key not in compressed.stored and _is_wider(compressed.tensors[key], dtype)
    }
    stored = {key: dtype for key, tensor in candidates.items() if is_narrowed(tensor, dtype)}
    kept = [key for key in candidates if key not in stored]
    rounded = compressed.with_tensors(stored=stored)
    if not kept:
        return rounded
    notice = f"Not stored as {precision_text(dtype)}, as numbers of it are beyond the range: {listed(kept, _SHOWN)}."
    return replace(rounded, notices=(*rounded.notices, notice))


def is_narrowed(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor that was not chosen is stored in this dtype by :func:`others_stored_as`."""
    return _is_wider(tensor, dtype) and _holds(dtype, tensor)


def _is_wider(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.dtype in STANDS_FOR.values() and tensor.dtype.itemsize > dtype.itemsize and tensor.numel() > 0


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    """Whether a tensor loses no more than last digits, to infinity or to zero."""
    values = values_of(tensor, dtype)
    if not torch.isfinite(values).all():
        return False
    exact = tensor.detach().double()
    return float((values.double() - exact).norm()) <= _MOST_CHANGE * float(exact.norm())
