"""What a result's file has beside the numbers of the chosen matrices, reckoned before there is one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from btcompress.checkpoint import Layout, is_narrowed
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.layoutrecords import to_text
from btcompress.checkpoint.tensors import find_aliases
from btcompress.packing import Integers, Precision
from btcompress.shapes import MatrixShape

#: Bytes of the header for a tensor of the file, beside its name: dtype, shape, and where it lies.
_OF_TENSOR = 95
#: Bytes of quotation marks and a comma around a key in the description.
_OF_KEY = 5
#: Bytes of the description of a form, and of how a tensor is stored, beside their names; JSON within JSON, so that each
#: quotation mark takes two.
_OF_FORM, _OF_PRECISION = 400, 115
#: What follows a tensor's name in those of its codes, scales and zero points.
_PACKED = (".codes", ".scales", ".zeros")
#: Bytes of the description for each matrix that tell how it came about, such as why it stays dense.
_OF_MATRIX = 250
#: Bytes that tell of the same matrix rounded alone, three ways; and where there are inputs, to the nearest and with
#: errors fed back, each with its errors on them, and block terms in 8 bits. Without inputs, of the last.
_OF_ROUNDINGS, _OF_ROUNDINGS_ON_INPUTS, _OF_8_BITS = 250, 7 * 215, 100
#: Bytes of the header whatever is in the file: source, recipe, notices, history of a job with calibration.
_OF_JOB = 3000


def bytes_beside(
    tensors: Mapping[str, Tensor], chosen: Collection[str], others: torch.dtype | None, layout: Layout | None = None
) -> int:
    """Bytes of a file beside the chosen matrices and what describes these: all other tensors, and the header for them.

    Args:
        tensors: of the dense checkpoint.
        chosen: keys of the matrices that are planned for.
        others: what all other tensors are stored as; None for what they are.
        layout: of the dense checkpoint, which the description says.
    """
    aliases = find_aliases(tensors)
    total = _OF_JOB + (0 if layout is None else len(json.dumps(to_text(layout, list(tensors)))))
    for name, tensor in tensors.items():
        own = len(name.encode())
        total += own + _OF_KEY
        if name in aliases:
            total += own + len(aliases[name].encode()) + 2 * _OF_KEY
        elif name not in chosen:
            narrowed = others is not None and is_narrowed(tensor, others)
            width = others.itemsize if narrowed and others is not None else tensor.dtype.itemsize
            total += tensor.numel() * width + own + _OF_TENSOR + (own + _OF_PRECISION if narrowed else 0)
    return total


def bytes_to_describe(
    key: str, shape: MatrixShape | None, precision: Precision | None, *, on_inputs: bool = False
) -> int:
    """Bytes of the header for one chosen matrix.

    Args:
        key: of the matrix.
        shape: its form; None where it stays dense.
        precision: how its numbers are stored; None for its own dtype.
        on_inputs: whether there are sample inputs of it.
    """
    in_8_bits = _OF_8_BITS if precision is None and shape is not None else 0
    roundings = _OF_ROUNDINGS_ON_INPUTS if on_inputs else _OF_ROUNDINGS + in_8_bits
    names = [key] if shape is None else [name for part in part_names(key, shape) for name in part]
    suffixes = _PACKED if isinstance(precision, Integers) else ("",)
    total = len(key.encode()) + _OF_MATRIX + roundings + (0 if shape is None else _OF_FORM)
    for name in names:
        own = len(name.encode())
        total += sum(own + len(suffix) + _OF_TENSOR for suffix in suffixes)
        total += 0 if precision is None else own + _OF_PRECISION
    return total
