"""A folder whose files are replaced one by one, each whole or not at all, once all of them are written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from btcompress.checkpoint import check_target, claimed, replacing
from btcompress.errors import OutputError

#: Files are written here, within the folder, as a rename stays within a file system.
_STAGE = ".btcompress-saving"


@contextmanager
def written_into(folder: Path, first: str) -> Iterator[Path]:
    """Give an empty folder, whose files take their places in another one after the block has ended well.

    Each is moved to its place as :func:`btcompress.checkpoint.replacing` does it. What else lies in the folder stays,
    and after a failure within the block nothing of it has changed.

    Args:
        folder: made where it is missing.
        first: the file in it that stands for all: whoever writes this one has the folder for itself.

    Raises:
        OutputError: the folder or a file cannot be written there, or another process is writing it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made a folder: {error.strerror or error}. Choose another.") from error
    check_target(folder / first, force=True)
    with claimed(folder / first):
        stage = folder / _STAGE
        _remove(stage)  # of a process that died
        try:
            stage.mkdir()
            yield stage
            for file in sorted(stage.iterdir()):
                target = folder / file.name
                check_target(target, force=True)
                with replacing(target) as temporary:
                    file.replace(temporary)
        except OSError as error:
            raise OutputError(f"{folder} could not be written: {error.strerror or error}.") from error
        finally:
            _remove(stage)


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
