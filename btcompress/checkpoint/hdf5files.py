"""HDF5 files: what is in them, told by a process of its own, and tensors as views of the mapped file.

The library that reads such files goes round in circles in some damaged ones, so it never runs in this process. It is
asked where the data lie, and nothing of it: :mod:`btcompress.checkpoint.hdf5listing` says what is not read at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from math import prod
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from btcompress.checkpoint import hdf5listing
from btcompress.checkpoint.mapping import MappedFile
from btcompress.checkpoint.tensors import is_countable, plain_tensor
from btcompress.errors import CheckpointError

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
}
#: Seconds that the other process may take by the clock, which are few of the processor where a machine is busy.
_PATIENCE = 10 * hdf5listing.MOST_SECONDS


@dataclass(frozen=True, slots=True)
class Hdf5:
    """What an HDF5 file holds.

    Attributes:
        tensors: by path, with slashes, in the order of the file; mapped.
        texts: by the path of a group or a tensor, the texts that were given to it.
    """

    tensors: Mapping[str, Tensor]
    texts: Mapping[str, Mapping[str, str]]


class _Dataset(msgspec.Struct):
    path: str
    dtype: str
    shape: list[int]
    start: int


class _Listing(msgspec.Struct):
    datasets: list[_Dataset] = []
    texts: dict[str, dict[str, str]] = {}
    refused: str | None = None
    damaged: str | None = None


def read_hdf5(path: Path, start: int, size: int, label: str) -> Hdf5:
    """Read an HDF5 file that lies in a file.

    Args:
        path: of the file.
        start: where the HDF5 file begins in it, in bytes.
        size: of the HDF5 file, in bytes.
        label: what to call it in messages.

    Raises:
        CheckpointError: it is damaged, holds what is not read, or ``h5py`` is not installed.
        MemoryLimitError: what has to be copied needs more memory than there is.
    """
    listing = _listing(path, start, size, label)
    file = MappedFile(path)
    tensors: dict[str, Tensor] = {}
    stretches: set[tuple[int, int]] = set()
    for each in listing.datasets:
        dtype = _DTYPES[each.dtype]
        if not is_countable(each.shape):
            raise CheckpointError(f"{label}: {each.path} has shape {each.shape}, which no tensor can. Save it again.")
        n_bytes = dtype.itemsize * prod(each.shape)
        if n_bytes:
            stretches.add((each.start, each.start + n_bytes))
        data = file.bytes_at(start + each.start, n_bytes, dtype.itemsize)
        values = data.view(dtype) if n_bytes else torch.empty(0, dtype=dtype)
        tensors[each.path] = plain_tensor(each.path, values.reshape(each.shape))
    if any(first[1] > second[0] for first, second in pairwise(sorted(stretches))):
        raise CheckpointError(f"{label} is damaged: data of two tensors overlap. Download or save it again.")
    return Hdf5(tensors, listing.texts)


def _listing(path: Path, start: int, size: int, label: str) -> _Listing:
    """What is in the file, as far as it is read."""
    if find_spec("h5py") is None:
        raise CheckpointError(
            f"{label} is an HDF5 file, as Keras writes them, and reading it needs h5py, which is not installed here. "
            "Run pip install 'btcompress[keras]'."
        )
    try:
        listing = msgspec.json.decode(_answer(path, start, size), type=_Listing)
    except (subprocess.SubprocessError, msgspec.MsgspecError, ValueError) as error:
        raise CheckpointError(
            f"{label} is damaged: the library that reads HDF5 files breaks down over it. Download or save it again."
        ) from error
    if listing.damaged is not None:
        raise CheckpointError(f"{label} is damaged ({listing.damaged}). Download or save it again.")
    if listing.refused is not None:
        raise CheckpointError(
            f"{label} {listing.refused}. Save the weights again with Keras (model.save_weights), which writes plain "
            "tensors alone."
        )
    return listing


def _answer(path: Path, start: int, size: int) -> bytes:
    """What the other process says."""
    # The program finds what is found here, and nothing in the folder that it happens to run in.
    places = [each for each in sys.path if each and Path(each).is_absolute()]
    return subprocess.run(  # noqa: S603 - this Python, and a program of this package
        [sys.executable, "-P", hdf5listing.__file__, str(path.resolve()), str(start), str(size)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE,
        check=True,
    ).stdout
