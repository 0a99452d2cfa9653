"""What ``torch.save`` and TorchScript wrote, read without running any of it: archives, and files from before them.

Tensors are views of the mapped file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from btcompress.checkpoint.mapping import MappedFile
from btcompress.checkpoint.modules import declared_in, script_tensors
from btcompress.checkpoint.pickles import Foreign, PickleError, load
from btcompress.checkpoint.tensorpickles import MAX_SIZE, TensorReader, key_of, sequence
from btcompress.checkpoint.zips import Member, members_of, stored_checksums, unpacked
from btcompress.errors import CheckpointError

#: Bytes of the largest description of tensors that is read.
_MOST_DESCRIPTION = 1 << 26
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


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
        keys = [key_of(key) for key in sequence(_loaded(path, head, sizes))]
    except TypeError as error:
        raise CheckpointError(f"{path} is damaged: it names no data. Download or save it again.") from error
    reader = _LegacyTensors(path, _legacy_places(path, keys, sizes.dtypes, head.tell()))
    head.seek(start)
    return TorchFile(_loaded(path, head, reader), tuple(dict.fromkeys(reader.called)))


def _loaded(path: Path, file: BytesIO, reader: TensorReader) -> object:
    try:
        return load(file, reader)
    except PickleError as error:
        raise CheckpointError(
            f"{path} was written by torch.save but cannot be read: {error}. Download it again, or save a state dict "
            "alone."
        ) from error


class _ArchiveTensors(TensorReader):
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
        """See :class:`TensorReader`."""
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


class _LegacySizes(TensorReader):
    """Reads a description only for what it says of the data."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dtypes: dict[str, torch.dtype] = {}

    def data_of(self, key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        """Nothing: the data lie behind."""
        self.dtypes.setdefault(key, dtype)
        return torch.empty(1, dtype=torch.uint8).expand(min(n_bytes, MAX_SIZE))

    def _tensor(self, *_: object) -> Tensor:
        return torch.empty(0)


class _LegacyTensors(TensorReader):
    """Tensors whose data lie one after another behind the description."""

    def __init__(self, path: Path, places: Mapping[str, _Place]) -> None:
        super().__init__(path)
        self._places = places
        self._file = MappedFile(path)
        self._data: dict[str, Tensor] = {}

    def data_of(self, key: str, dtype: torch.dtype, n_bytes: int) -> Tensor:
        """See :class:`TensorReader`."""
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
