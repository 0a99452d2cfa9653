"""The tensors that a pickle of ``torch.save`` describes, each compared with the data that lie there for it first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btcompress.checkpoint.pickles import Foreign, Global
from btcompress.checkpoint.tensors import HELD_DTYPES, QUANTIZED, Unheld, is_countable
from btcompress.errors import CheckpointError

#: A tensor that repeats its entries, as an expanded one does, may be as large as its file, or this large.
_MOST_REPEATED = 1 << 24
#: Largest size, stride or offset of any tensor.
MAX_SIZE = 2**48
_MAX_DIMS = 64
_LONGEST_KEY = 64

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
    "UntypedStorage": torch.uint8,
}
_QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})

#: Things that a file of weights may hold beside tensors, and that say nothing about where it came from.
_HARMLESS = frozenset({"torch.device", "builtins.complex", "__builtin__.complex"})


@dataclass(frozen=True, slots=True)
class _Storage:
    """The data of one or several tensors.

    Attributes:
        data: uint8, flat.
        dtype: of the values.
    """

    data: Tensor
    dtype: torch.dtype


class TensorReader(ABC):
    """Makes the tensors of a file; all else that the file would have made becomes a :class:`Foreign` object.

    Args:
        path: the file.

    Attributes:
        path: the same.
        called: names of the classes and functions that pickle would have called, apart from those of plain tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.called: list[str] = []
        self._dtypes: dict[str, torch.dtype] = {}
        self._known: dict[str, Callable[..., object]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor_v2,
            "torch._utils._rebuild_tensor_v3": self._tensor_v3,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch.nn.parameter.Parameter": _first,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch._utils._rebuild_qtensor": _quantized,
            "torch._utils._rebuild_sparse_tensor": _sparse,
            "torch._utils._rebuild_nested_tensor": lambda *_: Unheld("is a nested tensor"),
            "torch._utils._rebuild_meta_tensor_no_storage": _without_values,
            "torch.nn.parameter.UninitializedParameter": _without_values,
            "torch.nn.parameter.UninitializedBuffer": _without_values,
            "torch.serialization._get_layout": lambda text: Global(str(text)),
            "torch.Size": sequence,
            "torch.jit._pickle.restore_type_tag": _first,
            "torch.jit._pickle.build_tensorlist": _first,
            "collections.OrderedDict": _mapping,
            "collections.defaultdict": lambda *_: OrderedDict(),
            "collections.Counter": _mapping,
            **{f"{module}.{kind}": sequence for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
            "_codecs.encode": _encoded,
        }

    @abstractmethod
    def data_of(self, key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        """The bytes under a key, uint8, exactly so many.

        Raises:
            CheckpointError: there are others, or none.
        """

    def persistent(self, key: object) -> object:
        """A storage; or the class of a module, beside which old files keep its source."""
        what, *rest = key if isinstance(key, tuple) else (key,)
        if what in ("module", b"module") and rest:
            return rest[0]
        if what not in ("storage", b"storage") or len(rest) not in (4, 5) or not isinstance(rest[0], Global):
            raise TypeError("something that lies elsewhere")
        kind, name, _, size, *view = rest
        name = key_of(name)
        module, _, storage = kind.name.rpartition(".")
        if module not in ("torch", "torch.cuda", "torch.storage"):
            raise TypeError("a storage that is not torch's")
        dtype = _STORAGES[storage]
        # Data that are said to be of two dtypes are read by torch as what they are said to be first.
        if storage != "UntypedStorage" and self._dtypes.setdefault(name, dtype) != dtype:
            raise ValueError("data of two dtypes")
        n_bytes = _size(size) * dtype.itemsize
        data = self.data_of(name, dtype, n_bytes)
        if view and view[0] is not None:
            _, first, length = view[0]
            first, n_bytes = _size(first) * dtype.itemsize, _size(length) * dtype.itemsize
            if first + n_bytes > len(data):
                raise ValueError("a view beyond its data")
            data = data[first : first + n_bytes]
        return _Storage(data, dtype)

    def call(self, name: str, args: tuple[object, ...]) -> object:
        """A tensor or a container that torch saves so; else an object that does nothing."""
        if name in ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__", "copy_reg.__newobj__"):
            first = args[0]
            if isinstance(first, Global):
                return self.call(first.name, args[1:] if name.endswith("__newobj__") else ())
        known = self._known.get(name)
        if known is not None:
            return known(*args)
        if name not in _HARMLESS:
            self.called.append(name)
        return Foreign(name, args)

    def _tensor_v2(self, storage: object, offset: object, size: object, stride: object, *more: object) -> object:
        metadata = more[2] if len(more) > 2 else None
        return _with_metadata(self._tensor(storage, offset, size, stride), metadata)

    def _tensor_v3(self, storage: object, offset: object, size: object, stride: object, *more: object) -> object:
        dtype = _dtype(more[2])
        if not isinstance(storage, _Storage) or dtype is None:
            raise TypeError("a tensor of no dtype")
        if dtype not in HELD_DTYPES:
            return Unheld(f"has dtype {str(dtype).removeprefix('torch.')}")
        return _with_metadata(self._tensor(_Storage(storage.data, dtype), offset, size, stride), more[3:] and more[3])

    def _tensor(self, storage: object, offset: object, size: object, stride: object) -> Tensor:
        if not isinstance(storage, _Storage) or storage.dtype in _QUANTIZED:
            raise TypeError("a tensor without plain data")
        sizes, strides, first = _sizes(size), _sizes(stride), _size(offset)
        formed = len(sizes) == len(strides) <= _MAX_DIMS and is_countable(sizes)
        if not formed or len(storage.data) % storage.dtype.itemsize:
            raise ValueError("a tensor of no shape")
        values = _viewed(storage.data, storage.dtype)
        last = first + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if all(sizes) else first - 1
        if last >= len(values):
            raise ValueError("a tensor beyond its data")
        n_bytes = prod(sizes) * storage.dtype.itemsize
        if n_bytes > max(len(storage.data), self.path.stat().st_size, _MOST_REPEATED):
            raise CheckpointError(
                f"{self.path} is not read: a tensor of shape {sizes} repeats the {len(values):,} numbers that are "
                "there for it. Save these alone, before they are expanded."
            )
        return values.as_strided(sizes, strides, first)

    def _from_type(self, function: object, kind: object, args: object, *_: object) -> object:
        """A tensor with attributes, or of a class of its own, whose values may then mean something else."""
        if not isinstance(function, Global) or not isinstance(kind, Global) or not isinstance(args, tuple):
            raise TypeError("a tensor of no class")
        if kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"):
            return self.call(function.name, args)
        self.called.append(kind.name)
        return Unheld(f"is of the class {kind.name}")


def _viewed(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as values, copied where they do not lie aligned for them."""
    if not len(data):
        return torch.empty(0, dtype=dtype)
    return (data.clone() if data.data_ptr() % dtype.itemsize else data).view(dtype)


def _with_metadata(tensor: Tensor, metadata: object) -> Tensor:
    """The values of a tensor that was saved as a view which conjugates or negates what lies there."""
    flags = metadata if isinstance(metadata, dict) else {}
    tensor = tensor.conj_physical() if flags.get("conj") is True else tensor
    return tensor.neg() if flags.get("neg") is True else tensor


def _dtype(value: object) -> torch.dtype | None:
    module, _, name = value.name.rpartition(".") if isinstance(value, Global) else ("", "", "")
    dtype = getattr(torch, name, None) if module == "torch" else None
    return dtype if isinstance(dtype, torch.dtype) else None


def key_of(value: object) -> str:
    """The name of some data, which is a text, and a number in some old files.

    Raises:
        TypeError: it is neither, or longer than any.
    """
    if isinstance(value, int) and abs(value) < 2**64:
        return str(value)
    if not isinstance(value, str) or len(value) > _LONGEST_KEY:
        raise TypeError("data under no key")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SIZE:
        raise ValueError("a size that no tensor has")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    return tuple(map(_size, sequence(value)))


def sequence(value: object = (), *_: object) -> list[Any]:
    """The entries of a list or tuple.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, list | tuple):
        raise TypeError("no sequence")
    return list(value)


def _mapping(pairs: object = (), *_: object) -> OrderedDict[Any, Any]:
    if isinstance(pairs, dict):
        return OrderedDict(pairs)
    return OrderedDict((key, value) for key, value in sequence(pairs) if isinstance(key, str | int))


def _first(value: object, *_: object) -> object:
    return value


def _encoded(text: object, encoding: object = "", *_: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding that torch does not use")
    return text.encode("latin-1")


def _quantized(storage: object, *_: object) -> Unheld:
    name = str(storage.dtype).removeprefix("torch.") if isinstance(storage, _Storage) else "unknown"
    return Unheld(f"{QUANTIZED} ({name})")


def _without_values(*_: object) -> Unheld:
    return Unheld("has a shape but no values")


def _sparse(layout: object, *_: object) -> Unheld:
    name = layout.name.removeprefix("torch.") if isinstance(layout, Global) else "unknown"
    return Unheld(f"is sparse ({name})")
