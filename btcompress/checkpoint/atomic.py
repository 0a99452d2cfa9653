"""Files that are whole or absent, written by one process at a time: beside the target, then renamed over it."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from btcompress.errors import OutputError

_log = logging.getLogger(__name__)


def check_target(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse a target that cannot or should not be written; costs nothing, so ask before long work.

    Args:
        path: the file to be written.
        force: an existing file may be replaced.
        inputs: files that must survive whatever ``force`` says, because the result comes from them.

    Raises:
        OutputError: the folder is missing or not writable, the target exists, is no regular file, or
            is one of the inputs, by whatever name or link.
    """
    try:
        _check_target(path, force=force, inputs=inputs)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OutputError(f"{path} cannot be written: {reason}. Choose another name.") from error


def _check_target(path: Path, *, force: bool, inputs: Iterable[Path]) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"{path} cannot be written: {folder} is not a folder. Create it first.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path} cannot be written: {folder} is not writable for you. Choose another folder.")
    if not os.path.lexists(path):
        return
    if path.exists():
        if not path.is_file():
            raise OutputError(f"{path} is not a regular file. Choose the name of a file to write.")
        if any(_is_same(path, source) for source in inputs):
            raise OutputError(f"{path} is a file that is read, and is never overwritten. Choose another name.")
    if not force:
        raise OutputError(f"{path} already exists. Choose another name, or replace it with --force (force=True).")


def _is_same(path: Path, source: Path) -> bool:
    """Whether an input is this very file; one that is not there, or has a name that none can have, is none."""
    try:
        return path.samefile(source)
    except (OSError, ValueError):
        return False


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep every other process from writing ``path`` until the block ends; take it before long work begins.

    What a process that died left half written is removed, never what a live one is writing. A process may claim
    again what it holds. The lock is a small file beside the target; one that a dead process left is no obstacle.

    Raises:
        OutputError: another process is writing it, or the lock cannot be made.
    """
    lock = FileLock(_beside(path, "lock"), is_singleton=True)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise OutputError(
            f"another btcompress is writing {path} at this moment. Wait until it is done, or choose another name."
        ) from error
    except (OSError, NotImplementedError) as error:
        raise OutputError(f"{path} cannot be written: its lock file could not be made ({error}).") from error
    try:
        if lock.lock_counter == 1:
            _remove(_beside(path, "tmp"))
        yield
    finally:
        if lock.lock_counter == 1:
            # While it is held: whoever waits for this very file finds it gone and takes a new one.
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place once the block has ended well.

    The content reaches the disk before the rename, the mode is ``mode`` or else follows the umask, and after a failure
    or an interruption neither the temporary file stays nor ``path`` has changed. After a kill the file
    stays, until something is written to ``path`` again. It lies in a folder of its own, as libraries that write
    through private files put these beside it.

    Yields:
        The path of an empty file to write to; it may be replaced by another file of that name.

    Raises:
        OutputError: the operating system refused to write, or another process is writing the same file.
    """
    with claimed(path):
        folder = _beside(path, "tmp")
        temporary = folder / "whole"
        try:
            folder.mkdir()
            with temporary.open("xb") as file:
                # Libraries that write through a private file of their own would leave its mode behind.
                mode = os.fstat(file.fileno()).st_mode & 0o777 if mode is None else mode
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _log.info("wrote %s", path)
            _sync_folder(path.parent)
        except OSError as error:
            raise OutputError(f"{path} could not be written: {error.strerror or error}.") from error
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove what :func:`replacing` made to write in, if it is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def _beside(path: Path, ending: str) -> Path:
    """A name that belongs to one target: of fixed length, as a name may be as long as names can be."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f".btcompress-{digest}.{ending}")


def _sync_folder(folder: Path) -> None:
    """Make a rename last; where folders cannot be opened, as on Windows, the system sees to that itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
