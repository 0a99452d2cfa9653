"""Sequences to train on: arrays in files, memory-mapped where the format allows, or a user's Dataset."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from btcompress.errors import BTCompressError
from btcompress.finetune.references import is_reference, resolve
from btcompress.seeds import check_seed

_NAMES = ("x", "y", "lengths")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some sequences.

    Attributes:
        x: inputs, shape ``(B, T, I)``; for a user's model any shape that begins with ``B``.
        y: labels or targets, beginning with ``B``; None without labels.
        lengths: steps of each sequence, shape ``(B,)``, on the CPU; None where all have ``T``.
        names: of the sequences, if the same name always means the same sequence; None for what a user's code makes.
    """

    x: Tensor
    y: Tensor | None = None
    lengths: Tensor | None = None
    names: tuple[tuple[str, int], ...] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same on a device, floating-point numbers in this dtype; lengths stay, as packing wants them."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        return replace(self, x=moved(self.x), y=None if self.y is None else moved(self.y))


class Data(Protocol):
    """What training takes its batches from."""

    @property
    def name(self) -> str:
        """What to call it in messages and records."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor) -> Batch:
        """The sequences at these positions.

        Raises:
            BTCompressError: an input is not finite.
        """


@dataclass(frozen=True, slots=True, eq=False)
class Arrays:
    """Sequences in arrays, of which only the rows asked for are read and converted.

    Attributes:
        name: the file.
        x: shape ``(N, T, I)``, any real dtype.
        y: labels or targets, beginning with ``N``, or None.
        lengths: steps of each sequence, 1 to ``T``, or None.
        scale: what to multiply inputs by.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[Any] | None
    lengths: NDArray[Any] | None
    scale: float

    def __post_init__(self) -> None:
        if self.x.ndim != 3 or 0 in self.x.shape or self.x.dtype.kind not in "fiub":
            raise BTCompressError(
                f"{self.name}: x has shape {self.x.shape} and dtype {self.x.dtype}, but numbers of shape (N, T, I) are "
                "needed: N sequences of T steps of I inputs, none of them 0."
            )
        for name in ("y", "lengths"):
            value = getattr(self, name)
            if value is not None and value.shape[:1] != self.x.shape[:1]:
                raise BTCompressError(
                    f"{self.name}: {name} has shape {value.shape} and x has shape {self.x.shape}. Give one entry of "
                    f"{name} for each of the {len(self.x)} sequences."
                )
        if self.lengths is not None:
            _check_lengths(self.name, self.lengths, self.x.shape[1])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> Batch:
        """The sequences at these positions, inputs scaled; see :class:`Data`."""
        index = rows.numpy()
        x = np.asarray(self.x[index])
        if not np.isfinite(x).all():
            bad = index[~np.isfinite(x.reshape(len(x), -1)).all(axis=1)][0]
            raise BTCompressError(f"{self.name}: sequence {bad} of x holds NaN or infinity. Repair or remove it.")
        wide = torch.from_numpy(x.astype(np.float64 if x.dtype == np.float64 else np.float32))
        return Batch(
            wide.mul_(self.scale),
            None if self.y is None else _labels(self.y[index]),
            None if self.lengths is None else torch.from_numpy(self.lengths[index].astype(np.int64)),
            tuple((self.name, row) for row in rows.tolist()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class UserData:
    """A user's Dataset; items are ``x``, ``(x, y)``, ``(x, y, length)`` or mappings with these names.

    Attributes:
        name: the reference to its factory.
        dataset: with a length.
        collate: makes one batch of a list of items.
    """

    name: str
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batch(self, rows: Tensor) -> Batch:
        """The items at these positions; see :class:`Data`."""
        value = self.collate([self.dataset[row] for row in rows.tolist()])
        if isinstance(value, dict):
            parts: list[Any] = [value.get(name) for name in _NAMES]
        else:
            parts = list(value) if isinstance(value, tuple | list) else [value]
        if not 1 <= len(parts) <= len(_NAMES) or not isinstance(parts[0], Tensor):
            raise BTCompressError(
                f"{self.name}: a batch must be x, (x, y), (x, y, lengths) or a mapping with these names, of tensors, "
                f"but it is {type(value).__name__} of {[type(part).__name__ for part in parts]}."
            )
        batch = Batch(*parts)
        if not torch.isfinite(batch.x).all():
            raise BTCompressError(f"{self.name}: an item among {rows.tolist()} holds NaN or infinity in x. Repair it.")
        return batch


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some sequences of a source.

    Attributes:
        source: where they come from.
        rows: which, shape ``(n,)``.
    """

    source: Data
    rows: Tensor

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor) -> Batch:
        """See :class:`Data`."""
        return self.source.batch(self.rows[rows])


def open_data(text: str, scale: float = 1.0, folder: Path | None = None) -> Data:
    """Open a file of sequences, or call a user's factory of a Dataset or DataLoader.

    Of a DataLoader its dataset and its collation are taken; batches and their order are made anew.

    Args:
        text: a ``.npz``, ``.npy`` or ``.safetensors`` file, or ``package.module:factory``.
        scale: what to multiply the inputs of a file by, such as 1/255 for bytes.
        folder: where to look for the factory's module first.

    Raises:
        BTCompressError: there is no such file or factory, or it does not give sequences.
    """
    if is_reference(text) and not Path(text).exists():
        return _from_factory(text, resolve("--data", text, folder)(), scale)
    path = Path(text)
    if not path.is_file():
        raise BTCompressError(f"{path} is not a file. Give a .npz, .npy or .safetensors, or package.module:factory.")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise BTCompressError(f"{path} ends in {path.suffix!r}. Give sequences as .npz, .npy or .safetensors.")
    try:
        arrays = readers[path.suffix](path)
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise BTCompressError(f"{path} cannot be read as {path.suffix} of plain numbers ({error}).") from error
    if "x" not in arrays:
        raise BTCompressError(f"{path} has no array x, only {', '.join(arrays) or 'nothing'}. Name the inputs x.")
    return Arrays(str(path), arrays["x"], arrays.get("y"), arrays.get("lengths"), scale)


def split(data: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Hold a share of the sequences back, chosen by the seed; both parts keep the order of the source.

    Raises:
        BTCompressError: a part would be empty.
    """
    n_held = max(round(len(data) * fraction), 1)
    if not 0 < fraction < 1 or n_held >= len(data):
        raise BTCompressError(
            f"--val-fraction {fraction} of the {len(data)} sequences in {data.name} leaves none to train on or none to "
            "measure on. Give a fraction between 0 and 1, more sequences, or a file with --val."
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(check_seed(seed)))
    return Rows(data, order[n_held:].sort().values), Rows(data, order[:n_held].sort().values)


def _from_factory(name: str, value: object, scale: float) -> Data:
    if scale != 1.0:
        raise BTCompressError(f"--scale is for files; scale the inputs in {name} itself.")
    collate = value.collate_fn if isinstance(value, DataLoader) else default_collate
    dataset = value.dataset if isinstance(value, DataLoader) else value
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not sized or isinstance(dataset, IterableDataset) or not len(dataset):  # type: ignore[arg-type]
        raise BTCompressError(
            f"{name} gave {type(dataset).__name__}. It must give a Dataset with a length and items by number, at least "
            "one, or a DataLoader of such."
        )
    return UserData(name, dataset, collate)  # type: ignore[arg-type]


def _read_npy(path: Path) -> dict[str, NDArray[Any]]:
    return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        names = [name for name in _NAMES if name in arrays.files]
        mapped = {name: _map_member(path, archive, f"{name}.npy") for name in names}
        return {name: arrays[name] if member is None else member for name, member in mapped.items()}


def _map_member(path: Path, archive: zipfile.ZipFile, member: str) -> NDArray[Any] | None:
    """An array that ``numpy.savez`` stored uncompressed, mapped where it lies; None where it cannot be."""
    info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # a local header ends with the lengths of two fields that follow it
        n_name, n_extra = np.frombuffer(file.read(4), "<u2").tolist()
        file.seek(info.header_offset + 30 + n_name + n_extra)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject or not np.prod(shape):
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).numpy() for name in _NAMES if name in file.keys()}  # noqa: SIM118


def _labels(rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(rows.astype(np.float64 if rows.dtype.kind == "f" else np.int64))


def _check_lengths(name: str, lengths: NDArray[Any], steps: int) -> None:
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > steps:
        raise BTCompressError(
            f"{name}: lengths has shape {lengths.shape}, dtype {lengths.dtype} and entries from {lengths.min()} to "
            f"{lengths.max()}, but one whole number from 1 to {steps}, the steps of x, is needed for each sequence."
        )
