"""Result files: one ``.safetensors`` whose header describes it, as ``docs/format.md`` specifies."""

from __future__ import annotations

from filecmp import cmp
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from btcompress.checkpoint import metadata
from btcompress.checkpoint.atomic import check_target, replacing
from btcompress.checkpoint.compressed import CompressedCheckpoint
from btcompress.checkpoint.recognise import METADATA_KEY, recognise
from btcompress.checkpoint.tensors import find_aliases, plain_tensor
from btcompress.errors import CheckpointError, OutputError


def write(
    compressed: CompressedCheckpoint, path: str | PathLike[str], *, force: bool = False, again: bool = False
) -> None:
    """Write a result whole or not at all; the same value gives the same bytes.

    Args:
        compressed: what to write.
        path: the file, by custom ending in ``.safetensors``.
        force: replace an existing file, though never one that ``compressed`` was read from.
        again: the file may be there already where it has these very bytes.

    Raises:
        OutputError: the file cannot or may not be written there.
        CheckpointError: as :func:`check_storable`.
    """
    path = Path(path)
    check_target(path, force=force or again, inputs=compressed.files)
    header, stored = _described(compressed)
    separate = _separate(stored)
    with replacing(path) as temporary:
        try:
            save_file(separate, temporary, metadata=header)
        except SafetensorError as error:
            raise OutputError(f"{path} could not be written ({error}).") from error
        if path.exists() and not force and not cmp(temporary, path, shallow=False):
            raise OutputError(
                f"{path} already exists, and is another file than would be written. Move it away, or replace it with "
                "--force beside --resume (force=True)."
            )


def check_storable(compressed: CompressedCheckpoint) -> None:
    """Refuse what a result file cannot hold; forms nothing, so ask before long work.

    Raises:
        CheckpointError: a tensor is of a kind that the file cannot hold, or a number recorded is not finite.
    """
    _described(compressed)


def _described(compressed: CompressedCheckpoint) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header of a result's file, and the tensors to store in it."""
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
    try:
        with safe_open(path, framework="pt") as file:
            text = file.metadata()[METADATA_KEY]
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Make it again.") from error
    return metadata.decode(text, tensors, path)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values in contiguous memory of which no two tensors share any; copies only what must be."""
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name, tensor in sorted(whole.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            whole[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return whole
