"""Files that are whole or absent: written beside the target, then renamed over it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from btcompress.errors import OutputError


def check_target(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse a target that cannot or should not be written; costs nothing, so ask before long work.

    Args:
        path: the file to be written.
        force: an existing file may be replaced.
        inputs: files that must survive whatever ``force`` says, because the result comes from them.

    Raises:
        OutputError: the folder is missing or not writable, the target exists, is no regular file, or
            is one of the inputs.
    """
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
        if any(source.exists() and path.samefile(source) for source in inputs):
            raise OutputError(f"{path} is the file that was read, and is never overwritten. Choose another name.")
    if not force:
        raise OutputError(f"{path} already exists. Choose another name, or replace it with --force (force=True).")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its place once the block has ended well.

    The content reaches the disk before the rename, the mode follows the umask, and after a failure
    or an interruption neither the temporary file stays nor ``path`` has changed.

    Yields:
        The path of an empty file to write to; it may be replaced by another file of that name.

    Raises:
        OutputError: the operating system refused to write.
    """
    temporary = path.with_name(f".btcompress-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            # Libraries that write through a private file of their own would leave its mode behind.
            mode = os.fstat(file.fileno()).st_mode & 0o777
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
