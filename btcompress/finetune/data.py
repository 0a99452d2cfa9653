"""Sequences to train on: arrays in files, memory-mapped where the format allows, or a user's Dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from btcompress import memory
from btcompress.errors import BTCompressError
from btcompress.files import Snapshot
from btcompress.finetune.arrayfiles import read_arrays
from btcompress.finetune.items import NAMES, alike, parts_of, some
from btcompress.finetune.references import is_reference, resolve
from btcompress.seeds import check_seed


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some sequences.

    Attributes:
        x: inputs, shape ``(B, T, I)``; for a user's model any shape that begins with ``B``.
        y: labels or targets, beginning with ``B``; None without labels.
        lengths: steps of each sequence, shape ``(B,)``, on the CPU; None where all have ``T``.
        names: of the sequences, if the same name always means the same sequence; None for what a user's code makes.
        state: initial ``h`` and ``c`` of every layer and direction, shapes ``(directions * L, B, H)``; None for zeros.
    """

    x: Tensor
    y: Tensor | None = None
    lengths: Tensor | None = None
    names: tuple[tuple[str, int], ...] | None = None
    state: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same on a device, floating-point numbers in this dtype; lengths stay, as packing wants them.

        Raises:
            BTCompressError: a number is beyond the range of the dtype.
        """

        def moved(value: Tensor) -> Tensor:
            if not value.is_floating_point():
                return value.to(device)
            narrower = dtype.itemsize < value.element_size() and value.numel() > 0
            if narrower and (largest := float(value.abs().max())) > torch.finfo(dtype).max:
                raise BTCompressError(
                    f"the sequences hold {largest:g}, which is beyond the range of "
                    f"{str(dtype).removeprefix('torch.')}, in which the network computes. Scale them (--scale)."
                )
            return value.to(device, dtype)

        state = None if self.state is None else (moved(self.state[0]), moved(self.state[1]))
        return replace(self, x=moved(self.x), y=None if self.y is None else moved(self.y), state=state)


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
        snapshot: of the file, which must stay as it is; None for arrays that lie in none.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[Any] | None
    lengths: NDArray[Any] | None
    scale: float
    snapshot: Snapshot | None = None

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
        if self.y is not None:
            _check_labels(self.name, self.y)
        if self.lengths is not None:
            _check_lengths(self.name, self.lengths, self.x.shape[1])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: Tensor) -> Batch:
        """The sequences at these positions, inputs scaled; see :class:`Data`."""
        if self.snapshot is not None:
            self.snapshot.check()
        index = rows.numpy()
        wide = _wide(self.x[index]).mul_(self.scale)
        finite = torch.isfinite(wide)
        if not finite.all():
            bad = index[~finite.flatten(1).all(1).numpy()][0]
            raise BTCompressError(
                f"{self.name}: sequence {bad} of x holds NaN or infinity, or numbers too large to scale. Repair or "
                "remove it."
            )
        return Batch(
            wide,
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
        numbers = rows.tolist()
        items = [self._item(row) for row in numbers]
        value = self.collate(alike(self.name, numbers, items) if self.collate is default_collate else items)
        parts = parts_of(value)
        if not 1 <= len(parts) <= len(NAMES) or not all(isinstance(part, Tensor) for part in parts if part is not None):
            raise BTCompressError(
                f"{self.name}: a batch must be x, (x, y), (x, y, lengths) or a mapping with these names, of tensors, "
                f"but it is {type(value).__name__} of {[type(part).__name__ for part in parts]}."
            )
        if not isinstance(parts[0], Tensor):
            raise BTCompressError(f"{self.name}: a batch has no inputs x. Give them first, or by the name x.")
        batch = Batch(*parts)
        _check_batch(self.name, numbers, batch)
        return batch

    def _item(self, row: int) -> object:
        try:
            return self.dataset[row]
        except LookupError as error:
            raise BTCompressError(
                f"{self.name}: there is no item {row}, although the Dataset has a length of {len(self)} "
                f"({type(error).__name__}: {error}). Make its items as many as its length says."
            ) from error


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
    if is_reference(text) and not os.path.lexists(text):
        return _from_factory(text, resolve("--data", text, folder)(), scale)
    path = Path(text)
    arrays, snapshot = read_arrays(path, NAMES)
    if "x" not in arrays:
        raise BTCompressError(f"{path} has no array x, only {', '.join(arrays) or 'nothing'}. Name the inputs x.")
    return Arrays(str(path), arrays["x"], arrays.get("y"), arrays.get("lengths"), scale, snapshot)


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
    memory.require(
        2 * len(data) * torch.int64.itemsize, f"the order of the {len(data)} items in {data.name}", "Give fewer items."
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


def _wide(values: NDArray[Any]) -> Tensor:
    """In float64 what has more digits than float32, the rest in float32."""
    precise = values.dtype.kind == "f" and values.dtype.itemsize >= np.dtype(np.float64).itemsize
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and that is looked for
        return torch.from_numpy(values.astype(np.float64 if precise else np.float32))


def _labels(rows: NDArray[Any]) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(rows.astype(np.float64 if rows.dtype.kind == "f" else np.int64))


def _check_labels(name: str, y: NDArray[Any]) -> None:
    if 0 in y.shape or y.dtype.kind not in "fiub":
        raise BTCompressError(
            f"{name}: y has shape {y.shape} and dtype {y.dtype}, but numbers are needed for each sequence."
        )
    most = np.iinfo(np.int64).max
    if y.dtype == np.uint64 and y.max() > most:
        raise BTCompressError(f"{name}: y has a class of {y.max()}, but {most} is the largest that there can be.")


def _check_lengths(name: str, lengths: NDArray[Any], steps: int) -> None:
    needed = f"one whole number from 1 to {steps}, the steps of x, is needed for each sequence."
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise BTCompressError(f"{name}: lengths has shape {lengths.shape} and dtype {lengths.dtype}, but {needed}")
    if lengths.min() < 1 or lengths.max() > steps:
        raise BTCompressError(f"{name}: lengths has entries from {lengths.min()} to {lengths.max()}, but {needed}")


def _check_batch(name: str, rows: list[int], batch: Batch) -> None:
    """Refuse a batch of a user's whose parts do not fit together."""
    which, x = f"{name}: items {some(rows)}", batch.x
    for what, part in (("x", x), ("y", batch.y), ("lengths", batch.lengths)):
        if part is None:
            continue
        if not part.numel() or part.shape[:1] != x.shape[:1] or part.is_complex():
            raise BTCompressError(
                f"{which}: {what} has shape {tuple(part.shape)} and dtype {part.dtype}, and x has shape "
                f"{tuple(x.shape)}. Give real numbers, one entry of {what} for each sequence of x."
            )
    if batch.lengths is not None:
        lengths = batch.lengths.double() if batch.lengths.is_floating_point() else batch.lengths
        _check_lengths(which, lengths.cpu().numpy(), x.shape[1] if x.dim() == 3 else max(x.shape[1:], default=1))
    if not torch.isfinite(x).all():
        raise BTCompressError(f"{which}: one of them holds NaN or infinity in x. Repair it.")
