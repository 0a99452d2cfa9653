"""Noise over pictures: what models that were trained without it are tested on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from btcompress.errors import BTCompressError

NoiseKind = Literal["gaussian", "occlusion"]
NOISE_KINDS: tuple[NoiseKind, ...] = ("gaussian", "occlusion")
#: Brightness of what lies over a picture; black is 0 and white is 255.
_GREY = 128
_CHUNK = 64  # pictures at once, which bounds memory


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise over each picture of a set.

    Attributes:
        kind: ``"gaussian"``: independent for each pixel and colour; ``"occlusion"``: a grey rectangle of the
            proportions of the picture, at a random place.
        strength: its standard deviation, where black is 0 and white is 1; the share of the area that is covered.
        seed: of the draws.

    Raises:
        BTCompressError: the strength is negative or no number, or more than all of a picture is to be covered.
    """

    kind: NoiseKind
    strength: float
    seed: int = 0

    def __post_init__(self) -> None:
        # So that it is refused where it is no number, too.
        if not 0 <= self.strength <= (1 if self.kind == "occlusion" else math.inf):
            raise BTCompressError(
                f"{self.kind} noise of strength {self.strength} was asked for. Give a standard deviation of at least 0 "
                "for gaussian noise, and a share between 0 and 1 for occlusion."
            )

    def over(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The pictures, ``uint8`` of shape ``(n, ..., height, width, colours)``, with noise; a copy.

        What lies over the frames of a clip stays at its place.
        """
        generator = torch.Generator().manual_seed(self.seed)
        noisy = pictures.copy()
        for start in range(0, len(noisy), _CHUNK):
            some = noisy[start : start + _CHUNK]
            if self.kind == "gaussian":
                drawn = torch.randn(some.shape, generator=generator).mul_(255 * self.strength).numpy()
                some[:] = np.clip(np.rint(some + drawn), 0, 255).astype(np.uint8)
            else:
                self._cover(some, generator)
        return noisy

    def _cover(self, pictures: npt.NDArray[np.uint8], generator: torch.Generator) -> None:
        sides = pictures.shape[-3:-1]
        covered = [round(side * math.sqrt(self.strength)) for side in sides]
        for picture in pictures:
            top, left = (
                int(torch.randint(side - length + 1, (), generator=generator))
                for side, length in zip(sides, covered, strict=True)
            )
            picture[..., top : top + covered[0], left : left + covered[1], :] = _GREY
