"""Where weights came from: recorded in every result, so that it can be traced back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from btcompress.errors import CheckpointError

_CHUNK = 1 << 20


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


def digest(files: Sequence[Path]) -> str:
    """Hexadecimal SHA-256 of the files' bytes, one file after the other.

    Raises:
        CheckpointError: a file cannot be read.
    """
    sha256 = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    sha256.update(chunk)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    return sha256.hexdigest()
