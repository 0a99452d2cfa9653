"""Result files: one ``.safetensors`` whose header describes it, as ``docs/format.md`` specifies."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from btcompress.checkpoint import metadata
from btcompress.checkpoint.atomic import check_target, replacing
from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.checkpoint.recognise import METADATA_KEY, recognise
from btcompress.checkpoint.safetensorsfiles import differing, read_tensors, write_tensors
from btcompress.checkpoint.tensors import find_aliases, plain_tensor
from btcompress.errors import CheckpointError, OutputError

#: Told the result as it was written, before it takes the place of anything; raises where it is not the one in memory.
Check = Callable[[CompressedCheckpoint], None]


def write(
    compressed: CompressedCheckpoint, path: str | PathLike[str], *, force: bool = False, check: Check | None = None
) -> None:
    """Write a result whole or not at all, and read it back; the same value gives the same bytes.

    Args:
        compressed: what to write.
        path: the file, by custom ending in ``.safetensors``.
        force: replace an existing file, though never one that ``compressed`` was read from.
        check: looks at what was read back, once its bytes and its description have been found to be the same.

    Raises:
        OutputError: the file cannot or may not be written there, or another process is writing it.
        CheckpointError: a tensor or a number is of a kind that the file cannot hold.
    """
    path = Path(path)
    check_target(path, force=force, inputs=compressed.files)
    aliases = find_aliases(compressed.tensors)
    stored = {name: plain_tensor(name, value) for name, value in compressed.tensors.items() if name not in aliases}
    text = metadata.encode(compressed, aliases)
    with replacing(path) as temporary:
        digests = write_tensors(temporary, stored, {METADATA_KEY: text})
        again = read_compressed(temporary)
        if changed := differing(temporary, digests) or (again.matrices != compressed.matrices and ["its description"]):
            raise OutputError(
                f"{path} could not be written: {changed[0]} came back from the disk other than it was written. Try "
                "another disk; nothing was replaced."
            )
        if check is not None:
            check(again)


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
