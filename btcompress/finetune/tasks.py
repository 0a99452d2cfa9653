"""What a network is trained for: the loss, and the metric on sequences held back.

Losses and metrics are sums with a weight each, so that batches may be cut into parts and spread over
processes: sums and weights add up, and are divided once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax

from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.data import Batch
from btcompress.finetune.networks import States

Kind = Literal["classes", "values"]
Sums = tuple[Tensor, Tensor]
Outputs = TypeVar("Outputs", contravariant=True)

#: Bytes of a teacher's states that are kept.
_MOST_KEPT = 1 << 30


class Task(Protocol[Outputs]):
    """What to learn.

    Attributes:
        metric: its name.
        higher_is_better: whether a larger metric is better.
        teacher: the dense network, or None.
    """

    metric: str
    higher_is_better: bool
    teacher: nn.Module | None

    def loss(self, outputs: Outputs, batch: Batch) -> Sums:
        """The loss summed over a batch, and its weight; the first is differentiable."""

    def measure(self, outputs: Outputs, batch: Batch) -> Sums:
        """The metric's sum over a batch, and its weight."""

    def finish(self, total: float, weight: float) -> float:
        """The metric from its sums."""


class HiddenStates:
    """Give the teacher's hidden sequences and final states: relative error of what the next layer would see.

    Loss ``||v - v'||^2 / ||v||^2`` with ``v`` the hidden sequence, the final ``h`` and the final ``c``; metric
    ``||h - h'|| / ||h||`` of the hidden sequences alone.

    Args:
        teacher: the dense LSTM.
        keep: whether to run the teacher but once over each sequence of a file, and keep what it gave. What it gives
            depends on the batch in its last digits, so a training that resumes must not.
    """

    metric = "hidden-state error"
    higher_is_better = False

    def __init__(self, teacher: nn.Module, *, keep: bool = False) -> None:
        self.teacher: nn.Module | None = teacher.requires_grad_(False).eval()
        self._kept: dict[tuple[str, int], States] = {}
        self._room = _MOST_KEPT if keep else 0

    def loss(self, outputs: States, batch: Batch) -> Sums:
        """See :class:`Task`."""
        wanted = self._wanted(batch)
        error = torch.stack([_squares(ours - theirs) for ours, theirs in zip(outputs, wanted, strict=True)]).sum()
        return error, torch.stack([_squares(theirs) for theirs in wanted]).sum()

    def measure(self, outputs: States, batch: Batch) -> Sums:
        """See :class:`Task`."""
        wanted = self._wanted(batch)[0]
        return _squares(outputs[0] - wanted), _squares(wanted)

    def finish(self, total: float, weight: float) -> float:
        """See :class:`Task`."""
        return math.sqrt(total / weight)

    def _wanted(self, batch: Batch) -> States:
        names = batch.names or ()
        if names and all(name in self._kept for name in names):
            hidden, h, c = zip(*(self._kept[name] for name in names), strict=True)
            states = _padded(hidden, batch.x.shape[1]), torch.stack(h, 1), torch.stack(c, 1)
            return cast(States, tuple(state.to(batch.x.device) for state in states))
        with torch.no_grad():
            states = cast(States, cast(nn.Module, self.teacher)(batch.x, batch.lengths, batch.state))
        size = sum(state.nbytes for state in states)
        if size <= self._room:
            self._room -= size
            axes = (0, 1, 1)  # of the sequences
            each = (state.cpu().unbind(axis) for state, axis in zip(states, axes, strict=True))
            self._kept.update(zip(names, zip(*each, strict=True), strict=bool(names)))
        return states


class Labels:
    """Predict labels or values, and the teacher's outputs where there is a teacher.

    Cross-entropy for whole-number labels, mean squared error for values. With a teacher the loss is
    ``(1 - a) task + a distillation``; the distillation is ``t^2 KL(teacher / t, student / t)`` for labels,
    the mean squared difference for values.

    Args:
        kind: labels or values.
        teacher: the dense network.
        temperature: ``t``.
        distill: ``a``.
    """

    def __init__(self, kind: Kind, teacher: nn.Module | None, temperature: float, distill: float) -> None:
        self.kind = kind
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.temperature = temperature
        self.distill = distill
        self.metric = "accuracy" if kind == "classes" else "mean squared error"
        self.higher_is_better = kind == "classes"

    def loss(self, outputs: Tensor, batch: Batch) -> Sums:
        """See :class:`Task`."""
        y = self._targets(outputs, batch)
        rows, wanted = _rows(outputs, y, batch, self.kind), _rows(y, y, batch, self.kind)
        weight = rows.new_tensor(float(len(rows)))
        task = cross_entropy(rows, wanted, reduction="sum") if self.kind == "classes" else _error(rows, wanted)
        if self.teacher is None or not self.distill:
            return task, weight
        with torch.no_grad():
            taught = _rows(self.teacher(batch.x, batch.lengths, batch.state), y, batch, self.kind)
        if self.kind == "classes":
            ours, theirs = log_softmax(rows / self.temperature, -1), softmax(taught / self.temperature, -1)
            distillation = self.temperature**2 * kl_div(ours, theirs, reduction="sum")
        else:
            distillation = _error(rows, taught)
        return (1 - self.distill) * task + self.distill * distillation, weight

    def measure(self, outputs: Tensor, batch: Batch) -> Sums:
        """See :class:`Task`."""
        y = self._targets(outputs, batch)
        rows, wanted = _rows(outputs, y, batch, self.kind), _rows(y, y, batch, self.kind)
        total = (rows.argmax(-1) == wanted).sum() if self.kind == "classes" else _error(rows, wanted)
        return total, total.new_tensor(len(rows))

    def finish(self, total: float, weight: float) -> float:
        """See :class:`Task`."""
        return total / weight

    def _targets(self, outputs: object, batch: Batch) -> Tensor:
        """The labels or values of a batch, found to fit the outputs; one value a row gets an axis of its own."""
        y = cast(Tensor, batch.y)
        if not isinstance(outputs, Tensor):
            raise BTCompressError(f"the network gives {type(outputs).__name__}, no tensor of scores. Give a --loss.")
        if self.kind == "values" and outputs.dim() == y.dim() + 1 and outputs.shape[-1] == 1:
            y = y.unsqueeze(-1)
        expected = outputs.shape[:-1] if self.kind == "classes" else outputs.shape
        if y.shape != expected:
            raise ShapeError(
                f"the network gives outputs of shape {tuple(outputs.shape)} for a batch whose {self.kind} y have shape "
                f"{tuple(y.shape)}. y of shape {tuple(expected)} would fit: whole numbers are classes, "
                "floating-point numbers are values."
            )
        if self.kind == "classes":
            used = _rows(y, y, batch, self.kind)
            if int(used.min()) < 0 or int(used.max()) >= outputs.shape[-1]:
                raise BTCompressError(
                    f"y has classes from {int(used.min())} to {int(used.max())}, but the network tells "
                    f"{outputs.shape[-1]} apart, 0 to {outputs.shape[-1] - 1}. Number the classes as the model does."
                )
        elif not bool(torch.isfinite(y).all()):
            raise BTCompressError("y holds NaN or infinity. Repair or remove these sequences.")
        return y


def _rows(values: Tensor, y: Tensor, batch: Batch, kind: Kind) -> Tensor:
    """One row for each sequence, or for each step that is not padding."""
    per_step = y.dim() - (kind == "values") == 2
    if not per_step:
        return values
    if batch.lengths is None:
        return values.flatten(0, 1)
    steps = torch.arange(values.shape[1], device=values.device)
    return values[steps < batch.lengths.to(values.device)[:, None]]


class OwnLoss:
    """A user's loss of ``(outputs, y)``, a mean over the batch; it is the metric too.

    Args:
        function: the loss.
        teacher: the dense network, to be measured beside the others.
    """

    metric = "loss"
    higher_is_better = False

    def __init__(self, function: Callable[..., Any], teacher: nn.Module | None) -> None:
        self.function = function
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()

    def loss(self, outputs: object, batch: Batch) -> Sums:
        """See :class:`Task`."""
        value = self.function(outputs, batch.y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise BTCompressError("the function given with --loss must return one number, as a tensor.")
        return value.reshape(()) * len(batch.x), value.new_tensor(float(len(batch.x)))

    def measure(self, outputs: object, batch: Batch) -> Sums:
        """See :class:`Task`."""
        return self.loss(outputs, batch)

    def finish(self, total: float, weight: float) -> float:
        """See :class:`Task`."""
        return total / weight


def label_kind(y: Tensor) -> Kind:
    """Whole numbers are labels, all else is values."""
    return "values" if y.is_floating_point() else "classes"


def _padded(rows: Sequence[Tensor], n_steps: int) -> Tensor:
    """Hidden states of some sequences, each kept from a batch of its own length: beyond their ends they are 0."""
    padded = rows[0].new_zeros(len(rows), n_steps, rows[0].shape[-1])
    for row, own in zip(padded, rows, strict=True):
        row[: len(own)] = own[:n_steps]
    return padded


def _squares(value: Tensor) -> Tensor:
    return value.float().square().sum() if value.dtype.itemsize < 4 else value.square().sum()


def _error(rows: Tensor, wanted: Tensor) -> Tensor:
    """Squared differences summed over rows, each row's the mean of its entries."""
    return mse_loss(rows, wanted.to(rows.dtype), reduction="sum") / rows.shape[-1]
