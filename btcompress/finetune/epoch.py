"""What one epoch came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to: a row of the metrics file.

    Attributes:
        epoch: its number, from 1.
        epochs: how many there are at most, as things stood at its start.
        loss: mean over the epoch.
        metric: on the sequences held back, after it.
        learning_rate: at its end.
        cancellation: the worst of :func:`btcompress.finetune.blocks.cancellation`.
        seconds: it took.
        sequences_per_second: trained on.
    """

    epoch: int
    epochs: int
    loss: float
    metric: float
    learning_rate: float
    cancellation: float
    seconds: float
    sequences_per_second: float


OnEpoch = Callable[[Epoch], None]
