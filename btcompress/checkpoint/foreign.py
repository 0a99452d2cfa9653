"""Files that frameworks other than torch write: which reader is for which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from torch import Tensor

from btcompress.checkpoint.source import Stretch
from btcompress.dialects import Dialect, Found

#: By the kind of file the module beside this one whose ``read_file`` reads it.
_READERS: dict[str, str] = {
    "flax": "flaxfiles",
    "hdf5": "kerasfiles",
    "keras": "kerasfiles",
    "mxnet": "mxnetfiles",
    "onnx": "onnxfiles",
}


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a file of another framework holds.

    Attributes:
        tensors: by the names that the file gives them, on the CPU.
        found: its recurrent layers, each with the dialect that it is written in, where the file itself says which there
            are; None where their names have to tell.
        notices: what a user should know about how it was read.
        files: others that it keeps tensors in.
        checksums: of stretches of the file, not compared yet.
    """

    tensors: Mapping[str, Tensor]
    found: tuple[tuple[Dialect, Found], ...] | None = None
    notices: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    checksums: Sequence[Stretch] = ()


def is_foreign(kind: str) -> bool:
    """Whether files of a kind are another framework's."""
    return kind in _READERS


def read_foreign(path: Path, kind: str) -> Foreign:
    """Read such a file; nothing in it is ever run.

    Raises:
        CheckpointError: it is damaged, or the package that reads it is not installed.
        MemoryLimitError: what is packed in it needs more memory than there is.
    """
    read = import_module(f"btcompress.checkpoint.{_READERS[kind]}").read_file
    return cast(Callable[[Path], Foreign], read)(path)
