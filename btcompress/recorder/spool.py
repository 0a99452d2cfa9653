"""Arrays that wait on disk, in a file without a name that stays about as large as what is kept in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btcompress.errors import OutputError

#: Bytes that may lie unused however little is in use.
_LEAST_UNUSED = 1 << 24
_CHUNK = 1 << 20


@dataclass(slots=True, eq=False)
class Piece:
    """An array in a spool.

    Attributes:
        offset: where it begins; changes as others are removed.
        shape: of the array.
        dtype: of its numbers.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """What its numbers take."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Spool:
    """Keeps arrays on disk until they are removed; no more than twice what is kept lies there, and 16 MiB.

    Args:
        folder: where the file lies. It has no name, so that nothing stays of it whatever happens.

    Raises:
        OutputError: the file cannot be made, read or written, as where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._refusing():
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._pieces: dict[Piece, None] = {}  # in the order in which they lie in the file
        self._end = 0
        self._n_kept = 0

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def add(self, array: NDArray[Any]) -> Piece:
        """Keep a copy of an array."""
        piece = Piece(self._end, array.shape, array.dtype)
        with self._refusing():
            self._file.seek(self._end)
            self._file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        self._pieces[piece] = None
        self._end += piece.n_bytes
        self._n_kept += piece.n_bytes
        return piece

    def read(self, piece: Piece) -> NDArray[Any]:
        """The array of a piece."""
        with self._refusing():
            self._file.seek(piece.offset)
            return np.frombuffer(self._file.read(piece.n_bytes), piece.dtype).reshape(piece.shape)

    def remove(self, piece: Piece) -> None:
        """Keep a piece no longer."""
        del self._pieces[piece]
        self._n_kept -= piece.n_bytes
        if self._end - self._n_kept > max(self._n_kept, _LEAST_UNUSED):
            self._close_gaps()

    def close(self) -> None:
        """Give the file up."""
        self._file.close()

    def _close_gaps(self) -> None:
        """Move every piece to where the one before it ends; none moves over one that was not moved yet."""
        with self._refusing():
            end = 0
            for piece in self._pieces:
                self._move(piece.offset, end, piece.n_bytes)
                piece.offset = end
                end += piece.n_bytes
            self._file.flush()
            self._file.truncate(end)
        self._end = end

    def _move(self, source: int, target: int, n_bytes: int) -> None:
        for done in range(0, n_bytes if source > target else 0, _CHUNK):
            self._file.seek(source + done)
            data = self._file.read(min(_CHUNK, n_bytes - done))
            self._file.seek(target + done)
            self._file.write(data)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"what is recorded could not be kept in {self._folder}: {error.strerror or error}. Make room there, "
                "or record fewer sequences."
            ) from error
