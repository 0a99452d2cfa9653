"""``.safetensors`` files: tensors as views of the mapped file, and files written one tensor after another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from btcompress.checkpoint.mapping import MappedFile
from btcompress.checkpoint.tensors import byte_chunks, is_countable
from btcompress.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
#: Bytes read back at a time.
_CHUNK = 1 << 24
_LENGTH_BYTES = 8


def read_header(path: Path) -> dict[str, Any]:
    """The header of a file, its ``__metadata__`` included, once the library has found it to be in order.

    Raises:
        CheckpointError: the file is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            # The library checks that the tensors fill the file without gaps, each as large as its shape says.
            with safe_open(_name_for_library(path, file), framework="pt"):
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} begins like a .safetensors file but is truncated or damaged ({error}). Download or save it again."
        ) from error
    return {**header, "__metadata__": header.get("__metadata__") or {}}


def _name_for_library(path: Path, file: BinaryIO) -> str:
    """A name by which the library can open a file: it takes none that is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{file.fileno()}"
    return str(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, in the order in which they lie there, mapped; and its metadata.

    Raises:
        CheckpointError: the file is damaged, or holds a tensor of a dtype that torch does not have.
    """
    header = read_header(path)
    metadata = header.pop("__metadata__")
    file = MappedFile(path)
    data_start = _LENGTH_BYTES + _header_length(path)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}, which cannot be read. Convert it first.")
        if not is_countable(entry["shape"]):
            raise CheckpointError(f"{path}: {name} has shape {entry['shape']}, which no tensor can. Save it again.")
        first, last = entry["data_offsets"]
        data = file.bytes_at(data_start + first, last - first, dtype.itemsize)
        values = data.view(dtype) if len(data) else torch.empty(0, dtype=dtype)
        tensors[name] = values.reshape(entry["shape"])
    return tensors, metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Write tensors one after another, so that no more than one of them is in memory beside what was there.

    Args:
        path: the file; one that exists is written over.
        tensors: by name, of dtypes that the format has.
        metadata: texts by name.

    Returns:
        The digest of each tensor's bytes by its name, for :func:`differing`.

    Raises:
        OSError: the operating system refused to write.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in ordered:
        tensor = tensors[name]
        first, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # so that the data begin where every dtype may
    digests = {}
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in ordered:
            digest = hashlib.sha256()
            for chunk in byte_chunks(tensors[name]):
                data = chunk.numpy().data
                file.write(data)
                digest.update(data)
            digests[name] = digest.digest()
    return digests


def differing(path: Path, digests: Mapping[str, bytes]) -> list[str]:
    """Names of tensors whose bytes in a file are not those of the digests, or that one of the two lacks.

    Raises:
        CheckpointError: the file is damaged.
    """
    header = read_header(path)
    del header["__metadata__"]
    start = _LENGTH_BYTES + _header_length(path)
    with path.open("rb") as file:
        found = {name: _digest(file, start, *entry["data_offsets"]) for name, entry in header.items()}
    return [name for name in {**found, **digests} if found.get(name) != digests.get(name)]


def _header_length(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(_LENGTH_BYTES), "little")


def _digest(file: BinaryIO, start: int, first: int, last: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(start + first)
    for position in range(first, last, _CHUNK):
        digest.update(file.read(min(_CHUNK, last - position)))
    return digest.digest()
