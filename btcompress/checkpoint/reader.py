"""Reading dense checkpoints: ``.safetensors``, whatever ``torch.save`` wrote, and either one in shards."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from btcompress.checkpoint.containers import Flattened, flatten
from btcompress.checkpoint.recognise import Kind, load_index, recognise
from btcompress.checkpoint.source import Source, digest
from btcompress.checkpoint.tensors import count_params, find_aliases
from btcompress.errors import CheckpointError
from btcompress.text import valid_unicode


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The tensors of a dense checkpoint.

    Attributes:
        tensors: by name, in the order of the file; on the CPU, memory-mapped where the format allows.
        source: what to record of where they came from.
        notices: what a user should know about how the file was read.
        files: the files that the tensors lie in, which must not change while these are in use.
    """

    tensors: dict[str, Tensor]
    source: Source
    notices: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def read(path: str | PathLike[str], container: str | None = None) -> Checkpoint:
    """Read a checkpoint; nothing in it is ever run.

    The kind of file is told by its content. A folder is searched for the one checkpoint in it. Keys are
    those of the state dict in the file; several state dicts in one file are all read, with the path to
    each before its keys.

    Args:
        path: a file, the index of a sharded checkpoint, or a folder.
        container: where a file holds several state dicts, the path of the one to read.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than weights or is of a kind that is
            not read; the text says which and what to do.
    """
    path = Path(path)
    path = _only_checkpoint(path) if path.is_dir() else path
    kind = recognise(path)
    if kind == "btcompress":
        raise CheckpointError(
            f"{path} is compressed already. Give the dense checkpoint that it was made from, or form a dense "
            "state dict from it first."
        )
    if kind == "index":
        weight_map = _weight_map(path)
        files = (path, *(path.parent / shard for shard in sorted(set(weight_map.values()))))
        flat = _read_shards(path, weight_map, container)
    else:
        files = (path,)
        flat = _read_file(path, kind, container)
    n_bytes = sum(file.stat().st_size for file in files)
    source = Source(valid_unicode(path.name), n_bytes, digest(files), count_params(flat.tensors))
    return Checkpoint(flat.tensors, source, flat.notices, tuple(file.resolve() for file in files))


def from_state_dict(state_dict: Mapping[str, Any], name: str = "state dict") -> Checkpoint:
    """Take a state dict, or containers of them, from memory; tensors on the CPU are not copied.

    Args:
        state_dict: as ``module.state_dict()`` gives it.
        name: what to call it in messages and records.

    Raises:
        CheckpointError: as :func:`read`, for what the mapping holds.
    """
    flat = flatten(state_dict, name)
    aliases = find_aliases(flat.tensors)
    tensors: dict[str, Tensor] = {}
    for key, tensor in flat.tensors.items():
        tensors[key] = tensors[aliases[key]] if key in aliases else tensor.cpu()
    n_bytes = sum(tensor.nbytes for key, tensor in tensors.items() if key not in aliases)
    return Checkpoint(tensors, Source(valid_unicode(name), n_bytes, None, count_params(tensors)), flat.notices)


def _only_checkpoint(folder: Path) -> Path:
    """The one checkpoint in a folder: shards are part of their index, and a result never hides its source."""
    found: dict[str, Kind] = {}
    try:
        for path in sorted(folder.iterdir()):
            try:
                found[path.name] = recognise(path)
            except CheckpointError:
                continue
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error
    shards = {name for index, kind in found.items() if kind == "index" for name in _weight_map(folder / index).values()}
    names = [name for name in found if name not in shards]
    dense = [name for name in names if found[name] != "btcompress"]
    if len(dense or names) != 1:
        what = f"{len(names)} checkpoints: {', '.join(names)}" if names else "no checkpoint that can be read"
        raise CheckpointError(f"{folder} is a folder with {what}. Give the file to read.")
    return folder / (dense or names)[0]


def _read_file(path: Path, kind: Kind, container: str | None = None) -> Flattened:
    if kind == "safetensors":
        try:
            return flatten(load_file(path), str(path), container)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}). Download or save it again.") from error
    return flatten(_load_torch(path, kind), str(path), container)


def _load_torch(path: Path, kind: Kind) -> object:
    with warnings.catch_warnings():
        # torch warns about how the file was saved, which its reader cannot change.
        warnings.simplefilter("ignore", UserWarning)
        try:
            # Files from before zip archives cannot be mapped; and by a path that ends in .safetensors
            # torch.load would leave its own format for that one.
            if kind == "torch" and path.suffix != ".safetensors":
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            # A damaged pickle can raise anything.
            refusal = _refusal(path, error)
    raise refusal


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """Say in few words why torch would not load a file: its own text advises to run what is in there."""
    text = str(error)
    if match := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text):
        return CheckpointError(
            f"{path} holds more than tensors: loading it would run {match[1]}, which a file of weights has no "
            "need of. Where you trust it and have its code, save the weights alone: "
            f"model = torch.load({str(path)!r}, weights_only=False); "
            "torch.save(model.state_dict(), 'weights.pt'), or the part that is a state dict if it is a dictionary."
        )
    if re.search(r"Unsupported operand \d+", text):
        return CheckpointError(
            f"{path} was saved in a pickle protocol that torch cannot load safely. Save it again with "
            "torch.save(state_dict, 'weights.pt'), leaving pickle_protocol out."
        )
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return CheckpointError(f"{path} needs more memory than there is. Save its state dict alone with torch.save.")
    return CheckpointError(
        f"{path} was written by torch.save but cannot be loaded as weights ({type(error).__name__}): it is "
        "truncated, damaged, or holds more than tensors. Download it again, or save a state dict alone."
    )


def _weight_map(index: Path) -> dict[str, str]:
    """The shard that an index gives for each tensor."""
    weight_map: dict[str, str] = (load_index(index) or {}).get("weight_map", {})
    for shard in weight_map.values():
        # An index is data from elsewhere, so it may only ever point at its neighbours.
        if not isinstance(shard, str) or shard in ("", ".", "..") or re.search(r"[/\\:\0]", shard):
            raise CheckpointError(f"{index} names a shard {shard!r}, but shards must be files beside their index.")
    if not weight_map:
        raise CheckpointError(f"{index} is an index of no tensors. Download or save it again.")
    return weight_map


def _read_shards(index: Path, weight_map: Mapping[str, str], container: str | None) -> Flattened:
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).exists()]
    if missing:
        raise CheckpointError(f"{index} needs {', '.join(missing)} beside it, which is missing. Download it as well.")
    if container is not None:
        raise CheckpointError(f"{index} is an index of one plain state dict: leave the container out.")
    notices: list[str] = []
    found: dict[str, dict[str, Tensor]] = {}
    for shard in shards:
        path = index.parent / shard
        kind = recognise(path)
        if kind in ("index", "btcompress"):
            raise CheckpointError(f"{index} names the shard {shard}, which is no dense weight file. Download it again.")
        flat = _read_file(path, kind)
        found[shard] = flat.tensors
        notices += flat.notices
    tensors = {}
    for key, shard in weight_map.items():
        if key not in found[shard]:
            raise CheckpointError(f"{index} says that {key} is in {shard}, where it is not. Download both again.")
        tensors[key] = found[shard].pop(key)
    unlisted = [key for shard in shards for key in found[shard]]
    if unlisted:
        notices.append(f"Left out, tensors that the index does not name: {', '.join(unlisted)}.")
    return Flattened(tensors, tuple(notices))
