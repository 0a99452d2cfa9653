"""What to calibrate on: sample inputs of one layer or of several."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from btcompress.errors import BTCompressError


@dataclass(frozen=True, slots=True)
class SampleInputs:
    """Sample inputs of one layer, or of all layers that a recorded file holds.

    Attributes:
        data: sequences of inputs, as fine-tuning takes them; labels are not looked at.
        layer: name of the recurrent or linear layer that they are inputs of. May be left out for a recorded file, which
            says it itself, and where the checkpoint has but one recurrent layer.
        scale: what to multiply the inputs of files by.

    Raises:
        BTCompressError: there is no name of data, or the scale is 0 or no number.
    """

    data: str
    layer: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.data:
            raise BTCompressError("sample inputs need a file, or the factory of a Dataset, but the name is empty.")
        if not self.scale or not math.isfinite(self.scale):
            raise BTCompressError(f"the scale of {self.data} is {self.scale}, but it must be a number other than 0.")


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to calibrate on.

    Attributes:
        inputs: sample inputs, those of each layer once.
        held_fraction: share of the sequences of each that is held back, to stop on and to measure on.
        train: whether to train the recurrent layers after the matrices are fitted to the inputs.

    Raises:
        BTCompressError: there are no sample inputs, two for one layer, or the share is not between 0 and 1.
    """

    inputs: tuple[SampleInputs, ...]
    held_fraction: float = 0.2
    train: bool = True

    def __post_init__(self) -> None:
        if not self.inputs:
            raise BTCompressError("there are no sample inputs to calibrate on. Give at least one file of them.")
        named = Counter(each.layer for each in self.inputs if each.layer is not None)
        twice = [name for name, n in named.items() if n > 1]
        if twice:
            raise BTCompressError(f"there are two sample inputs for {', '.join(twice)}. Give one for each layer.")
        if not 0 < self.held_fraction < 1:
            raise BTCompressError(
                f"the share of the sequences held back must be between 0 and 1, but {self.held_fraction} was given."
            )
