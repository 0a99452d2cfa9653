"""What a network is trained for: the loss, and the metric on sequences held back.

Losses and metrics are sums with a weight each, so that batches may be cut into parts and spread over
processes: sums and weights add up, and are divided once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax

from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.data import Batch
from btcompress.finetune.networks import States
from btcompress.finetune.outputs import steps_axis, steps_that_count, tensors_in

Kind = Literal["classes", "values"]
Sums = tuple[Tensor, Tensor]
Outputs = TypeVar("Outputs", contravariant=True)


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

    Loss ``||v - v'||^2 / ||v||^2`` with ``v`` the hidden sequence, the final ``h``, and the final ``c`` of an LSTM;
    metric ``||h - h'|| / ||h||`` of the hidden sequences alone.

    Args:
        teacher: the dense recurrent layer.
    """

    metric = "hidden-state error"
    higher_is_better = False

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher: nn.Module | None = teacher.requires_grad_(False).eval()

    def loss(self, outputs: States, batch: Batch) -> Sums:
        """See :class:`Task`."""
        wanted = self.wanted(batch)
        error = torch.stack([_squares(ours - theirs) for ours, theirs in zip(outputs, wanted, strict=True)]).sum()
        return error, torch.stack([_squares(theirs) for theirs in wanted]).sum()

    def measure(self, outputs: States, batch: Batch) -> Sums:
        """See :class:`Task`."""
        wanted = self.wanted(batch)[0]
        return _squares(outputs[0] - wanted), _squares(wanted)

    def finish(self, total: float, weight: float) -> float:
        """See :class:`Task`."""
        return math.sqrt(total / weight)

    def wanted(self, batch: Batch) -> States:
        """The teacher's states."""
        with torch.no_grad():
            return cast(States, cast(nn.Module, self.teacher)(batch.x, batch.lengths, batch.state))


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
    return values[steps_that_count(batch, values.shape[1]).to(values.device)]


class TeacherOutputs:
    """Give the teacher's outputs, whatever they are made of: relative error of all floating-point tensors in them.

    Loss ``sum_k ||o_k - o_k'||^2 / s_k`` over ``sum_k ||o_k||^2 / s_k`` with ``o_k`` the teacher's tensors and ``s_k``
    the mean square of each on some sequences, so that large ones do not outweigh the others; metric its root. Steps
    beyond a sequence's length count for nothing in tensors that have the steps of the inputs, and neither do entries
    that are infinite in the teacher's, as masked scores are.

    Args:
        teacher: the dense network.
        some: sequences on which the size of the outputs is measured.

    Raises:
        BTCompressError: the teacher gives no floating-point tensors, or only zeros.
    """

    metric = "output error"
    higher_is_better = False

    def __init__(self, teacher: nn.Module, some: Batch) -> None:
        self.teacher: nn.Module | None = teacher.requires_grad_(False).eval()
        self._sizes = [_mean_square(wanted) for wanted, _ in self._wanted(some)]
        if not any(self._sizes):
            raise BTCompressError(
                "without labels y and without a --loss, a network learns to give the dense one's outputs, but that "
                f"gives {'only zeros' if self._sizes else 'no floating-point tensors'}. Give labels, or a --loss."
            )

    def loss(self, outputs: object, batch: Batch) -> Sums:
        """See :class:`Task`."""
        wanted = self._wanted(batch)
        ours = list(tensors_in(outputs))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (ours, [each for each, _ in wanted])]
        if shapes[0] != shapes[1] or len(wanted) != len(self._sizes):
            raise ShapeError(
                f"the network gives tensors of shapes {shapes[0]} where the dense one gives {shapes[1]}. Both must "
                "give the same, and as many for each batch."
            )
        sums = [
            torch.stack([_squares((own - each).masked_fill(~counts, 0)), _squares(each.masked_fill(~counts, 0))]) / size
            for own, (each, counts), size in zip(ours, wanted, self._sizes, strict=True)
            if size
        ]
        total, weight = torch.stack(sums).sum(0).unbind()
        return total, weight.detach()

    def measure(self, outputs: object, batch: Batch) -> Sums:
        """See :class:`Task`."""
        return self.loss(outputs, batch)

    def finish(self, total: float, weight: float) -> float:
        """See :class:`Task`."""
        return math.sqrt(total / weight)

    @torch.no_grad()
    def _wanted(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The teacher's tensors, and which of their entries count."""
        given = cast(nn.Module, self.teacher)(batch.x, batch.lengths, batch.state)
        return [(tensor, _entries_that_count(tensor, batch)) for tensor in tensors_in(given)]


def _entries_that_count(output: Tensor, batch: Batch) -> Tensor:
    """Which entries of a network's output are finite and of no padding, boolean, in its shape."""
    finite, axis = torch.isfinite(output), steps_axis(output, batch)
    if axis is None:
        return finite
    steps = steps_that_count(batch, output.shape[axis]).to(output.device)
    return finite & steps.reshape(len(steps), *[1] * (axis - 1), -1, *[1] * (output.dim() - axis - 1))


def _mean_square(output: Tensor) -> float:
    finite = output[torch.isfinite(output)]
    return float(finite.double().square().mean()) if len(finite) else 0.0


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


def _squares(value: Tensor) -> Tensor:
    return value.float().square().sum() if value.dtype.itemsize < 4 else value.square().sum()


def _error(rows: Tensor, wanted: Tensor) -> Tensor:
    """Squared differences summed over rows, each row's the mean of its entries."""
    return mse_loss(rows, wanted.to(rows.dtype), reduction="sum") / rows.shape[-1]
