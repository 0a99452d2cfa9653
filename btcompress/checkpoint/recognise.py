"""What a file is, by its content: whatever its name ends in, and before anything tries to open it."""

from __future__ import annotations

import codecs
import json
import logging
import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from btcompress.checkpoint.safetensorsfiles import read_header
from btcompress.errors import CheckpointError

_log = logging.getLogger(__name__)

Kind = Literal["safetensors", "btcompress", "index", "torch", "legacy torch", "flax", "hdf5", "keras", "mxnet", "onnx"]

#: The key of a result's description in the header of its ``.safetensors`` file.
METADATA_KEY = "btcompress"

#: The number that opens every file that torch.save wrote before zip archives, pickled.
_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

#: The number that opens MXNet's lists of arrays, and eight bytes that it keeps for later.
_MXNET = b"\x12\x01" + bytes(14)
#: How a mapping begins in MessagePack, and how a text does.
_MAPPING, _TEXT = re.compile(rb"[\x81-\x8f]|\xde..|\xdf....", re.DOTALL), re.compile(rb"[\xa0-\xbf\xd9\xda\xdb]")
#: How the fields begin that may follow the version of an ONNX model: producer, domain, version, graph, operators.
_AFTER_VERSION = (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")
#: What HDF5 files begin with, as Keras writes them.
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

_HEAD_BYTES = 4096
_MAX_INDEX_BYTES = 1 << 26

#: ``(offset, bytes there, what the file is, what to do)``.
_FOREIGN = (
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights themselves",
        "Fetch them with `git lfs pull`",
    ),
    (4, b"TFL3", "a TensorFlow Lite model", "Only PyTorch weights can be read"),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "Use the .onnx file that it was made from"),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array",
        "Save a state dict of tensors: torch.save({'lstm.weight_ih_l0': ...}, 'weights.pt')",
    ),
    (0, b"GGUF", "a GGUF model", "Use the PyTorch checkpoint that it was made from"),
    (0, b"\x1f\x8b", "compressed with gzip", "Unpack it first"),
    (0, b"\xfd7zXZ\x00", "compressed with xz", "Unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it first"),
    (0, b"BZh", "compressed with bzip2", "Unpack it first"),
    (257, b"ustar", "a tar archive", "Unpack it and give the checkpoint inside"),
)


def recognise(path: Path) -> Kind:
    """Say what kind of weight file this is; nothing in it is unpickled or run.

    Raises:
        CheckpointError: the file is missing, unreadable, empty, damaged or of a kind that is not read;
            the text says which and what to do.
    """
    _log.info("reading %s", path)
    head, size = _head(path)
    if not size:
        raise CheckpointError(f"{path} is empty. Download or save it again.")
    if head.startswith(b"PK\x03\x04"):
        return _recognise_zip(path)
    if head.startswith(_HDF5_MAGIC):
        return "hdf5"
    if _LEGACY_MAGIC in head[:32]:
        return "legacy torch"
    if head[8:9] == b"{" and not _is_text(head[:8]):
        return _recognise_safetensors(path)
    for offset, magic, what, advice in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise CheckpointError(f"{path} is {what}. {advice}.")
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        content = "pickled NumPy arrays" if b"numpy" in head else "a Python pickle"
        raise CheckpointError(
            f"{path} is {content}, not a file written by torch.save. In your own code, save a state dict of "
            "tensors: torch.save({name: torch.as_tensor(value), ...}, 'weights.pt')."
        )
    if head.startswith(_MXNET):
        return "mxnet"
    if _is_flax(head):
        return "flax"
    if _is_text(head):
        return _recognise_text(path, head, size)
    if _is_onnx(path, head):
        return "onnx"
    raise CheckpointError(
        f"{path} is no checkpoint that can be read: it is neither .safetensors nor written by torch.save. "
        "If it should be one, it is damaged: download or save it again."
    )


def is_compressed(path: str | PathLike[str]) -> bool:
    """Whether this is a file that :func:`btcompress.checkpoint.write` wrote; False for anything else."""
    try:
        return recognise(Path(path)) == "btcompress"
    except CheckpointError:
        return False


def load_index(path: Path) -> dict[str, Any] | None:
    """The JSON of a sharded checkpoint's index, or None if the file is no index."""
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return index if isinstance(index, dict) and isinstance(index.get("weight_map"), dict) else None


def _head(path: Path) -> tuple[bytes, int]:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder. Give the checkpoint file in it.")
        if not path.exists():
            raise CheckpointError(f"{path} does not exist. Check the name, and the folder that it is relative to.")
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file. Give a checkpoint file.")
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES), path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _recognise_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} begins like a torch.save archive but its end is missing or damaged. Download or save it again."
        ) from error
    files = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in files:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"{path} is an archive of NumPy arrays. In your own code, save a state dict of tensors: "
            f"torch.save({{k: torch.from_numpy(v) for k, v in numpy.load({str(path)!r}).items()}}, 'weights.pt')."
        )
    if any(name.endswith(".h5") for name in names):
        return "keras"
    raise CheckpointError(
        f"{path} is a zip archive that torch.save did not write. If a checkpoint is packed in it, unpack it first."
    )


def _recognise_safetensors(path: Path) -> Kind:
    return "btcompress" if METADATA_KEY in read_header(path)["__metadata__"] else "safetensors"


def _recognise_text(path: Path, head: bytes, size: int) -> Kind:
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(
            f"{path} is a web page, as a failed download leaves one. Download the weights again, from the address "
            "of the file itself."
        )
    if start.startswith(b"{") and size <= _MAX_INDEX_BYTES and load_index(path) is not None:
        return "index"
    raise CheckpointError(
        f"{path} is a text file, neither weights nor the index of a sharded checkpoint (a JSON object with a "
        "weight_map). Give the file that holds the weights."
    )


def _is_flax(head: bytes) -> bool:
    """Whether it is MessagePack that begins with a mapping of texts, as the parameters of Flax are."""
    mapping = _MAPPING.match(head)
    return mapping is not None and _TEXT.match(head, mapping.end()) is not None


def _is_onnx(path: Path, head: bytes) -> bool:
    """ONNX and TensorFlow files have no magic number, but both begin with a small version number as field 1."""
    if head[:1] != b"\x08" or head[1:2] > b"\x40" or head[2:3] not in _AFTER_VERSION:
        return False
    if head[1:2] == b"\x01":
        raise CheckpointError(f"{path} is a TensorFlow SavedModel. Save the weights of the model in it with Keras.")
    return True


def _is_text(data: bytes) -> bool:
    try:
        # Not final: a character of several bytes may be cut in two where the head ends.
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
