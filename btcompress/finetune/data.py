"""Sequences to train on: arrays in files, memory-mapped where the format allows, or a user's Dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from btcompress import memory
from btcompress.errors import BTCompressError
from btcompress.finetune.arrayfiles import names_in, read_arrays
from btcompress.finetune.arrays import Arrays, check_lengths
from btcompress.finetune.batches import Batch, Data
from btcompress.finetune.items import NAMES, STATES, alike, parts_of, some, states_of
from btcompress.finetune.recorded import MARK, array_name, choose_layer, layers_in
from btcompress.finetune.references import is_reference, resolve
from btcompress.nn.celltype import State
from btcompress.seeds import check_seed

__all__ = ["Arrays", "Batch", "Data", "Rows", "UserData", "open_data", "recorded_layers", "split"]


@dataclass(frozen=True, slots=True, eq=False)
class UserData:
    """A user's Dataset; items are ``x``, ``(x, y)``, ``(x, y, length)`` or mappings with these names.

    A mapping may hold ``h0`` as well, and ``c0`` of an LSTM, shape ``(directions * L, H)``; those of a batch begin with
    ``B``.

    Attributes:
        name: the reference to its factory.
        dataset: with a length.
        collate: makes one batch of a list of items.
    """

    name: str
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]

    @property
    def layer(self) -> None:
        """Nobody knows; see :class:`Data`."""
        return

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
        return replace(batch, state=_state_of_batch(f"{self.name}: items {some(numbers)}", states_of(value), batch))

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

    @property
    def layer(self) -> str | None:
        """The source's."""
        return self.source.layer

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor) -> Batch:
        """See :class:`Data`."""
        return self.source.batch(self.rows[rows])


def open_data(text: str, scale: float = 1.0, folder: Path | None = None, *, layer: str | None = None) -> Data:
    """Open a file of sequences, or call a user's factory of a Dataset or DataLoader.

    Of a DataLoader its dataset and its collation are taken; batches and their order are made anew.

    Args:
        text: a ``.npz``, ``.npy`` or ``.safetensors`` file, or ``package.module:factory``.
        scale: what to multiply the inputs of a file by, such as 1/255 for bytes.
        folder: where to look for the factory's module first.
        layer: the layer whose inputs are wanted from a file that holds those of several, as ``btcompress.recording``
            writes it; None for the only one. Plain arrays serve any layer.

    Raises:
        BTCompressError: there is no such file or factory, it does not give sequences, or not those of the layer.
    """
    if is_reference(text) and not os.path.lexists(text):
        return _from_factory(text, resolve("--data", text, folder)(), scale)
    path = Path(text)
    names = names_in(path)
    chosen = choose_layer(str(path), names, layer)
    parts = (*NAMES, *STATES, MARK)
    arrays, snapshot = read_arrays(path, [array_name(chosen, part) for part in parts])
    x, y, lengths, h0, c0, mark = (arrays.get(array_name(chosen, part)) for part in parts)
    if x is None:
        raise BTCompressError(f"{path} has no array x, only {', '.join(arrays) or 'nothing'}. Name the inputs x.")
    if mark is not None and mark.any() and h0 is None and c0 is None:
        raise BTCompressError(
            f"{path}: {chosen or 'the layer'} was seen to start from states that are not zero, as {MARK} says, "
            "but their arrays are missing: h0, and c0 of an LSTM. Started from zeros it would compute something else: "
            "record again, or keep these arrays."
        )
    return Arrays(str(path), x, y, lengths, scale, snapshot, h0, c0, chosen or None)


def recorded_layers(text: str) -> tuple[str, ...]:
    """The layers whose inputs a recorded file holds; none for plain arrays, and for what user code makes.

    Raises:
        BTCompressError: the file cannot be read.
    """
    return () if is_reference(text) and not os.path.lexists(text) else layers_in(names_in(Path(text)))


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
        check_lengths(
            f"{which}: lengths", lengths.cpu().numpy(), x.shape[1] if x.dim() == 3 else max(x.shape[1:], default=1)
        )
    if not torch.isfinite(x).all():
        raise BTCompressError(f"{which}: one of them holds NaN or infinity in x. Repair it.")


def _state_of_batch(which: str, parts: list[Any], batch: Batch) -> State | None:
    """Initial states of a batch of a user's, shape ``(directions * L, B, H)``."""
    if all(part is None for part in parts):
        return None
    given = parts if parts[1] is not None else parts[:1]
    for name, part in zip(STATES, given, strict=False):
        fits = isinstance(part, Tensor) and part.dim() == 3 and part.is_floating_point() and part.numel()
        if not fits or len(part) != len(batch.x):
            found = f"shape {tuple(part.shape)} and dtype {part.dtype}" if isinstance(part, Tensor) else "no numbers"
            raise BTCompressError(
                f"{which}: {name} has {found}. Give h0, and c0 of an LSTM, of shape (directions * layers, H) for each "
                "item."
            )
        if not torch.isfinite(part).all():
            raise BTCompressError(f"{which}: one of them holds NaN or infinity in {name}. Repair it.")
    return tuple(part.transpose(0, 1).contiguous() for part in given)
