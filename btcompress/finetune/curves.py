"""The epochs of a training as curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from btcompress.errors import BTCompressError, OutputError

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
        self._n_written = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = _writer_class()(str(folder), purge_step=0)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written to ({error.strerror}). Choose another folder.") from error

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of the metrics file that are not in the curves yet."""
        for row in rows[self._n_written :]:
            for name in _DRAWN:
                self._writer.add_scalar(name, row[name], row["epoch"])
        self._n_written = len(rows)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and end."""
        self._writer.close()


def check_curves(folder: Path, *, replace: bool) -> None:
    """Find out before long work whether curves can be written.

    Args:
        folder: of this training alone.
        replace: what lies there may be replaced.

    Raises:
        BTCompressError: the package tensorboard is missing.
        OutputError: the folder holds something that may not be replaced.
    """
    _writer_class()
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} already exists. Choose another --tensorboard, or replace its curves with --force.")


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BTCompressError(
            "--tensorboard needs the package tensorboard, which is not installed. Run pip install "
            "'btcompress[tensorboard]'."
        ) from error
    return SummaryWriter
