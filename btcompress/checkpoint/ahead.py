"""The digest of a checkpoint worked out ahead, in a thread of its own, while what will read it is still loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from btcompress.checkpoint.source import Stretch, digest
from btcompress.checkpoint.zips import members_of, stored_checksums
from btcompress.files import Snapshot, open_regular

_ARCHIVE = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class _Found:
    """A digest.

    Attributes:
        snapshot: what the file was when it was worked out.
        checksums: what was compared with it in the same pass.
        sha256: hexadecimal.
    """

    snapshot: Snapshot
    checksums: tuple[Stretch, ...]
    sha256: str


_begun: dict[Path, Future[_Found]] = {}


def begin_digest(path: Path) -> None:
    """Begin to work out the digest of a file that is to be read soon; what is wrong with it will be said then."""
    future: Future[_Found] = Future()
    _begun[path] = future
    # Of a process that ends meanwhile, the thread ends as well.
    Thread(target=_work_out, args=(path, future), daemon=True).start()


def begun_digest(files: Sequence[Path], checksums: Mapping[Path, Sequence[Stretch]]) -> str:
    """What :func:`btcompress.checkpoint.digest` gives, worked out already where it was begun.

    If the file has changed since, or is not what it seemed, it is worked out anew.

    Args:
        files: as there.
        checksums: as there.

    Raises:
        CheckpointError: as there.
    """
    future = _begun.pop(files[0], None) if len(files) == 1 else None
    if future is not None and future.exception() is None:
        found = future.result()
        if found.checksums == tuple(checksums.get(files[0], ())) and found.snapshot == _snapshot(files[0]):
            return found.sha256
    return digest(files, checksums)


def _work_out(path: Path, future: Future[_Found]) -> None:
    try:
        snapshot, checksums = _snapshot(path), _checksums(path)
        future.set_result(_Found(snapshot, checksums, digest([path], {path: checksums})))
    except BaseException as error:  # whatever it is, who reads the file meets it again
        future.set_exception(error)


def _snapshot(path: Path) -> Snapshot:
    with open_regular(path, "Give a checkpoint file.") as file:
        return Snapshot.of(path, file)


def _checksums(path: Path) -> tuple[Stretch, ...]:
    with open_regular(path, "Give a checkpoint file.") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    return stored_checksums(members_of(path)) if is_archive else ()
