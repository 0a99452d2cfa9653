"""Sequences in arrays: padded or one after another, with labels and initial states where there are such."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btcompress import memory
from btcompress.errors import BTCompressError
from btcompress.files import Snapshot
from btcompress.finetune.batches import Batch
from btcompress.finetune.items import STATES
from btcompress.finetune.recorded import array_name
from btcompress.nn.celltype import State

#: Kinds of dtypes that are real numbers.
_REAL = "fiub"


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
        c0: initial ``c`` of an LSTM, shape ``(N, directions * L, H)``; not without ``h0``.
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
            check_lengths(self._called("lengths"), self.lengths, self.x.shape[1])
        if self.y is not None:
            _check_entries(self._called("y"), self.y, self)
            _check_labels(self._called("y"), self.y, per_step=not one_after_another)
        self._check_states()

    def _check_states(self) -> None:
        if self.h0 is None and self.c0 is not None:
            raise BTCompressError(f"{self._called('c0')} is there without h0. Give both, or neither.")
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
            self._states(index),
        )

    def _inputs(self, index: NDArray[Any], lengths: NDArray[np.int64] | None) -> Tensor:
        """Some sequences, padded to the longest of them where they lie one after another."""
        if self.starts is None or lengths is None:
            return _wide(self.x[index])
        padded = np.zeros((len(index), lengths.max(), self.x.shape[1]), self.x.dtype)
        for row, (start, length) in enumerate(zip(self.starts[index], lengths, strict=True)):
            padded[row, :length] = self.x[start : start + length]
        return _wide(padded)

    def _states(self, index: NDArray[Any]) -> State | None:
        """Initial states of some sequences, shapes ``(directions * L, B, H)``; None for zeros."""
        given = {name: states for name, states in zip(STATES, (self.h0, self.c0), strict=True) if states is not None}
        found = [self._finite(name, _wide(states[index]), index) for name, states in given.items()]
        return tuple(each.transpose(0, 1).contiguous() for each in found) or None

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


def check_lengths(what: str, lengths: NDArray[Any], steps: int) -> None:
    """Refuse lengths that are not from 1 to so many steps.

    Args:
        what: they are, for messages.
        lengths: one for each sequence.
        steps: the most.

    Raises:
        BTCompressError: they are of another shape or dtype, or out of range.
    """
    needed = f"one whole number from 1 to {steps}, the steps of x, is needed for each sequence."
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise BTCompressError(f"{what} has shape {lengths.shape} and dtype {lengths.dtype}, but {needed}")
    if lengths.min() < 1 or lengths.max() > steps:
        raise BTCompressError(f"{what} has entries from {lengths.min()} to {lengths.max()}, but {needed}")


def _starts(what: str, lengths: NDArray[Any], steps: int) -> NDArray[np.int64]:
    """The first step of each sequence of those that lie one after another."""
    if not lengths.size:
        raise BTCompressError(f"{what} has shape {lengths.shape}, but the steps of at least one sequence are needed.")
    check_lengths(what, lengths, steps)
    memory.require(3 * len(lengths) * 8, f"The places of the {len(lengths)} sequences of {what}", "Give fewer.")
    ends = np.cumsum(lengths, dtype=np.int64)
    if ends[-1] != steps:
        raise BTCompressError(
            f"{what} adds up to {ends[-1]}, but x has {steps} steps. Give the steps of all sequences one after another "
            "in x, and how many each of them has in lengths. Sequences (N, T) of words or other whole numbers, without "
            "inputs I, come from a Dataset of your own (MODULE:FACTORY in place of the file)."
        )
    return ends - lengths.astype(np.int64)
