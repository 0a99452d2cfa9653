"""Numbers in few bits: integers of 2 to 8 bits in groups along a row, each group with a scale and a zero point.

A group stands for the numbers ``scale * (code - zero / 2)``: ``code`` of ``b`` bits, ``scale`` a float16, and ``zero``
of ``b + 1`` bits, so that zero points lie on codes and halfway between them. What is packed, and how, is in
``docs/format.md``; which integers stand for a matrix best is the business of :mod:`btcompress.fit.rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from btcompress.errors import BTCompressError, ShapeError

#: Fewest and most bits of an integer.
LEAST_BITS, MOST_BITS = 2, 8
#: Smallest group, and the largest one that can be asked for; a row has no more than this.
LEAST_GROUP, MOST_GROUP = 8, 2**40
#: Bytes of a group's scale.
_SCALE_BYTES = 2
#: Values whose bits are spread out at a time.
_CHUNK = 2**20

#: Floats that numbers may be stored as, by what they are called.
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Integers:
    """Integers in groups along the rows of a matrix.

    Attributes:
        bits: ``b``, of each code.
        group: columns that have a scale and a zero point in common; the last group of a row may have fewer.

    Raises:
        BTCompressError: one is out of range.
    """

    bits: int
    group: int = 32

    def __post_init__(self) -> None:
        for name, least, most in (("bits", LEAST_BITS, MOST_BITS), ("group", LEAST_GROUP, MOST_GROUP)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise BTCompressError(
                    f"{name} must be a whole number from {least} to {most:,}, but {value!r} was given."
                )

    @property
    def most(self) -> int:
        """The largest code, ``2^b - 1``; zero points go up to ``2^(b+1) - 1``."""
        return 2**self.bits - 1

    def n_groups(self, columns: int) -> int:
        """Groups of a row."""
        return math.ceil(columns / self.group)

    def spread(self, of_groups: Tensor, columns: int) -> Tensor:
        """What each group has, shape ``(rows, groups)``, for each of its columns, ``(rows, columns)``."""
        # A group may be far larger than a row, and a file may say so.
        return of_groups.repeat_interleave(min(self.group, columns), dim=1)[:, :columns]

    def n_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape: codes, scales and zero points."""
        rows, columns = rows_and_columns(shape)
        n_groups = rows * self.n_groups(columns)
        packed = math.ceil(rows * columns * self.bits / 8) + math.ceil(n_groups * (self.bits + 1) / 8)
        return packed + _SCALE_BYTES * n_groups

    def __str__(self) -> str:
        return f"int{self.bits}/{self.group}"


#: How numbers are stored: as floats of a dtype, or as integers.
Precision: TypeAlias = torch.dtype | Integers


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A tensor as integers.

    Attributes:
        integers: bits and groups.
        shape: of the tensor.
        dtype: of the tensor, in which :meth:`values` gives it.
        codes: uint8, shape ``(rows, columns)`` as :func:`to_rows` arranges them.
        scales: float16, shape ``(rows, groups)``, finite and not negative.
        zeros: int16, shape ``(rows, groups)``, in half codes.

    Raises:
        ShapeError: a tensor has another shape or dtype, or numbers beyond those bits.
    """

    integers: Integers
    shape: tuple[int, ...]
    dtype: torch.dtype
    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        rows, columns = rows_and_columns(self.shape)
        groups = (rows, self.integers.n_groups(columns))
        expected = {"codes": ((rows, columns), torch.uint8, self.integers.most)}
        expected["zeros"] = (groups, torch.int16, 2 * self.integers.most + 1)
        for name, (shape, dtype, most) in expected.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ShapeError(f"{name} must be {dtype} of shape {shape}, not {tensor.dtype} {tuple(tensor.shape)}.")
            if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= most:
                raise ShapeError(f"{name} must be from 0 to {most}, but some are not.")
        if tuple(self.scales.shape) != groups or self.scales.dtype != torch.float16:
            raise ShapeError(
                f"scales must be torch.float16 of shape {groups}, not {self.scales.dtype} {tuple(self.scales.shape)}."
            )
        if not (torch.isfinite(self.scales) & (self.scales >= 0)).all():
            raise ShapeError("scales must be finite and not negative, but some are not.")

    @property
    def n_bytes(self) -> int:
        """Bytes that it takes in a file."""
        return self.integers.n_bytes(self.shape)

    def values(self) -> Tensor:
        """The tensor: ``scale * (code - zero / 2)``, exact in float32, then rounded to its dtype."""
        columns = self.codes.shape[1]
        scales, zeros = (self.integers.spread(each.float(), columns) for each in (self.scales, self.zeros))
        return from_rows((self.codes.float() - zeros / 2) * scales, self.shape).to(self.dtype)


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """The rows and columns that a tensor's numbers are arranged in: its own, or as :func:`to_rows` does it."""
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) == 2:
        return shape[0], shape[1]
    return shape[0] * shape[-1], math.prod(shape[1:-1])


def to_rows(tensor: Tensor) -> Tensor:
    """A tensor as a matrix: of more than two axes the first and the last are its rows, all between its columns.

    So the column of each rank of a factor, shape ``(N, I_k, J_k, R_k)``, is a row of its own: all of it is of one size.
    """
    rows = tensor.movedim(-1, 1) if tensor.dim() > 2 else tensor
    return rows.reshape(rows_and_columns(tensor.shape))


def from_rows(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor of this shape that :func:`to_rows` makes these rows of."""
    if len(shape) <= 2:
        return rows.reshape(tuple(shape))
    return rows.reshape(shape[0], shape[-1], *shape[1:-1]).movedim(1, -1).contiguous()


def pack_bits(values: Tensor, width: int) -> Tensor:
    """Whole numbers in C order as bytes, ``width`` bits each and none between: uint8, shape ``(n_bytes,)``.

    The first number is in the lowest bits of the first byte, its lowest bit first; bits left over at the end are 0.
    """
    flat = values.reshape(-1)
    chunks = []
    for chunk in flat.split(8 * _CHUNK):
        bits = (chunk.to(torch.int32)[:, None] >> torch.arange(width, dtype=torch.int32)) & 1
        bits = torch.nn.functional.pad(bits.reshape(-1).to(torch.uint8), (0, -bits.numel() % 8)).reshape(-1, 8)
        places = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8)
        chunks.append((bits * places).sum(1, dtype=torch.uint8))
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8)


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The numbers that :func:`pack_bits` made bytes of: int16, shape ``(count,)``.

    Raises:
        ShapeError: there are more or fewer bytes than so many numbers take, or bits beyond them that are not 0.
    """
    n_bytes = math.ceil(count * width / 8)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (n_bytes,):
        raise ShapeError(
            f"{count:,} numbers of {width} bits are {n_bytes:,} bytes, but there are {tuple(packed.shape)} of "
            f"{packed.dtype}."
        )
    chunks = []
    for start in range(0, count, 8 * _CHUNK):
        n = min(8 * _CHUNK, count - start)
        own = packed[start * width // 8 : math.ceil((start + n) * width / 8)]
        bits = ((own[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).reshape(-1)
        if bits[n * width :].any():
            raise ShapeError("bits beyond the last number are not 0.")
        places = torch.tensor([1 << place for place in range(width)], dtype=torch.int16)
        chunks.append((bits[: n * width].reshape(n, width).to(torch.int16) * places).sum(1, dtype=torch.int16))
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int16)


def bytes_of(shape: Sequence[int], precision: Precision) -> int:
    """Bytes of a tensor of this shape in a precision."""
    if isinstance(precision, Integers):
        return precision.n_bytes(shape)
    return math.prod(shape) * precision.itemsize


def precision_text(precision: Precision) -> str:
    """``"float16"``, or bits and group as ``"int4/32"``."""
    return str(precision).removeprefix("torch.")


def precision_of(value: Any) -> Precision:  # noqa: ANN401 - what a file or an option says
    """What :func:`precision_text` gave, or bits alone.

    Args:
        value: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int4/32"``, ``"int4"``, ``4`` or ``"4"``.

    Raises:
        BTCompressError: it is something else.
    """
    text = str(value)
    if text in FLOATS:
        return FLOATS[text]
    bits, slash, group = text.removeprefix("int").partition("/")
    whole = all(part.isascii() and part.isdecimal() and len(part) < 16 for part in (bits, *([group] if slash else [])))
    if isinstance(value, bool) or not whole:
        raise BTCompressError(
            f"a precision must be {', '.join(FLOATS)}, or bits from {LEAST_BITS} to {MOST_BITS} with or without a "
            f"group, as int4/32, but {text[:40]!r} was given."
        )
    return Integers(int(bits), int(group)) if slash else Integers(int(bits))
