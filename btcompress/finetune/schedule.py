"""The learning rate of each step and the last epoch of a training, as its settings and the epochs done say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from btcompress.finetune.config import TrainConfig

#: What is left of the rate once an epoch was undone.
_AFTER_SETBACK = 1 / 2


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, then a cosine to 0; a shorter cosine to 0 from where it stands once nothing gets better.

    Where epochs that made things worse are undone, each of them leaves half of it all.

    Attributes:
        config: how to train.
        n_steps: steps in an epoch.
        falls_after: epochs after which none had been better for too long; None where that has not come.
        setbacks: how many epochs were undone so far.
    """

    config: TrainConfig
    n_steps: int
    falls_after: int | None = None
    setbacks: int = 0

    @classmethod
    def of(cls, config: TrainConfig, n_steps: int, best: Iterable[int], setbacks: int = 0) -> Schedule:
        """The schedule as it is once some epochs are done.

        Args:
            config: how to train.
            n_steps: steps in an epoch.
            best: after each epoch done, the number of the best one so far, 0 for the start.
            setbacks: how many of them were undone.
        """
        patience = config.patience or math.inf
        stuck = (epoch for epoch, best_epoch in enumerate(best, 1) if epoch - best_epoch >= patience)
        return cls(config, n_steps, next(stuck, None), setbacks)

    @property
    def last_epoch(self) -> int:
        """The epoch after which training ends."""
        epochs = self.config.epochs
        return epochs if self.falls_after is None else min(self.falls_after + self.config.patience, epochs)

    def share(self, step: int) -> float:
        """Learning rate of a step, counted from 0, as a share of its peak."""
        start = math.inf if self.falls_after is None else self.falls_after * self.n_steps
        share = _AFTER_SETBACK**self.setbacks
        if step < start:
            return share * self._planned(step)
        stop = self.last_epoch * self.n_steps
        return share * self._planned(int(start)) * _descent((step - start) / max(stop - start, 1))

    def _planned(self, step: int) -> float:
        n_steps = self.config.epochs * self.n_steps
        n_warm = round(self.config.warmup * n_steps)
        return (step + 1) / (n_warm + 1) if step < n_warm else _descent((step - n_warm) / max(n_steps - n_warm, 1))


def _descent(part: float) -> float:
    """From 1 to 0 along a cosine, as ``part`` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * part))
