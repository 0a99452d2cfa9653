"""Where weights came from: recorded in every result, so that it can be traced back."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from btcompress.errors import CheckpointError

#: Bytes read at a time: fewer would wait more often for other threads.
_CHUNK = 1 << 22

#: Where a stretch of a file begins, its bytes, and their CRC-32.
Stretch = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Source:
    """The dense checkpoint that a result was made from.

    Attributes:
        name: its file name without the folder, or what it was called in memory; bytes that are not UTF-8 as
            backslash escapes.
        n_bytes: size in bytes of the file, or of index and shards together; in memory, of the tensors.
        sha256: hexadecimal digest of the file's bytes, of index and shards one after the other in the
            order of their names; None for tensors in memory.
        n_params: entries of all tensors read, tied ones counted once.
    """

    name: str
    n_bytes: int
    sha256: str | None
    n_params: int


def digest(files: Sequence[Path], checksums: Mapping[Path, Sequence[Stretch]] | None = None) -> str:
    """Hexadecimal SHA-256 of the files' bytes, one file after the other; checksums are compared in the same pass.

    Args:
        files: to read.
        checksums: of stretches of a file, in the order in which they lie there and apart from one another.

    Raises:
        CheckpointError: a file cannot be read, or a stretch has another checksum.
    """
    sha256 = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                _read_through(file, (checksums or {}).get(path, ()), sha256.update)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {error}. Download or save it again.") from error
    return sha256.hexdigest()


def _read_through(file: BinaryIO, stretches: Sequence[Stretch], update: Callable[[bytes], None]) -> None:
    """Hand on every byte of a file.

    Raises:
        ValueError: a stretch has another checksum.
    """
    for start, size, checksum in (*stretches, (None, 0, 0)):
        _read_part(file, None if start is None else start - file.tell(), update)
        found = 0

        def update_both(chunk: bytes) -> None:
            nonlocal found
            update(chunk)
            found = zlib.crc32(chunk, found)

        _read_part(file, size, update_both)
        if found != checksum:
            raise ValueError(f"the {size:,} bytes from {start:,} on have another checksum than they were saved with")


def _read_part(file: BinaryIO, size: int | None, update: Callable[[bytes], None]) -> None:
    """Hand on so many bytes, or all that are left."""
    left = math.inf if size is None else size
    while left and (chunk := file.read(int(min(_CHUNK, left)))):
        update(chunk)
        left -= len(chunk)
