"""Result files: one ``.safetensors`` whose header describes it, as ``docs/format.md`` specifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from filecmp import cmp
from os import PathLike
from pathlib import Path

from torch import Tensor

from btcompress.checkpoint import metadata
from btcompress.checkpoint.atomic import check_target, replacing
from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.checkpoint.layout import Layout
from btcompress.checkpoint.layoutrecords import LAYOUT_KEY, layout_text
from btcompress.checkpoint.precisions import same_stored
from btcompress.checkpoint.recognise import METADATA_KEY, recognise
from btcompress.checkpoint.safetensorsfiles import differing, read_tensors, write_tensors
from btcompress.checkpoint.storage import to_file
from btcompress.checkpoint.tensors import find_aliases, plain_tensor
from btcompress.errors import CheckpointError, OutputError
from btcompress.timings import BenchReport

#: Told the result as it was written, before it takes the place of anything; raises where it is not the one in memory.
Check = Callable[[CompressedCheckpoint], None]


def write(
    compressed: CompressedCheckpoint,
    path: str | PathLike[str],
    *,
    force: bool = False,
    again: bool = False,
    check: Check | None = None,
) -> None:
    """Write a result whole or not at all, and read it back; the same value gives the same bytes.

    Args:
        compressed: what to write.
        path: the file, by custom ending in ``.safetensors``.
        force: replace an existing file, though never one that ``compressed`` was read from.
        again: the file may be there already where it has these very bytes.
        check: looks at what was read back, once its bytes and its description have been found to be the same.

    Raises:
        OutputError: the file cannot or may not be written there, or another process is writing it.
        CheckpointError: as :func:`check_storable`.
    """
    path = Path(path)
    check_target(path, force=force or again, inputs=compressed.files)
    header, stored = _described(compressed)
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        tensors |= to_file(name, tensor, compressed.stored.get(name))
    with replacing(path) as temporary:
        digests = write_tensors(temporary, tensors, header)
        found = read_compressed(temporary)
        if changed := differing(temporary, digests) or _misread(found, compressed):
            raise _changed(path, changed[0])
        if check is not None:
            check(found)
        if path.exists() and not force and not cmp(temporary, path, shallow=False):
            raise OutputError(
                f"{path} already exists, and is another file than would be written. Move it away, or replace it with "
                "--force beside --resume (force=True)."
            )


def record_bench(path: str | PathLike[str], bench: BenchReport, measured: CompressedCheckpoint) -> None:
    """Write what a bench measured into a file's record, in the place of the last bench there.

    All else stays as it is: every tensor, byte for byte, what the record says beside it, and the file's mode. It is
    written whole or not at all.

    Args:
        path: the result file; a link stays one.
        bench: what was measured.
        measured: the result as it was read from there.

    Raises:
        OutputError: the file cannot be written, another process is writing it, or it holds other matrices by now.
        CheckpointError: it cannot be read any more.
    """
    path = Path(path).resolve()
    check_target(path, force=True)
    with replacing(path, mode=path.stat().st_mode & 0o777) as temporary:
        before = read_compressed(path)
        if (before.matrices, before.keys) != (measured.matrices, measured.keys):
            raise OutputError(
                f"{path} was replaced while it was measured, so nothing is recorded there. Measure again."
            )
        tensors, header = read_tensors(path)
        text = metadata.with_bench(header[METADATA_KEY], bench)
        digests = write_tensors(temporary, tensors, {**header, METADATA_KEY: text})
        found = read_compressed(temporary)
        if changed := differing(temporary, digests) or differing(path, digests) or _misread(found, before):
            raise _changed(path, changed[0])


def write_dense(
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    header: Mapping[str, str] | None = None,
    layout: Layout | None = None,
    force: bool = False,
    inputs: Iterable[Path] = (),
) -> None:
    """Write a plain state dict as ``.safetensors``, whole or not at all, and read it back.

    Args:
        tensors: by name; tied ones are each written.
        path: the file.
        header: texts by name, to be written with them.
        layout: to be kept in the header, so that :func:`btcompress.checkpoint.read` finds it.
        force: replace an existing file.
        inputs: files that are never replaced.

    Raises:
        OutputError: the file cannot or may not be written there, or another process is writing it.
    """
    check_target(path, force=force, inputs=inputs)
    about = dict(header or {})
    if layout is not None and layout != Layout():
        about[LAYOUT_KEY] = layout_text(layout, list(tensors))
    with replacing(path) as temporary:
        digests = write_tensors(temporary, {name: plain_tensor(name, each) for name, each in tensors.items()}, about)
        if changed := differing(temporary, digests):
            raise _changed(path, changed[0])


def _misread(found: CompressedCheckpoint, compressed: CompressedCheckpoint) -> list[str]:
    """What was read of the same bytes otherwise than it was written."""
    described = [(each.matrices, each.rounded, each.layout) for each in (found, compressed)]
    if described[0] != described[1]:
        return ["its description"]
    names = {**found.stored, **compressed.stored}
    return [name for name in names if not same_stored(found.stored.get(name), compressed.stored.get(name))]


def _changed(path: Path, what: str) -> OutputError:
    return OutputError(
        f"{path} could not be written: {what} came back from the disk other than it was written. Try another disk; "
        "nothing was replaced."
    )


def check_storable(compressed: CompressedCheckpoint) -> None:
    """Refuse what a result file cannot hold; forms nothing, so ask before long work.

    Raises:
        CheckpointError: a tensor is of a kind that the file cannot hold, or what is recorded could not be read again,
            as a number that is not finite.
    """
    _described(compressed)


def _described(compressed: CompressedCheckpoint) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header of a result's file, and the tensors to store in it, with the values that they stand for."""
    aliases = find_aliases(compressed.tensors)
    stored = {name: plain_tensor(name, value) for name, value in compressed.tensors.items() if name not in aliases}
    return {METADATA_KEY: metadata.encode(compressed, aliases)}, stored


def read_compressed(path: str | PathLike[str]) -> CompressedCheckpoint:
    """Read a result; tensors are memory-mapped, tied ones tied again.

    Raises:
        CheckpointError: the file is missing or damaged, is no result, comes from a later version of the
            format, or its description does not fit its tensors.
    """
    path = Path(path)
    if recognise(path) != "btcompress":
        raise CheckpointError(f"{path} is not a compressed checkpoint. Compress it first.")
    tensors, about = read_tensors(path)
    return metadata.decode(about[METADATA_KEY], tensors, path)
