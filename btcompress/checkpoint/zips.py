"""Where the members of a zip archive lie, checked before any is read or mapped."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from btcompress.errors import CheckpointError
from btcompress.memory import require

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
#: Bits of members that are encrypted, are patches, or have names that are encrypted.
_ENCRYPTED = 0x1 | 0x20 | 0x40 | 0x2000

#: What :mod:`zipfile` raises on archives that are damaged or made to look so.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ValueError, IndexError, OverflowError, NotImplementedError, EOFError, OSError),
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    Attributes:
        name: of it.
        start: where its data begin in the file, in bytes.
        packed_size: of the data as they lie there, in bytes.
        size: of the data unpacked, in bytes.
        stored: whether they lie there as they are.
        checksum: CRC-32 of the data unpacked; None where the archive was written without any.
    """

    name: str
    start: int
    packed_size: int
    size: int
    stored: bool
    checksum: int | None


def members_of(path: Path) -> dict[str, Member]:
    """The members of an archive by name, each whole, apart from all others, and where both of its headers say.

    Raises:
        CheckpointError: the archive is damaged, encrypted, or two of its members share a name or bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            with_checksums = any(info.CRC for info in infos)
            members = [_member(file, info, with_checksum=with_checksums) for info in infos]
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged ({error}). Download or save it again.") from error
    by_start = sorted((member for member in members if member.packed_size), key=lambda member: member.start)
    if any(first.start + first.packed_size > second.start for first, second in pairwise(by_start)):
        raise CheckpointError(f"{path} is an archive whose members overlap. Download or save it again.")
    named = {member.name: member for member in members}
    if len(named) < len(members):
        raise CheckpointError(f"{path} is an archive with two members of one name. Download or save it again.")
    return named


def unpacked(path: Path, member: Member, most: int | None = None) -> bytes:
    """The data of a member, in memory, checked against its checksum.

    Args:
        path: the archive.
        member: of it.
        most: bytes that they may be; as many as there is memory for when left out.

    Raises:
        CheckpointError: they are damaged or too large.
        MemoryLimitError: there is not so much memory.
    """
    if most is not None and member.size > most:
        raise CheckpointError(
            f"{path} is not read: its {member.name} has {member.size:,} bytes, and no more than {most:,} make sense."
        )
    require(
        member.size, f"{path}: {member.name}", "Save the checkpoint again without compression, so that it is mapped."
    )
    try:
        if not member.stored:
            with zipfile.ZipFile(path) as archive:
                return archive.read(member.name)
        with path.open("rb") as file:
            file.seek(member.start)
            data = file.read(member.size)
        if member.checksum is not None and zlib.crc32(data) != member.checksum:
            raise zipfile.BadZipFile(f"wrong checksum of {member.name}")
        return data
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is damaged ({error}). Download or save it again.") from error


def _member(file: BinaryIO, info: zipfile.ZipInfo, *, with_checksum: bool) -> Member:
    """A member as its central header gives it, once its local header agrees."""
    file.seek(info.header_offset)
    signature, _, flags, method, *_, n_name, n_extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    name = file.read(n_name)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    agree = signature == b"PK\x03\x04" and method == info.compress_type and name.decode(encoding) == info.orig_filename
    if not agree or (info.flag_bits | flags) & _ENCRYPTED:
        raise zipfile.BadZipFile(f"the headers of {info.filename} disagree, or it is encrypted")
    start = info.header_offset + _LOCAL_HEADER.size + n_name + n_extra
    end = file.seek(0, 2)
    stored = info.compress_type == zipfile.ZIP_STORED
    if start + info.compress_size > end or (stored and info.compress_size != info.file_size):
        raise zipfile.BadZipFile(f"{info.filename} is not whole")
    checksum = info.CRC if with_checksum else None
    return Member(info.filename, start, info.compress_size, info.file_size, stored, checksum)


def stored_checksums(members: Mapping[str, Member]) -> tuple[tuple[int, int, int], ...]:
    """``(start, size, checksum)`` of what lies in the file as it is, in the order in which it lies there."""
    checked = [(m.start, m.size, m.checksum) for m in members.values() if m.stored and m.checksum is not None]
    return tuple(sorted((start, size, checksum) for start, size, checksum in checked if checksum is not None))
