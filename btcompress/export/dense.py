"""A dense checkpoint for the code that the compressed one was trained with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from btcompress.checkpoint import (
    USUAL_TEXT,
    CompressedCheckpoint,
    check_target,
    find_aliases,
    replacing,
    same_bits,
    write_dense,
)
from btcompress.errors import OutputError
from btcompress.memory import require
from btcompress.models import Compressed, opened
from btcompress.text import listed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True, slots=True)
class DenseExport:
    """A dense checkpoint that was written.

    Attributes:
        path: the file.
        n_bytes: its size.
        notices: what the file has otherwise than the checkpoint that was compressed.
    """

    path: Path
    n_bytes: int
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form."""
        return {"path": str(self.path), "n_bytes": self.n_bytes, "notices": list(self.notices)}


def export_dense(compressed: Compressed, path: str | PathLike[str], *, force: bool = False) -> DenseExport:
    """Write the dense checkpoint of a result, whole or not at all, and read it back.

    Keys and dtypes are those of the checkpoint that was compressed, each factorized matrix summed in float64. A ``.pt``
    file has its containers and the plain values in them as well, tied tensors as one, and loads with
    ``torch.load(path, weights_only=True)``. A ``.safetensors`` file is one plain state dict, tied tensors written under
    each of their names; of several state dicts, the path to each is before its keys. The same result gives the same
    bytes.

    Args:
        compressed: a result file, or what :func:`btcompress.load` or :func:`btcompress.factorize` gave.
        path: the file, ending in ``.pt`` or ``.safetensors``.
        force: replace an existing file, though never one that the result was read from.

    Raises:
        OutputError: the name ends otherwise, or the file cannot or may not be written there.
        CheckpointError: the result cannot be read, or a matrix does not fit the range of its dtype.
        MemoryLimitError: the dense matrices need more memory than there is.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise OutputError(
            f"{path} has the ending {path.suffix!r}, which no dense checkpoint is written with. Choose a name "
            f"that ends in {' or '.join(_SUFFIXES)}."
        )
    result = opened(compressed)
    check_target(path, force=force, inputs=result.files)
    notices = _write_torch(result, path) if path.suffix == ".pt" else _write_safetensors(result, path, force=force)
    return DenseExport(path, path.stat().st_size, tuple(notices))


def _write_safetensors(compressed: CompressedCheckpoint, path: Path, *, force: bool) -> list[str]:
    layout = compressed.dense_layout()
    header = {**dict([USUAL_TEXT]), **layout.metadata}
    write_dense(compressed.dense_state_dict(), path, header=header, force=force, inputs=compressed.files)
    told = {
        "Left out, as a .safetensors file holds tensors alone": layout.values,
        "Written under each of their names, tied tensors": tuple(layout.ties),
    }
    notices = [f"{words}: {listed(names)}." for words, names in told.items() if names]
    containers = layout.containers
    if layout.root is not None and containers != ("",):
        notices.append(f"Written as one plain state dict, what lay in containers: {listed(containers)}.")
    return notices


def _write_torch(compressed: CompressedCheckpoint, path: Path) -> list[str]:
    layout = compressed.dense_layout()
    kept = [compressed.tensors[key] for key in compressed.keys if key not in compressed.matrices]
    formed = (matrix.shape.dense_params * matrix.dtype.itemsize for matrix in compressed.matrices.values())
    require(
        sum(formed) + sum(tensor.nbytes for tensor in kept if not _fills_storage(tensor)),
        f"The dense form of {compressed.source.name}",
        "Write it as .safetensors, or use it in block-term form (btcompress.apply).",
    )
    dense = compressed.dense_state_dict()
    tied = {key: first for key, first in layout.ties.items() if same_bits(dense[key], dense[first])}
    own = {key: _own(tensor) for key, tensor in dense.items() if key not in tied}
    content = layout.filled({key: own[tied.get(key, key)] for key in dense})
    with replacing(path) as temporary:
        _save(content, temporary)
        if changed := _misread(temporary, content):
            raise OutputError(
                f"{path} could not be written: {changed} came back from the disk other than it was written. Try "
                "another disk; nothing was replaced."
            )
    told = {
        "Left out, as a .pt file has no header": tuple(layout.metadata),
        "Tied in the dense checkpoint, and different tensors by now": tuple(
            key for key in layout.ties if key not in tied
        ),
    }
    return [f"{words}: {listed(names)}." for words, names in told.items() if names]


def _save(content: object, path: Path) -> None:
    # By its name, the archive would be named after the file.
    with _Telling(FileIO(path, "wb")) as file:
        try:
            torch.save(content, file)
        except RuntimeError:
            if file.error is not None:
                raise file.error from None
            raise


class _Telling(BufferedWriter):
    """A file that remembers why it could not be written, as torch raises an error of its own then."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        """As of any file."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _fills_storage(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def _own(tensor: Tensor) -> Tensor:
    """The tensor with a storage that holds nothing else, as all of that is saved with it."""
    plain = tensor.detach().cpu()
    return plain if _fills_storage(plain) else plain.clone(memory_format=torch.contiguous_format)


def _misread(path: Path, content: object) -> str:
    """What of a file is another content than was written; nothing where all of it is the same."""
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError):
        return "all of it"
    return _differing(found, content)


def _differing(found: object, expected: object) -> str:
    """The path of a value that is not the expected one, or of a tensor that is tied otherwise; else nothing."""
    ours, theirs = list(_leaves(found)), list(_leaves(expected))
    for mine, other in zip_longest(ours, theirs):
        if mine is None or other is None or mine[0] != other[0] or not _is_same(mine[1], other[1]):
            path, _ = other or mine
            return ".".join(path) or "its outermost container"
    tensors = [{".".join(path): each for path, each in leaves if isinstance(each, Tensor)} for leaves in (ours, theirs)]
    ties = [set(find_aliases(each).items()) for each in tensors]
    return min((name for name, _ in ties[0] ^ ties[1]), default="")


def _leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value with its path; of a container its kind and its keys before what it holds."""
    if not isinstance(value, dict | list | tuple):
        yield path, value
        return
    entries = list(value.items() if isinstance(value, dict) else enumerate(value))
    yield path, (type(value), [key for key, _ in entries])
    for key, each in entries:
        yield from _leaves(each, (*path, str(key)))


def _is_same(found: object, expected: object) -> bool:
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return same_bits(found, expected)
    return type(found) is type(expected) and found == expected
