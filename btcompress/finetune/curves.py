"""The epochs of a training as curves for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from btcompress.errors import BTCompressError, OutputError
from btcompress.finetune.epoch import Epoch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: What is drawn, by its name in the metrics file.
_DRAWN = ("loss", "metric", "learning_rate", "cancellation")


class Curves:
    """The curves of one training in a folder of their own; those of an interrupted part give way to the whole.

    Args:
        folder: of this training alone; made if it is not there.

    Raises:
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n_written = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = _writer_class()(str(folder), purge_step=0)
        except OSError as error:
            raise _refusal(folder, error) from error

    def write(self, rows: Sequence[Epoch]) -> None:
        """Add the rows of the metrics file that are not in the curves yet.

        Raises:
            OutputError: the operating system refused to write.
        """
        try:
            for row in rows[self._n_written :]:
                for name in _DRAWN:
                    self._writer.add_scalar(name, getattr(row, name), row.epoch)
            self._writer.flush()
        except OSError as error:
            raise _refusal(self._folder, error) from error
        self._n_written = len(rows)

    def close(self) -> None:
        """Write what is left, and end.

        Raises:
            OutputError: the operating system refused to write.
        """
        try:
            self._writer.close()
        except OSError as error:
            raise _refusal(self._folder, error) from error


def check_curves(folder: Path, *, replace: bool, taken: Collection[Path] = ()) -> None:
    """Find out before long work whether curves can be written.

    Args:
        folder: of this training alone.
        replace: what lies there may be replaced.
        taken: files and folders that are read, or written as something else.

    Raises:
        BTCompressError: the package tensorboard is missing.
        OutputError: the folder holds something that may not be replaced, or cannot be made.
    """
    _writer_class()
    if os.path.realpath(folder) in [os.path.realpath(path) for path in taken]:
        raise OutputError(f"{folder} is read, or written as something else. Choose another --tensorboard.")
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} already exists. Choose another --tensorboard, or replace its curves with --force.")
    standing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise OutputError(
            f"{folder} cannot be written to: {standing} is no folder that you may write to. Choose another "
            "--tensorboard."
        )


def _refusal(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{folder} cannot be written to ({error.strerror or error}). Choose another --tensorboard, or leave it out; "
        "where the state of the training is kept, --resume goes on from there."
    )


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BTCompressError(
            "--tensorboard needs the package tensorboard, which is not installed. Run pip install "
            "'btcompress[tensorboard]'."
        ) from error
    return SummaryWriter
