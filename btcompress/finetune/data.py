"""Sequences to train on: arrays in files, memory-mapped where the format allows, or a user's Dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
from btcompress.finetune.arrayfiles import names_in, read_arrays
from btcompress.finetune.items import NAMES, STATES, alike, parts_of, some, states_of
from btcompress.finetune.recorded import MARK, array_name, choose_layer, layers_in
from btcompress.finetune.references import is_reference, resolve
from btcompress.seeds import check_seed

#: Kinds of dtypes that are real numbers.
_REAL = "fiub"


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

    @property
    def layer(self) -> str | None:
        """The layer that these were recorded as inputs of; None where nobody knows."""

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
        x: shape ``(N, T, I)``, or ``(steps in all, I)`` for sequences one after another; any real dtype.
        y: labels or targets, beginning with ``N``, or None.
        lengths: steps of each sequence, shape ``(N,)``, 1 to ``T``, or adding up to the steps in all; or None.
        scale: what to multiply inputs by.
        snapshot: of the file, which must stay as it is; None for arrays that lie in none.
        h0: initial ``h``, shape ``(N, directions * L, H)`` or of the projected size, or None for zeros.
        c0: initial ``c``, shape ``(N, directions * L, H)``, or None for zeros.
        layer: the layer that these were recorded as inputs of; its name stands before those of the arrays.
        starts: first step of each sequence in ``x``, where they lie one after another.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[Any] | None
    lengths: NDArray[Any] | None
    scale: float
    snapshot: Snapshot | None = None
    h0: NDArray[Any] | None = None
    c0: NDArray[Any] | None = None
    layer: str | None = None
    starts: NDArray[np.int64] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        one_after_another = self.x.ndim == 2 and self.lengths is not None
        if not (self.x.ndim == 3 or one_after_another) or 0 in self.x.shape or self.x.dtype.kind not in _REAL:
            raise BTCompressError(
                f"{self._called('x')} has shape {self.x.shape} and dtype {self.x.dtype}, but numbers of shape "
                "(N, T, I) are needed: N sequences of T steps of I inputs, none of them 0; or (steps in all, I), with "
                "the steps of each sequence in lengths."
            )
        if one_after_another and self.lengths is not None:
            object.__setattr__(self, "starts", _starts(self._called("lengths"), self.lengths, len(self.x)))
        elif self.lengths is not None:
            _check_entries(self._called("lengths"), self.lengths, self)
            _check_lengths(self._called("lengths"), self.lengths, self.x.shape[1])
        if self.y is not None:
            _check_entries(self._called("y"), self.y, self)
            _check_labels(self._called("y"), self.y, per_step=not one_after_another)
        self._check_states()

    def _check_states(self) -> None:
        if (self.h0 is None) != (self.c0 is None):
            given, missing = STATES if self.c0 is None else STATES[::-1]
            raise BTCompressError(f"{self._called(given)} is there without {missing}. Give both, or neither.")
        for name, value in zip(STATES, (self.h0, self.c0), strict=True):
            if value is None:
                continue
            _check_entries(self._called(name), value, self)
            if value.ndim != 3 or 0 in value.shape or value.dtype.kind not in _REAL:
                raise BTCompressError(
                    f"{self._called(name)} has shape {value.shape} and dtype {value.dtype}, but numbers of shape "
                    "(N, directions * layers, H) are needed: a state of each layer and direction for each sequence."
                )

    def __len__(self) -> int:
        return len(self.x if self.starts is None else self.starts)

    def _called(self, part: str) -> str:
        """File and name of an array, for messages."""
        return f"{self.name}: {array_name(self.layer or '', part)}"

    def batch(self, rows: Tensor) -> Batch:
        """The sequences at these positions, inputs scaled; see :class:`Data`."""
        if self.snapshot is not None:
            self.snapshot.check()
        index = rows.numpy()
        lengths = None if self.lengths is None else self.lengths[index].astype(np.int64)
        return Batch(
            self._finite("x", self._inputs(index, lengths).mul_(self.scale), index),
            None if self.y is None else _labels(self.y[index]),
            None if lengths is None else torch.from_numpy(lengths),
            tuple((self.name, row) for row in rows.tolist()),
            None
            if self.h0 is None or self.c0 is None
            else (self._state("h0", self.h0, index), self._state("c0", self.c0, index)),
        )

    def _inputs(self, index: NDArray[Any], lengths: NDArray[np.int64] | None) -> Tensor:
        """Some sequences, padded to the longest of them where they lie one after another."""
        if self.starts is None or lengths is None:
            return _wide(self.x[index])
        padded = np.zeros((len(index), lengths.max(), self.x.shape[1]), self.x.dtype)
        for row, (start, length) in enumerate(zip(self.starts[index], lengths, strict=True)):
            padded[row, :length] = self.x[start : start + length]
        return _wide(padded)

    def _state(self, name: str, states: NDArray[Any], index: NDArray[Any]) -> Tensor:
        """Initial states of some sequences, shape ``(directions * L, B, H)``."""
        return self._finite(name, _wide(states[index]), index).transpose(0, 1).contiguous()

    def _finite(self, part: str, values: Tensor, index: NDArray[Any]) -> Tensor:
        """The values, if they are all finite."""
        finite = torch.isfinite(values)
        if not finite.all():
            bad = index[~finite.flatten(1).all(1).numpy()][0]
            raise BTCompressError(
                f"{self.name}: sequence {bad} of {array_name(self.layer or '', part)} holds NaN or infinity, or "
                "numbers too large to scale. Repair or remove it."
            )
        return values


@dataclass(frozen=True, slots=True, eq=False)
class UserData:
    """A user's Dataset; items are ``x``, ``(x, y)``, ``(x, y, length)`` or mappings with these names.

    A mapping may hold ``h0`` and ``c0`` as well, shape ``(directions * L, H)``; those of a batch begin with ``B``.

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
            f"{path}: {chosen or 'the LSTM'} was seen to start from states that are not zero, as {MARK} says, "
            "but their arrays h0 and c0 are missing. Started from zeros it would compute something else: record "
            "again, or keep these arrays."
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


def _wide(values: NDArray[Any]) -> Tensor:
    """In float64 what has more digits than float32, the rest in float32."""
    precise = values.dtype.kind == "f" and values.dtype.itemsize >= np.dtype(np.float64).itemsize
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and that is looked for
        return torch.from_numpy(values.astype(np.float64 if precise else np.float32))


def _labels(rows: NDArray[Any]) -> Tensor:
    with np.errstate(over="ignore"):
        return torch.from_numpy(rows.astype(np.float64 if rows.dtype.kind == "f" else np.int64))


def _check_entries(what: str, values: NDArray[Any], data: Arrays) -> None:
    if values.shape[:1] != (len(data),):
        raise BTCompressError(
            f"{what} has shape {values.shape} and x has shape {data.x.shape}. Give one entry of it for each of the "
            f"{len(data)} sequences."
        )


def _check_labels(what: str, y: NDArray[Any], *, per_step: bool) -> None:
    if 0 in y.shape or y.dtype.kind not in _REAL:
        raise BTCompressError(
            f"{what} has shape {y.shape} and dtype {y.dtype}, but numbers are needed for each sequence."
        )
    most = np.iinfo(np.int64).max
    if y.dtype == np.uint64 and y.max() > most:
        raise BTCompressError(f"{what} has a class of {y.max()}, but {most} is the largest that there can be.")
    if not per_step and y.ndim > (2 if y.dtype.kind == "f" else 1):
        raise BTCompressError(
            f"{what} has shape {y.shape}, but where sequences lie one after another in x, labels are for whole "
            "sequences. Pad x to shape (N, T, I) for labels of each step."
        )


def _check_lengths(what: str, lengths: NDArray[Any], steps: int) -> None:
    needed = f"one whole number from 1 to {steps}, the steps of x, is needed for each sequence."
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise BTCompressError(f"{what} has shape {lengths.shape} and dtype {lengths.dtype}, but {needed}")
    if lengths.min() < 1 or lengths.max() > steps:
        raise BTCompressError(f"{what} has entries from {lengths.min()} to {lengths.max()}, but {needed}")


def _starts(what: str, lengths: NDArray[Any], steps: int) -> NDArray[np.int64]:
    """The first step of each sequence of those that lie one after another."""
    if not lengths.size:
        raise BTCompressError(f"{what} has shape {lengths.shape}, but the steps of at least one sequence are needed.")
    _check_lengths(what, lengths, steps)
    memory.require(3 * len(lengths) * 8, f"The places of the {len(lengths)} sequences of {what}", "Give fewer.")
    ends = np.cumsum(lengths, dtype=np.int64)
    if ends[-1] != steps:
        raise BTCompressError(
            f"{what} adds up to {ends[-1]}, but x has {steps} steps. Give the steps of all sequences one after another "
            "in x, and how many each of them has in lengths."
        )
    return ends - lengths.astype(np.int64)


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
        _check_lengths(
            f"{which}: lengths", lengths.cpu().numpy(), x.shape[1] if x.dim() == 3 else max(x.shape[1:], default=1)
        )
    if not torch.isfinite(x).all():
        raise BTCompressError(f"{which}: one of them holds NaN or infinity in x. Repair it.")


def _state_of_batch(which: str, parts: list[Any], batch: Batch) -> tuple[Tensor, Tensor] | None:
    """Initial states of a batch of a user's, shape ``(directions * L, B, H)``."""
    if all(part is None for part in parts):
        return None
    for name, part in zip(STATES, parts, strict=True):
        fits = isinstance(part, Tensor) and part.dim() == 3 and part.is_floating_point() and part.numel()
        if not fits or len(part) != len(batch.x):
            given = f"shape {tuple(part.shape)} and dtype {part.dtype}" if isinstance(part, Tensor) else "no numbers"
            raise BTCompressError(
                f"{which}: {name} has {given}. Give both h0 and c0, of shape (directions * layers, H) for each item."
            )
        if not torch.isfinite(part).all():
            raise BTCompressError(f"{which}: one of them holds NaN or infinity in {name}. Repair it.")
    h, c = (part.transpose(0, 1).contiguous() for part in parts)
    return h, c
