"""What ``torch.save`` and TorchScript wrote, read without running any of it.

Whatever a file says of its tensors is compared with what lies in it before one is formed; tensors are then views of the
mapped file.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btcompress.checkpoint.mapping import MappedFile
from btcompress.checkpoint.modules import declared_in, script_tensors
from btcompress.checkpoint.pickles import Foreign, Global, PickleError, load
from btcompress.checkpoint.tensors import HELD_DTYPES, Unheld, is_countable
from btcompress.checkpoint.zips import Member, members_of, stored_checksums, unpacked
from btcompress.errors import CheckpointError

#: Bytes of the largest description of tensors that is read.
_MOST_DESCRIPTION = 1 << 26
#: A tensor that repeats its entries, as an expanded one does, may be as large as its file, or this large.
_MOST_REPEATED = 1 << 24
_MAX_SIZE = 2**48
_MAX_DIMS = 64
_LONGEST_KEY = 64
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

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
class TorchFile:
    """What a file holds.

    Attributes:
        value: tensors in dicts, lists and tuples, beside plain values and things that were not loaded.
        called: names of the classes and functions that pickle would have called, apart from those of plain tensors.
        checksums: ``(start, size, CRC-32)`` of the stretches of the file that have one, not compared yet.
        notices: what a user should know about how it was read.
    """

    value: object
    called: tuple[str, ...]
    checksums: tuple[tuple[int, int, int], ...] = ()
    notices: tuple[str, ...] = ()


def read_archive(path: Path) -> TorchFile:
    """Read a zip archive that ``torch.save`` or ``torch.jit.save`` wrote, members packed or not.

    Raises:
        CheckpointError: it is damaged, or a tensor does not fit the data that lie there for it.
        MemoryLimitError: packed data need more memory than there is.
    """
    members = members_of(path)
    descriptions = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(descriptions) != 1:
        raise CheckpointError(
            f"{path} is damaged: it describes tensors {len(descriptions)} times (data.pkl), not once. Get it again."
        )
    (described,) = descriptions
    prefix = described.removesuffix("data.pkl")
    reader = _ArchiveTensors(path, members, prefix)
    value = _loaded(path, BytesIO(unpacked(path, members[described], _MOST_DESCRIPTION)), reader)
    notices: tuple[str, ...] = ()
    if f"{prefix}constants.pkl" in members:
        value = _script_state(path, members, prefix, value)
        notices = ("Read from a TorchScript archive: its parameters and buffers, nothing of its program.",)
    return TorchFile(value, tuple(dict.fromkeys(reader.called)), stored_checksums(members), notices)


def read_legacy(path: Path) -> TorchFile:
    """Read a file that ``torch.save`` wrote before there were archives: pickles, then the data one after another.

    Raises:
        CheckpointError: it is damaged, or a tensor does not fit the data that lie there for it.
    """
    with path.open("rb") as file:
        head = BytesIO(file.read(_MOST_DESCRIPTION))
    sizes = _LegacySizes(path)
    if [_loaded(path, head, sizes) for _ in range(2)] != [_LEGACY_MAGIC, _LEGACY_VERSION]:
        raise CheckpointError(f"{path} is damaged: it does not begin as torch.save did. Download or save it again.")
    if not _is_little(_loaded(path, head, sizes)):
        raise CheckpointError(f"{path} was saved on a machine of other byte order. Save it again with a newer torch.")
    start = head.tell()
    _loaded(path, head, sizes)  # once for the dtypes of the data, which lie behind
    try:
        keys = [_key(key) for key in _sequence(_loaded(path, head, sizes))]
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged: it names no data. Download or save it again.") from error
    reader = _LegacyTensors(path, _legacy_places(path, keys, sizes.dtypes, head.tell()))
    head.seek(start)
    return TorchFile(_loaded(path, head, reader), tuple(dict.fromkeys(reader.called)))


def _loaded(path: Path, file: BytesIO, reader: _Tensors) -> object:
    try:
        return load(file, reader)
    except PickleError as error:
        raise CheckpointError(
            f"{path} was written by torch.save but cannot be read: {error}. Download it again, or save a state dict "
            "alone."
        ) from error


@dataclass(frozen=True, slots=True)
class _Storage:
    """The data of one or several tensors.

    Attributes:
        data: uint8, flat.
        dtype: of the values.
    """

    data: Tensor
    dtype: torch.dtype


class _Tensors(ABC):
    """Makes the tensors of a file; all else that the file would have made becomes a :class:`Foreign` object."""

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
            "torch.Size": _sequence,
            "torch.jit._pickle.restore_type_tag": _first,
            "torch.jit._pickle.build_tensorlist": _first,
            "collections.OrderedDict": _mapping,
            "collections.defaultdict": lambda *_: OrderedDict(),
            "collections.Counter": _mapping,
            **{
                f"{module}.{kind}": _sequence for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")
            },
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
        name = _key(name)
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


class _ArchiveTensors(_Tensors):
    """Tensors whose data are members of an archive."""

    def __init__(self, path: Path, members: Mapping[str, Member], prefix: str) -> None:
        super().__init__(path)
        self._members, self._prefix = members, prefix
        self._file = MappedFile(path)
        self._data: dict[str, Tensor] = {}
        order = members.get(f"{prefix}byteorder")
        text = sys.byteorder.encode() if order is None else unpacked(path, order, 16)
        if text not in (b"little", b"big"):
            raise CheckpointError(f"{path} is damaged: its byte order is {text!r}. Download or save it again.")
        self._swapped = text != sys.byteorder.encode()

    def data_of(self, key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        """See :class:`_Tensors`."""
        name = f"{self._prefix}data/{key}"
        member = self._members.get(name)
        if member is None or member.size != n_bytes:
            given = "is missing" if member is None else f"is of {member.size:,} bytes, where {n_bytes:,} are told of"
            raise CheckpointError(f"{self.path} is damaged: its {name} {given}. Download or save it again.")
        if name not in self._data:
            if member.stored and not self._swapped:
                self._data[name] = self._file.bytes_at(member.start, n_bytes, dtype.itemsize)
            else:
                self._data[name] = self._read(member, dtype)
        return self._data[name]

    def _read(self, member: Member, dtype: torch.dtype) -> Tensor:
        data = unpacked(self.path, member)
        if not data:
            return torch.empty(0, dtype=torch.uint8)
        values = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        width = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
        return values.reshape(-1, width).flip(1).flatten() if self._swapped else values


@dataclass(slots=True)
class _Place:
    """Where the data of a storage lie in a file from before archives, and of what dtype they are."""

    start: int
    n_bytes: int
    dtype: torch.dtype


class _LegacySizes(_Tensors):
    """Reads a description only for what it says of the data."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dtypes: dict[str, torch.dtype] = {}

    def data_of(self, key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        """Nothing: the data lie behind."""
        self.dtypes.setdefault(key, dtype)
        return torch.empty(1, dtype=torch.uint8).expand(min(n_bytes, _MAX_SIZE))

    def _tensor(self, *_: object) -> Tensor:
        return torch.empty(0)


class _LegacyTensors(_Tensors):
    """Tensors whose data lie one after another behind the description."""

    def __init__(self, path: Path, places: Mapping[str, _Place]) -> None:
        super().__init__(path)
        self._places = places
        self._file = MappedFile(path)
        self._data: dict[str, Tensor] = {}

    def data_of(self, key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        """See :class:`_Tensors`."""
        place = self._places.get(key)
        if place is None or place.n_bytes != n_bytes:
            raise CheckpointError(f"{self.path} is damaged: data of a tensor are missing. Download or save it again.")
        if key not in self._data:
            self._data[key] = self._file.bytes_at(place.start, n_bytes, dtype.itemsize)
        return self._data[key]


def _legacy_places(path: Path, keys: Sequence[str], dtypes: Mapping[str, torch.dtype], start: int) -> dict[str, _Place]:
    """Where the data under each key lie: behind a count of 8 bytes each, in the order of the keys."""
    places: dict[str, _Place] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        for key in keys:
            file.seek(start)
            dtype = dtypes.get(key)
            n_bytes = int.from_bytes(file.read(8), "little") * (dtype or torch.uint8).itemsize
            start += 8
            if dtype is None or start + n_bytes > size or key in places:
                raise CheckpointError(f"{path} is damaged: it ends before its data do. Download or save it again.")
            places[key] = _Place(start, n_bytes, dtype)
            start += n_bytes
    return places


def _is_little(info: object) -> bool:
    return not isinstance(info, dict) or info.get("little_endian", True) is (sys.byteorder == "little")


def _script_state(path: Path, members: Mapping[str, Member], prefix: str, value: object) -> object:
    """The state dict of a TorchScript archive."""
    declared: dict[str, frozenset[str]] = {}
    for name, member in members.items():
        if name.startswith(f"{prefix}code/") and name.endswith(".py"):
            module = name.removeprefix(f"{prefix}code/").removesuffix(".py").replace("/", ".")
            code = unpacked(path, member, _MOST_DESCRIPTION).decode("utf-8", "replace")
            declared.update(declared_in(code, module))
    tensors = script_tensors(value, declared) if isinstance(value, Foreign) else {}
    if not tensors:
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program, and has its weights built in. Give the checkpoint that it "
            "was made from."
        )
    return tensors


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


def _key(value: object) -> str:
    """The name of some data, which is a text, and a number in some old files."""
    if isinstance(value, int) and abs(value) < 2**64:
        return str(value)
    if not isinstance(value, str) or len(value) > _LONGEST_KEY:
        raise TypeError("data under no key")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SIZE:
        raise ValueError("a size that no tensor has")
    return value


def _sizes(value: object) -> tuple[int, ...]:
    return tuple(map(_size, _sequence(value)))


def _sequence(value: object = (), *_: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError("no sequence")
    return list(value)


def _mapping(pairs: object = (), *_: object) -> OrderedDict[Any, Any]:
    if isinstance(pairs, dict):
        return OrderedDict(pairs)
    return OrderedDict((key, value) for key, value in _sequence(pairs) if isinstance(key, str | int))


def _first(value: object, *_: object) -> object:
    return value


def _encoded(text: object, encoding: object = "", *_: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("an encoding that torch does not use")
    return text.encode("latin-1")


def _quantized(storage: object, *_: object) -> Unheld:
    name = str(storage.dtype).removeprefix("torch.") if isinstance(storage, _Storage) else "unknown"
    return Unheld(f"is quantized ({name})")


def _without_values(*_: object) -> Unheld:
    return Unheld("has a shape but no values")


def _sparse(layout: object, *_: object) -> Unheld:
    name = layout.name.removeprefix("torch.") if isinstance(layout, Global) else "unknown"
    return Unheld(f"is sparse ({name})")
