"""Opening files that a user names: regular ones only, so that no pipe and no device is ever waited for."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from btcompress.errors import BTCompressError

_log = logging.getLogger(__name__)


def open_regular(path: Path, advice: str) -> BinaryIO:
    """Open a regular file to read; a pipe, a device, a socket or a folder is refused at once.

    Args:
        path: the file; links are followed.
        advice: what to give instead, a sentence.

    Raises:
        BTCompressError: there is no such file, it is no regular one, or it may not be read.
    """
    try:
        # A look before the opening, which alone can wait for a pipe or move a tape; and one after it, for what came
        # to lie there in between.
        _check_regular(path.stat(), path, advice)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        what = "it is not a file, " if isinstance(error, FileNotFoundError) else ""
        raise BTCompressError(f"{path} cannot be read: {what}{reason}. {advice}") from error
    file = os.fdopen(descriptor, "rb")
    try:
        _check_regular(os.fstat(descriptor), path, advice)
    except BTCompressError:
        file.close()
        raise
    _log.info("reading %s", path)
    return file


def _check_regular(about: os.stat_result, path: Path, advice: str) -> None:
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "no regular file"
        raise BTCompressError(f"{path} cannot be read: it is {what}. {advice}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a file was when it was opened, to find out whether what is mapped of it still holds.

    Attributes:
        path: the file.
        place: device and inode.
        state: size in bytes, and time of the last change in nanoseconds.
    """

    path: Path
    place: tuple[int, int]
    state: tuple[int, int]

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> Snapshot:
        """The state of an open file."""
        about = os.fstat(file.fileno())
        return cls(path, (about.st_dev, about.st_ino), (about.st_size, about.st_mtime_ns))

    def check(self) -> None:
        """Refuse a file that was written to since. One that was replaced or removed does no harm: its map stays.

        Raises:
            BTCompressError: size or time of the last change differ.
        """
        try:
            about = self.path.stat()
        except OSError:
            return
        same_file = (about.st_dev, about.st_ino) == self.place
        if same_file and (about.st_size, about.st_mtime_ns) != self.state:
            raise BTCompressError(
                f"{self.path} was changed while it was being read. Start again, and leave the file alone meanwhile."
            )
