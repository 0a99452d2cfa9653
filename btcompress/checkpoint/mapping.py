"""Files as memory: tensors that lie in a file, and take memory only while they are used."""

from __future__ import annotations

import mmap
import weakref
from pathlib import Path

import torch
from torch import Tensor

from btcompress.errors import CheckpointError
from btcompress.memory import require

#: Advice of Linux from 5.4 on: take pages out of memory, without losing what was written to them.
_PAGE_OUT = 21

#: Files that tensors lie in, by the address of their first byte; a map lives as long as any of its tensors.
_maps: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()


class MappedFile:
    """A regular file mapped into memory, privately: what is written to its tensors never reaches it.

    Args:
        path: a file that is not empty.

    Raises:
        CheckpointError: it cannot be read or mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}). Check that it is a whole file.") from error
        _maps[torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()] = self._map

    def bytes_at(self, start: int, n_bytes: int, alignment: int = 1) -> Tensor:
        """A stretch of the file as a flat uint8 tensor with a storage of its own.

        Args:
            start: of the stretch.
            n_bytes: its length.
            alignment: bytes of the values that it is to be viewed as; it is copied where it lies otherwise.

        Raises:
            CheckpointError: the file is not so long.
            MemoryLimitError: what is copied needs more memory than there is.
        """
        if not 0 <= start <= start + n_bytes <= len(self._map):
            raise CheckpointError(f"{self.path} is damaged: data do not lie where they should. Download it again.")
        if not n_bytes:
            return torch.empty(0, dtype=torch.uint8)
        if start % alignment:
            require(n_bytes, f"A copy of data of {self.path}", "Save it again with a newer torch, to have it mapped.")
            return torch.frombuffer(bytearray(self._map[start : start + n_bytes]), dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=n_bytes, offset=start)


def page_out(tensor: Tensor) -> None:
    """Give back the memory that a contiguous tensor takes of a mapped file; it is read again where it is used again."""
    first, n_bytes = tensor.data_ptr(), tensor.nbytes
    for address, mapped in _maps.items():
        if n_bytes and address <= first < address + len(mapped):
            start = (first - address) // mmap.PAGESIZE * mmap.PAGESIZE
            try:
                mapped.madvise(_PAGE_OUT, start, first - address + n_bytes - start)
            except (OSError, AttributeError):
                return  # other systems do not know this advice
