"""Constants of ONNX files as tensors, whether they lie in the graph or in files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from btcompress.checkpoint.mapping import MappedFile
from btcompress.checkpoint.tensors import is_countable
from btcompress.errors import CheckpointError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import TensorProto

#: torch's dtypes of ONNX's element types, by their names there.
DTYPES = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "FLOAT8E4M3FN": torch.float8_e4m3fn,
    "FLOAT8E5M2": torch.float8_e5m2,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "BOOL": torch.bool,
}
_LONGEST_NAME = 255
_MOST_DIGITS = 18


class UnheldError(Exception):
    """A constant is of a type that torch lacks, or damaged; the text says which and how, as the end of a sentence."""


class Data:
    """Where the values of constants lie.

    Args:
        path: the file of the model.
        constants: all that may be asked for.

    Attributes:
        files: those beside the model, in the order of their names.

    Raises:
        CheckpointError: a constant is said to lie elsewhere than beside the model, or its file is missing.
    """

    def __init__(self, path: Path, constants: Iterable[TensorProto]) -> None:
        names = sorted({_place(each, path)["location"] for each in constants if _is_elsewhere(each)})
        self._path = path
        self.files = tuple(path.parent / name for name in names)
        for file in self.files:
            if not file.is_file():
                raise CheckpointError(f"{path} needs {file.name} beside it, which is missing. Download it as well.")
        self._mapped = {file.name: MappedFile(file) for file in self.files if file.stat().st_size}

    @property
    def n_bytes(self) -> int:
        """Of all files, that of the model too."""
        return sum(file.stat().st_size for file in (self._path, *self.files))

    def tensor(self, constant: TensorProto) -> Tensor:
        """The values of a constant, on the CPU; those in other files are mapped.

        Raises:
            UnheldError: torch lacks its type, or it is not as large as its sizes say.
            CheckpointError: its file is not so long.
        """
        dtype = DTYPES.get(type_name(constant))
        sizes = list(constant.dims)
        if dtype is None:
            raise UnheldError(f"{shown(constant)} is of type {type_name(constant)}")
        if not is_countable(sizes):
            raise UnheldError(f"{shown(constant)} has sizes {sizes}, which no tensor can")
        n_bytes = prod(sizes) * dtype.itemsize
        if not n_bytes:
            return torch.empty(sizes, dtype=dtype)
        data = self._mapped_bytes(constant, n_bytes, dtype) if _is_elsewhere(constant) else _own_bytes(constant)
        if len(data) != n_bytes:
            raise UnheldError(f"{shown(constant)} is damaged: {len(data)} bytes, where its sizes need {n_bytes}")
        return data.view(dtype).reshape(sizes)

    def _mapped_bytes(self, constant: TensorProto, n_bytes: int, dtype: torch.dtype) -> Tensor:
        place = _place(constant, self._path)
        offset, length = (_number(place.get(name, "")) for name in ("offset", "length"))
        if place["location"] not in self._mapped or (length or n_bytes) != n_bytes:
            raise UnheldError(f"{shown(constant)} is damaged: {length or 0} bytes, where its sizes need {n_bytes}")
        return self._mapped[place["location"]].bytes_at(offset or 0, n_bytes, dtype.itemsize)


def text_of(value: str | bytes) -> str:
    """A text of the file: those that are not UTF-8 come as bytes."""
    return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def shown(constant: TensorProto) -> str:
    """What to call it in a sentence."""
    return text_of(constant.name) or "a constant"


def type_name(constant: TensorProto) -> str:
    """The name that ONNX gives its element type."""
    from onnx import TensorProto

    known = {number: name for name, number in TensorProto.DataType.items()}
    return str(known.get(constant.data_type, constant.data_type))


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The same values in NumPy, with the types that onnx has for those that NumPy lacks."""
    import numpy as np
    from onnx import TensorProto, helper

    name = next(name for name, dtype in DTYPES.items() if dtype == tensor.dtype)
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name))
    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ndarray(tuple(tensor.shape), dtype, flat) if len(flat) else np.empty(tuple(tensor.shape), dtype)


def from_array(array: NDArray[Any]) -> Tensor:
    """The inverse of :func:`array_of`, of a copy.

    Raises:
        KeyError: torch lacks its type.
    """
    from onnx import TensorProto, helper

    dtype = DTYPES[TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(array.dtype))]
    data = bytearray(array.tobytes())
    return torch.frombuffer(data, dtype=dtype).reshape(array.shape) if data else torch.empty(array.shape, dtype=dtype)


def _own_bytes(constant: TensorProto) -> Tensor:
    """What lies in the graph."""
    from onnx import numpy_helper

    if constant.HasField("raw_data"):
        data = bytearray(constant.raw_data)
    else:
        try:
            data = bytearray(numpy_helper.to_array(constant).tobytes())
        except (ValueError, TypeError, OverflowError) as error:
            raise UnheldError(f"{shown(constant)} is damaged: {error}") from error
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _is_elsewhere(constant: TensorProto) -> bool:
    from onnx import TensorProto

    return bool(constant.data_location == TensorProto.EXTERNAL)


def _place(constant: TensorProto, path: Path) -> dict[str, str]:
    """Where a constant lies that is not in the graph: the location, offset and length."""
    place = {text_of(each.key): text_of(each.value) for each in constant.external_data}
    name = place.setdefault("location", "")
    # A model is data from elsewhere, so it may only ever point at its neighbours.
    if not name or name in (".", "..") or len(name.encode()) > _LONGEST_NAME or re.search(r"[/\\:\0]", name):
        raise CheckpointError(
            f"{path} says that {shown(constant)} lies in {name[:80]!r}, but data must be in files beside their model."
        )
    return place


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(rf"[0-9]{{1,{_MOST_DIGITS}}}", text) else None
