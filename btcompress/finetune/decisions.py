"""How often a model decides as the dense one does: the figure that says what its errors mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, RecurrentEntry
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.heads import deciding_head
from btcompress.finetune.networks import (
    Recurrent,
    linear_of,
    shapes_of,
    student_of,
    teacher_of,
    training_dtype,
)
from btcompress.finetune.outputs import steps_axis, steps_that_count, tensors_in
from btcompress.results import Agreement
from btcompress.shapes import MatrixShape

#: Outputs of a head that are formed at once.
_MOST_OUTPUTS = 2**22


@torch.no_grad()
def agreement_on(
    compressed: CompressedCheckpoint, dense: Checkpoint, entry: RecurrentEntry, data: Data, batch_size: int = 32
) -> Agreement | None:
    """How often a recurrent layer and its head decide alike, compressed and dense, each with its own version of both.

    The head is the linear layer that :func:`btcompress.finetune.heads.deciding_head` finds. It decides on every step
    that counts, and once more on the final states of the last layer, directions side by side. Runs on the CPU, from
    the initial states that the data give.

    Args:
        compressed: the result.
        dense: what it was made from.
        entry: the recurrent layer.
        data: sequences of its inputs.
        batch_size: sequences at once.

    Returns:
        The agreement; None where it is not clear which layer is the head, or the dense checkpoint lacks it.

    Raises:
        CheckpointError: the dense checkpoint lacks a tensor of the layer, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    head = deciding_head(compressed.outline(), entry)
    if head is None or getattr(dense.tensors.get(head.key), "shape", None) != (head.out_features, head.in_features):
        return None
    dtype = training_dtype(compressed.outline(), entry)
    ours = _Deciding(student_of(compressed, entry), head.key, compressed.tensors, shapes_of(compressed))
    theirs = _Deciding(teacher_of(dense, entry, dtype), head.key, dense.tensors, {})
    n_at_once = max(_MOST_OUTPUTS // head.out_features, 1)
    steps, ends = _Tally(probabilities=False), _Tally(probabilities=False)
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), dtype)
        for tally, our_states, their_states in zip(
            (steps, ends), ours.states(batch), theirs.states(batch), strict=True
        ):
            for some, others in zip(our_states.split(n_at_once), their_states.split(n_at_once), strict=True):
                tally.add(ours.head(some), theirs.head(others))
    return Agreement(steps.share, ends.share, steps.n, ends.n)


@torch.no_grad()
def agreement_of(
    network: nn.Module,
    teacher: nn.Module,
    data: Data,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Agreement | None:
    """How often two networks decide alike, by the first of their outputs that holds scores.

    Of shape ``(B, T, C)``, or ``(B, C, T)`` with the ``T`` steps of the inputs, they decide on each step that counts;
    of shape ``(B, C)`` once for each sequence. ``(B, T)`` and ``(B,)`` are such with one output, which decides by its
    sign, or by the side of 1/2 that it lies on where all of the teacher's are probabilities.

    Args:
        network: called with inputs, lengths and initial states.
        teacher: likewise; the dense one.
        data: sequences of their inputs.
        batch_size: sequences at once.
        device: where the networks are.
        dtype: that they compute in.

    Returns:
        The agreement; None where no output holds scores, or what is wanted are values, not classes: floats, or many
        numbers where a sequence has one decision.

    Raises:
        BTCompressError: an input is not finite.
    """
    network.eval()
    teacher.eval()
    steps, ends = _Tally(), _Tally()
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(device, dtype)
        if batch.y is not None and batch.y.is_floating_point():
            return None
        ours, theirs = (_scores(module(batch.x, batch.lengths, batch.state), batch) for module in (network, teacher))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        if ours.dim() == 2 and batch.y is not None and batch.y.numel() > len(batch.y):
            return None
        if ours.dim() == 2:
            ends.add(ours, theirs)
        else:
            counts = steps_that_count(batch, ours.shape[1])
            steps.add(ours[counts.to(device)], theirs[counts.to(device)])
    return Agreement(steps.share, ends.share, steps.n, ends.n)


@dataclass(slots=True)
class _Tally:
    """Decisions that are alike.

    Attributes:
        n: decisions compared.
        alike: of those.
        halves_alike: likewise, where a single output decides by the side of 1/2 that it lies on.
        probabilities: whether all of the teacher's outputs lie between 0 and 1; False where they are known to be none.
    """

    n: int = 0
    alike: int = 0
    halves_alike: int = 0
    probabilities: bool = True

    @property
    def share(self) -> float | None:
        """The share of decisions that are alike; None where there are none."""
        return (self.halves_alike if self.probabilities else self.alike) / self.n if self.n else None

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Count the decisions of rows of scores, shape ``(n, C)``."""
        self.n += len(ours)
        if ours.shape[1] > 1:
            alike = int((ours.argmax(1) == theirs.argmax(1)).sum())
            self.alike += alike
            self.halves_alike += alike
            return
        self.alike += int(((ours > 0) == (theirs > 0)).sum())
        self.halves_alike += int(((ours > 0.5) == (theirs > 0.5)).sum())
        self.probabilities &= bool(((theirs >= 0) & (theirs <= 1)).all())


class _Deciding:
    """A recurrent layer and its head, the head apart from it, so that it need not run over all steps at once."""

    def __init__(
        self, recurrent: Recurrent, key: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, MatrixShape]
    ) -> None:
        self.recurrent = recurrent.eval()
        self.head = linear_of(key, tensors, shapes, next(recurrent.parameters()).dtype)

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the head reads: hidden states of all steps that count, and final ones, shapes ``(n, inputs)``."""
        hidden, h, *_ = self.recurrent(batch.x, batch.lengths, batch.state)
        n_directions = 1 + self.recurrent.entry.bidirectional
        return hidden[steps_that_count(batch, hidden.shape[1])], torch.cat(list(h[-n_directions:]), dim=-1)


def _scores(outputs: object, batch: Batch) -> Tensor | None:
    """The first scores in a network's outputs, shape ``(B, C)`` or ``(B, T, C)``; None where there are none."""
    for scores in tensors_in(outputs):
        if not scores.numel() or scores.shape[:1] != batch.x.shape[:1] or scores.dim() > 3:
            continue
        if scores.dim() == 1:
            return scores[:, None]
        axis = steps_axis(scores, batch)
        if scores.dim() == 2:
            # As many numbers as there are steps may still be classes, which labels would say.
            of_classes = axis is None or (batch.y is not None and batch.y.dim() == 1)
            return scores if of_classes else scores[..., None]
        if axis is not None or batch.lengths is None:
            return scores.transpose(1, 2) if axis == 2 else scores
    return None
