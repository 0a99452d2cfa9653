"""Arrays in files that nobody vouches for: the very numbers that NumPy reads, or one line that says what is wrong.

What an array takes is known from headers before any of it is formed. What lies uncompressed is mapped, so it may be
larger than memory; members of a ``.npz`` are read through once as the file is opened, for their checksums.
"""

from __future__ import annotations

import io
import math
import struct
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btcompress import memory
from btcompress.checkpoint.safetensorsfiles import read_header, read_tensors
from btcompress.errors import BTCompressError
from btcompress.files import Snapshot, open_regular

#: Of an array's header, which NumPy does not read beyond either.
_MOST_HEADER = 10_000
#: Bytes before the header's text: magic, version and length.
_MOST_PREFIX = 12
_CHUNK = 1 << 20
#: How an archive of at least one member begins.
_ZIP = b"PK\x03\x04"
#: A local header of a zip member: so many bytes, then name and extra field, whose lengths are its last numbers.
_LOCAL_BYTES = 30
_LOCAL_LENGTHS = struct.Struct("<HH")
_ENCRYPTED = 1
#: Kinds of dtypes that are real numbers: floating-point, signed, unsigned, truth.
_REAL = "fiub"
#: What safetensors holds and NumPy has no dtype for; float32 has all of its values.
_WIDENED = tuple(
    getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)

Arrays = dict[str, NDArray[Any]]
_SUFFIXES = (".npz", ".npy", ".safetensors")


def read_arrays(path: Path, names: Sequence[str]) -> tuple[Arrays, Snapshot]:
    """Arrays of real numbers from a ``.npz``, ``.npy`` or ``.safetensors``; nothing in it is ever run.

    Args:
        path: the file, its kind told by its ending.
        names: of the arrays to read, if they are there; the array of a ``.npy`` has the first of them.

    Returns:
        The arrays that were found, mapped where they lie uncompressed, and the state of the file they lie in.

    Raises:
        BTCompressError: it is missing, no regular file, of another kind, damaged, or holds other than real numbers.
        MemoryLimitError: an array that must be loaded would not fit.
    """
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    with _opened(path) as file:
        snapshot = Snapshot.of(path, file)
        return readers[path.suffix](path, file, names), snapshot


def names_in(path: Path) -> tuple[str, ...]:
    """The names of all arrays in such a file, none of which is read; the array of a ``.npy`` is called ``x``.

    Raises:
        BTCompressError: as :func:`read_arrays`.
    """
    listings: dict[str, Callable[[BinaryIO], tuple[str, ...]]] = {
        ".npy": lambda _: ("x",),
        ".npz": _names_in_npz,
        ".safetensors": lambda _: tuple(name for name in read_header(path) if name != "__metadata__"),
    }
    with _opened(path) as file:
        return listings[path.suffix](file)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file of a known kind; what goes wrong while it is read comes out as one line."""
    with open_regular(path, "Give a .npz, .npy or .safetensors, or package.module:factory.") as file:
        if path.suffix not in _SUFFIXES:
            raise BTCompressError(f"{path} ends in {path.suffix!r}. Give sequences as .npz, .npy or .safetensors.")
        try:
            yield file
        except (
            ValueError,
            TypeError,
            OSError,
            EOFError,
            NotImplementedError,
            struct.error,
            zlib.error,
            zipfile.BadZipFile,
        ) as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" ...")
            raise BTCompressError(
                f"{path} cannot be read as {path.suffix} of plain numbers ({reason}). Save or download it again."
            ) from error


@dataclass(frozen=True, slots=True)
class _Header:
    """What the header of an array in NumPy's format says.

    Attributes:
        n_header: bytes up to the numbers.
        shape: of the array.
        order: ``"F"`` where the first index runs fastest, else ``"C"``.
        dtype: of its numbers.
    """

    n_header: int
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[Any]

    @classmethod
    def read(cls, stream: IO[bytes]) -> _Header:
        """The header that a stream begins with.

        Raises:
            ValueError: there is none, or the array is not one of real numbers.
        """
        beginning = io.BytesIO(stream.read(_MOST_PREFIX + _MOST_HEADER))
        major, minor = np.lib.format.read_magic(beginning)
        if (major, minor) not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"format version {major}.{minor} is not known")
        # Versions 2 and 3 differ in how names of fields are encoded, and an array of plain numbers has no fields.
        parse = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                shape, fortran, dtype = parse(beginning)
            except Exception as error:
                # The header is a text in Python's notation with a dtype in words: damaged, it can raise anything.
                raise ValueError(f"its header cannot be read: {error}") from error
        if dtype.kind not in _REAL:
            raise ValueError(f"it has dtype {dtype}, but real numbers are needed")
        if any(type(size) is not int or size < 0 for size in shape):
            raise ValueError(f"its shape {shape} is not of whole numbers from 0 on")
        return cls(beginning.tell(), shape, "F" if fortran else "C", dtype)

    @property
    def n_bytes(self) -> int:
        """What the numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def mapped(self, file: BinaryIO, start: int) -> NDArray[Any]:
        """The array where it lies, its header beginning at a position of a file."""
        if not self.n_bytes:
            return np.empty(self.shape, self.dtype)
        return np.memmap(file, self.dtype, "r", start + self.n_header, self.shape, self.order)  # type: ignore[call-overload]

    def loaded(self, pieces: Iterator[bytes]) -> NDArray[Any]:
        """The array from the pieces that its member of an archive consists of."""
        data = np.empty(self.n_header + self.n_bytes, np.uint8)
        end = 0
        for piece in pieces:
            data[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
            end += len(piece)
        return data[self.n_header :].view(self.dtype).reshape(self.shape, order=self.order)  # type: ignore[call-overload]


def _read_npy(_: Path, file: BinaryIO, names: Sequence[str]) -> Arrays:
    header = _Header.read(file)
    wanted, size = header.n_header + header.n_bytes, file.seek(0, io.SEEK_END)
    if wanted > size:
        raise ValueError(f"its header says {wanted} bytes, but it has {size}")
    return {names[0]: header.mapped(file, 0)}


def _read_npz(path: Path, file: BinaryIO, names: Sequence[str]) -> Arrays:
    with _archive(file) as archive:
        members = {name: _member(archive, name) for name in names}
        return {
            name: _read_member(f"{path}: {name}", file, archive, info)
            for name, info in members.items()
            if info is not None
        }


def _names_in_npz(file: BinaryIO) -> tuple[str, ...]:
    with _archive(file) as archive:
        return tuple(info.filename.removesuffix(".npy") for info in archive.infolist())


def _archive(file: BinaryIO) -> zipfile.ZipFile:
    if file.read(len(_ZIP)) != _ZIP:
        raise ValueError("it does not begin as an archive")
    return zipfile.ZipFile(file)


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo | None:
    found = [info for info in archive.infolist() if info.filename in (f"{name}.npy", name)]
    if len(found) > 1:
        raise ValueError(f"it holds {name} {len(found)} times")
    return found[0] if found else None


def _read_member(where: str, file: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """A member, its checksum found right; mapped where it is stored as it is."""
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is encrypted, or compressed in a way that NumPy does not write")
    if stored and info.compress_size != info.file_size:
        raise ValueError(f"{info.filename} is stored, but in {info.compress_size} bytes instead of {info.file_size}")
    with archive.open(info) as stream:
        header = _Header.read(stream)
    if header.n_header + header.n_bytes != info.file_size:
        raise ValueError(f"the header of {info.filename} does not say the {info.file_size} bytes that it has")
    if not stored:
        memory.require(info.file_size, where, "Save the arrays with numpy.savez, which are mapped, not loaded.")
        return header.loaded(_pieces(archive, info))
    for _ in _pieces(archive, info):
        pass  # reading it through is what compares the checksum
    start = _start(file, info)
    if start + info.file_size > archive.start_dir:
        raise ValueError(f"{info.filename} does not lie within the members of the archive")
    return header.mapped(file, start)


def _pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a member; zipfile raises at the end where the checksum is another one."""
    n_left = info.file_size
    with archive.open(info) as stream:
        while piece := stream.read(_CHUNK):
            n_left -= len(piece)
            yield piece
    if n_left:
        raise ValueError(f"{info.filename} ends {n_left} bytes early")


def _start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin, behind its local header, whose name zipfile has compared."""
    file.seek(info.header_offset + _LOCAL_BYTES - _LOCAL_LENGTHS.size)
    return info.header_offset + _LOCAL_BYTES + sum(_LOCAL_LENGTHS.unpack(file.read(_LOCAL_LENGTHS.size)))


def _read_safetensors(path: Path, _: BinaryIO, names: Sequence[str]) -> Arrays:
    tensors, _metadata = read_tensors(path)
    return {name: _as_array(f"{path}: {name}", tensors[name]) for name in names if name in tensors}


def _as_array(where: str, tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype in _WIDENED:
        memory.require(4 * tensor.numel(), where, "Save it as float16 or float32, which are mapped, not loaded.")
        return tensor.float().numpy()
    if tensor.is_complex():
        raise ValueError(f"it has dtype {tensor.dtype}, but real numbers are needed")
    return tensor.numpy()
