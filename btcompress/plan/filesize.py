"""What a result's file has beside the numbers of the chosen matrices, reckoned before there is one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from btcompress.checkpoint import is_narrowed
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.tensors import find_aliases
from btcompress.packing import Integers, Precision
from btcompress.shapes import MatrixShape

#: Bytes of the header for a tensor, beside its name: dtype, shape, where it lies, and its place among the keys.
_OF_TENSOR = 120
#: Bytes of the description of a form, beside its name, and of how a tensor is stored.
_OF_FORM, _OF_PRECISION = 520, 130
#: Tensors of the file that hold one tensor of integers: codes, scales, zero points.
_PER_PACKED = 3
#: Bytes of the description for each matrix that tell how it came about: why it stays dense, what it was calibrated to.
_OF_MATRIX = 360
#: Bytes of the header whatever is in the file: source, recipe, history of a job with calibration.
_OF_JOB = 4096


def bytes_beside(tensors: Mapping[str, Tensor], chosen: Collection[str], others: torch.dtype | None) -> int:
    """Bytes of a file beside the chosen matrices and what describes these: all other tensors, and the header for them.

    Args:
        tensors: of the dense checkpoint.
        chosen: keys of the matrices that are planned for.
        others: what all other tensors are stored as; None for what they are.
    """
    aliases = find_aliases(tensors)
    total = _OF_JOB
    for name, tensor in tensors.items():
        if name in aliases:
            total += 2 * (len(name.encode()) + len(aliases[name].encode())) + _OF_TENSOR
        elif name not in chosen:
            narrowed = others is not None and is_narrowed(tensor, others)
            width = others.itemsize if narrowed and others is not None else tensor.dtype.itemsize
            total += tensor.numel() * width + _described(name, _OF_PRECISION if narrowed else 0)
    return total


def bytes_to_describe(key: str, shape: MatrixShape | None, precision: Precision | None) -> int:
    """Bytes of the header for one chosen matrix.

    Args:
        key: of the matrix.
        shape: its form; None where it stays dense.
        precision: how its numbers are stored; None for its own dtype.
    """
    names = [key] if shape is None else [name for part in part_names(key, shape) for name in part]
    stored = _PER_PACKED if isinstance(precision, Integers) else 1
    how = 0 if precision is None else _OF_PRECISION
    tensors = sum((stored - 1) * (len(name.encode()) + _OF_TENSOR) + _described(name, how) for name in names)
    return tensors + len(key.encode()) + (0 if shape is None else _OF_FORM) + _OF_MATRIX


def _described(name: str, how: int) -> int:
    # The name stands among the tensors, among the keys, and where it is said how it is stored.
    return 3 * len(name.encode()) + _OF_TENSOR + how
