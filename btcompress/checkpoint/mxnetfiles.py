"""``.params`` files of MXNet: a list of arrays and a list of their names, as ``NDArray::Save`` writes them.

All numbers are little-endian. The file has the number 0x112, eight bytes of zeros, how many arrays there are, these,
how many names there are, and these, each with its length. An array begins with a number for its version.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from btcompress.checkpoint.foreign import Foreign
from btcompress.checkpoint.mapping import MappedFile
from btcompress.checkpoint.tensors import is_countable, plain_tensor
from btcompress.errors import CheckpointError
from btcompress.text import listed

#: Versions of an array: with a storage type or without it, and 3 with the sizes of NumPy, among which is none at all.
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DTYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    5: torch.int8,
    6: torch.int64,
    7: torch.bool,
    8: torch.int16,
    9: torch.uint16,
    10: torch.uint32,
    11: torch.uint64,
    12: torch.bfloat16,
}
_HEADER_BYTES = 16
#: Bytes of a version, and of a name's length: the least that an array and a name take.
_LEAST = {"arrays": 4, "names": 8}
_MOST_AXES = 32
_MOST_SHOWN = 8


def read_file(path: Path) -> Foreign:
    """Read the arrays of a file; names lose ``arg:`` and ``aux:``, which Module puts before them.

    Raises:
        CheckpointError: the file is damaged, or holds sparse arrays.
    """
    try:
        with path.open("rb") as file:
            return _Reading(path, file).done()
    except (OSError, struct.error) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} begins like a file of MXNet's parameters but is truncated or damaged ({why}). "
        "Download or save it again."
    )


class _Reading:
    """Reads one file from its beginning to its end.

    Args:
        path: the file.
        file: the same, opened.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size
        self._mapped = MappedFile(path)

    def done(self) -> Foreign:
        """All arrays by their names."""
        self._file.seek(_HEADER_BYTES)
        arrays = [self._array() for _ in range(self._count("arrays"))]
        names = [self._name() for _ in range(self._count("names"))]
        if not names:
            names = [str(n) for n in range(len(arrays))]
        if len(names) != len(arrays):
            raise _damaged(self._path, f"{len(names)} names for {len(arrays)} arrays")
        tensors: dict[str, Tensor] = {}
        for name, array in zip(names, arrays, strict=True):
            if array is not None:
                if name in tensors:
                    raise CheckpointError(f"{self._path} holds two arrays named {name}. Rename one in your own code.")
                tensors[name] = plain_tensor(name, array)
        empty = [name for name, array in zip(names, arrays, strict=True) if array is None]
        notices = (f"Left out, arrays that were never filled: {listed(empty, _MOST_SHOWN)}.",) if empty else ()
        return Foreign(tensors, None, notices)

    def _numbers(self, form: str) -> tuple[int, ...]:
        form = f"<{form}"
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def _count(self, what: str) -> int:
        (count,) = self._numbers("Q")
        if count > (self._size - self._file.tell()) // _LEAST[what]:
            raise _damaged(self._path, f"{count:,} {what} are more than there is room for")
        return count

    def _name(self) -> str:
        (length,) = self._numbers("Q")
        if length > self._size - self._file.tell():
            raise _damaged(self._path, "a name is longer than the file")
        try:
            name = self._file.read(length).decode()
        except UnicodeDecodeError as error:
            raise _damaged(self._path, "a name is no text") from error
        return name.removeprefix("arg:").removeprefix("aux:")

    def _array(self) -> Tensor | None:
        """The next array; None for one that has no sizes."""
        (version,) = self._numbers("I")
        if version in (_V2, _V3):
            (storage,) = self._numbers("i")
            if storage != 0:
                raise CheckpointError(
                    f"{self._path} holds a sparse array. Save it as a dense one (tostype('default'))."
                )
        n_axes = self._numbers("i")[0] if version in (_V1, _V2, _V3) else version
        if n_axes == (-1 if version == _V3 else 0):
            return None
        if not 0 <= n_axes <= _MOST_AXES:
            raise _damaged(self._path, f"an array of {n_axes} axes")
        sizes = self._numbers(("q" if version in (_V1, _V2, _V3) else "I") * n_axes)
        _, _, number = self._numbers("iii")  # after the device, of which the data are independent
        dtype = _DTYPES.get(number)
        if dtype is None or not is_countable(sizes):
            raise _damaged(self._path, f"an array of type {number} and sizes {list(sizes)}")
        n_bytes = torch.Size(sizes).numel() * dtype.itemsize
        data = self._mapped.bytes_at(self._file.tell(), n_bytes, dtype.itemsize)
        self._file.seek(n_bytes, 1)
        return data.view(dtype).reshape(sizes) if n_bytes else torch.empty(sizes, dtype=dtype)
