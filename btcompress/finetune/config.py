"""How to train: every choice in one value that is handed down and recorded in the result."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Literal

from btcompress.errors import BTCompressError
from btcompress.seeds import check_seed

Precision = Literal["no", "fp16", "bf16"]
Way = Literal["hidden states", "labels", "own model"]

#: Peak learning rates where none is given: the best of those measured, and torch's own for a network not known.
LEARNING_RATES: dict[Way, float] = {"hidden states": 1e-2, "labels": 1e-2, "own model": 1e-3}
#: The same for what was trained before, which higher ones undo at first and do not always win back.
LEARNING_RATES_ONCE_TRAINED: dict[Way, float] = {"hidden states": 1e-3, "labels": 3e-3, "own model": 1e-3}

#: Towards hidden states, the rate from a hidden-state error on that says that much is left to learn.
_FAR_RATE, _FAR = 3e-3, 0.25


def rate_from(error: float) -> float:
    """The learning rate at its peak, towards hidden states, that suits a start which was fitted to this error.

    Steps of one size undo a good fit and hardly move a bad one: ``0.003 min(1, error / 0.25)^1.5``, measured on three
    published models; see docs/math.md.
    """
    # The smallest float where nothing is left to learn: a rate of 0 is none.
    return max(_FAR_RATE * min(error / _FAR, 1.0) ** 1.5, sys.float_info.min)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of one training.

    Attributes:
        epochs: passes over the training sequences at most.
        batch_size: sequences in one step, of all processes and accumulated parts together.
        learning_rate: of AdamW at its peak; None for what suits the way of training and where the file stands.
        weight_decay: of AdamW.
        warmup: share of all steps over which the learning rate rises; it then falls to 0 along a cosine.
        clip: largest norm of the gradient; longer ones are shortened to it.
        patience: epochs without a better metric after which the learning rate falls to 0, along a cosine over as many
            more, and training ends; 0 to never end early.
        accumulate: parts into which a batch is split, one after the other, where memory is short.
        precision: mixed precision of the student's arithmetic.
        freeze: patterns of names of tensors that stay as they are.
        temperature: softens both sides of the distillation from logits.
        distill: share of the distillation from the teacher's logits in the loss, where labels are given too.
        seed: of the split, the order and every other draw, below 2^64.
        cpu: stay on the CPU though there is an accelerator.

    Raises:
        BTCompressError: a number is outside its range.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0
    patience: int = 10
    accumulate: int = 1
    precision: Precision = "no"
    freeze: tuple[str, ...] = ()
    temperature: float = 2.0
    distill: float = 0.5
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("patience", 0)):
            _check(name, getattr(self, name), least, 2**63 - 1)
        check_seed(self.seed)
        for name in ("learning_rate", "clip", "temperature"):
            if getattr(self, name) is not None:
                _check(name, getattr(self, name), math.ulp(0.0), math.inf)
        _check("weight_decay", self.weight_decay, 0, math.inf)
        for name in ("warmup", "distill"):
            _check(name, getattr(self, name), 0, 1)

    def of_way(self, way: Way, *, trained: bool = False, error: float | None = None) -> TrainConfig:
        """The same with the learning rate of a way of training, where none is given.

        Args:
            way: what is learned from.
            trained: whether the start was calibrated or fine-tuned before.
            error: the hidden-state error that this ended at, where it is known.
        """
        if self.learning_rate is not None:
            return self
        rate = (LEARNING_RATES_ONCE_TRAINED if trained else LEARNING_RATES)[way]
        near = trained and error is not None and way == "hidden states"
        return replace(self, learning_rate=min(rate, rate_from(error)) if near and error is not None else rate)

    @property
    def peak(self) -> float:
        """The learning rate at its peak; where none is given, that for a network not known."""
        return LEARNING_RATES["own model"] if self.learning_rate is None else self.learning_rate


def _check(name: str, value: float, least: float, most: float) -> None:
    if not (least <= value <= most) or math.isinf(value):
        upper = f" and at most {most}" if math.isfinite(most) else ""
        span = "above 0" if least == math.ulp(0.0) else f"at least {least}{upper}"
        raise BTCompressError(f"{name} must be {span}, but {value} was given.")
