"""Tensors as they lie in a file: as they are, as floats of fewer bytes, or as integers packed into bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from btcompress.checkpoint.precisions import CODES, SCALES, STANDS_FOR, ZEROS, Stored
from btcompress.checkpoint.schema import FloatsRecord, IntegersRecord
from btcompress.checkpoint.tensors import is_countable
from btcompress.errors import CheckpointError, ShapeError
from btcompress.memory import require
from btcompress.packing import Integers, Packed, pack_bits, rows_and_columns, unpack_bits

Record: TypeAlias = IntegersRecord | FloatsRecord

#: Bytes that each number of a tensor of integers takes while its values are formed, beside codes and values.
_FORMING = 24


def to_record(tensor: Tensor, how: Stored) -> dict[str, Any]:
    """What a description says of a tensor that is stored so."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if isinstance(how, Packed):
        return {"bits": how.integers.bits, "group": how.integers.group, "shape": list(how.shape), "dtype": dtype}
    return {"stored": str(how).removeprefix("torch."), "dtype": dtype}


def to_file(name: str, tensor: Tensor, how: Stored | None) -> dict[str, Tensor]:
    """The tensors of a file, by their names, that stand for one that is stored so; None as it is."""
    if isinstance(how, Packed):
        bits = how.integers.bits
        codes, zeros = pack_bits(how.codes, bits), pack_bits(how.zeros, bits + 1)
        return {name + CODES: codes, name + SCALES: how.scales, name + ZEROS: zeros}
    return {name: tensor if how is None else tensor.to(how)}


def from_file(
    found: Mapping[str, Tensor], records: Mapping[str, Record]
) -> tuple[dict[str, Tensor], dict[str, Stored]]:
    """The tensors that those of a file stand for, and how they are stored.

    Args:
        found: the tensors of the file.
        records: how some are stored, by the names of what they stand for.

    Raises:
        CheckpointError: a tensor is missing, has a name that another stands for, or is not what its record says.
        MemoryLimitError: the values of all need more memory than there is.
    """
    tensors = dict(found)
    lying: dict[str, tuple[Tensor, ...]] = {}
    for name, record in records.items():
        endings = (CODES, SCALES, ZEROS) if isinstance(record, IntegersRecord) else ("",)
        if missing := [name + ending for ending in endings if name + ending not in tensors]:
            raise CheckpointError(f"the tensor {missing[0]} is missing.")
        lying[name] = tuple(tensors.pop(name + ending) for ending in endings)
        _check_sizes(name, lying[name], record)
    if clash := sorted(tensors.keys() & records.keys()):
        raise CheckpointError(f"{clash[0]} is there twice, as integers and as it is.")
    _require_memory(lying, records)
    stored: dict[str, Stored] = {}
    for name, record in records.items():
        if isinstance(record, IntegersRecord):
            packed = _packed(name, lying[name], record)
            tensors[name], stored[name] = packed.values(), packed
        else:
            tensors[name], stored[name] = lying[name][0].to(STANDS_FOR[record.dtype]), STANDS_FOR[record.stored]
    return tensors, stored


def _check_sizes(name: str, lying: tuple[Tensor, ...], record: Record) -> None:
    """Refuse what is not as long as its record says, before anything is formed."""
    if isinstance(record, FloatsRecord):
        if lying[0].dtype != STANDS_FOR[record.stored]:
            raise CheckpointError(f"{name} is said to be stored as {record.stored}, but is {lying[0].dtype}.")
        return
    if not is_countable(record.shape):
        raise CheckpointError(f"{name} is said to have shape {record.shape}, which no tensor can.")
    rows, columns = rows_and_columns(record.shape)
    groups = math.ceil(columns / record.group)
    expected = (
        (CODES, torch.uint8, (math.ceil(rows * columns * record.bits / 8),)),
        (SCALES, torch.float16, (rows, groups)),
        (ZEROS, torch.uint8, (math.ceil(rows * groups * (record.bits + 1) / 8),)),
    )
    for tensor, (ending, dtype, shape) in zip(lying, expected, strict=True):
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{name}{ending} is {tensor.dtype} of shape {tuple(tensor.shape)}, but {record.bits} bits in groups of "
                f"{record.group} for a tensor of shape {record.shape} take {dtype} of shape {shape}."
            )


def _require_memory(lying: Mapping[str, tuple[Tensor, ...]], records: Mapping[str, Record]) -> None:
    kept, most = 0, 0
    for name, record in records.items():
        integers = isinstance(record, IntegersRecord)
        count = math.prod(record.shape) if isinstance(record, IntegersRecord) else lying[name][0].numel()
        kept += count * (STANDS_FOR[record.dtype].itemsize + integers)
        most = max(most, count * _FORMING * integers)
    require(kept + most, "What is stored in fewer bits", "Read the file on a machine with more memory.")


def _packed(name: str, lying: tuple[Tensor, ...], record: IntegersRecord) -> Packed:
    codes, scales, zeros = lying
    shape = rows_and_columns(record.shape)
    try:
        return Packed(
            Integers(record.bits, record.group),
            tuple(record.shape),
            STANDS_FOR[record.dtype],
            unpack_bits(codes, record.bits, math.prod(shape)).to(torch.uint8).reshape(shape),
            scales,
            unpack_bits(zeros, record.bits + 1, scales.numel()).reshape(scales.shape),
        )
    except ShapeError as error:
        raise CheckpointError(f"{name}, as integers of {record.bits} bits: {error}") from error
