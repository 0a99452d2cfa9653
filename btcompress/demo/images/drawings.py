"""What is drawn: a handwritten digit of one colour over a smooth background, in one image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from btcompress.demo.digits import handwritten_digits, uniform
from btcompress.demo.noise import Noise
from btcompress.errors import BTCompressError

# Ranges of what is drawn at random for each image. Lengths are in sides of the image.
_SIZE = (0.9, 1.0)  # side of the digit
_JITTER = (-0.03, 0.03)  # of the digit's centre from that of the image, each way
_TILT = (-0.1, 0.1)  # angle of the digit, radians
_WHITE = 0.35  # share of white in the colour of the digit; the rest is a hue
_BACKGROUND = (0.0, 0.4)  # each colour of the background in each corner


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images that a model reads, and those that it is to draw.

    Attributes:
        x: what it reads, ``uint8``, shape ``(n, 1, side * side * 3)``: sequences of one step, each image flattened in C
            order from ``(side, side, 3)``.
        y: what it is to draw, shape ``(n, side * side * 3)``: the same images, without noise where ``x`` has some.
        shape: ``(side, side, 3)``.
    """

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.uint8]
    shape: tuple[int, int, int]

    def split(self, n_first: int) -> tuple[ImageSet, ImageSet]:
        """So many images and the rest, as views."""
        first, rest = slice(n_first), slice(n_first, None)
        return replace(self, x=self.x[first], y=self.y[first]), replace(self, x=self.x[rest], y=self.y[rest])

    def noisy(self, noise: Noise) -> ImageSet:
        """The same with noise over what is read."""
        return replace(self, x=noise.over(self.x.reshape(-1, *self.shape)).reshape(self.x.shape))


def make_images(n_images: int, *, side: int, generator: torch.Generator) -> ImageSet:
    """Draw images; digit, place, size, angle, colour and background are independent of one another.

    Args:
        n_images: images to draw.
        side: of an image, in pixels.
        generator: source of all randomness, on the CPU.

    Raises:
        BTCompressError: a size below 1, or scikit-learn is missing.
    """
    if min(n_images, side) < 1:
        raise BTCompressError(f"n_images={n_images}, side={side} was asked for. Both are at least 1.")
    digits = handwritten_digits()
    ink = digits[torch.randint(len(digits), (n_images,), generator=generator)]
    grid = affine_grid(_poses(n_images, generator), [n_images, 1, side, side], align_corners=False)
    coverage = grid_sample(ink, grid, align_corners=False)  # (n, 1, side, side)
    corners = uniform(_BACKGROUND, (n_images, 3, 2, 2), generator)
    background = interpolate(corners, (side, side), mode="bilinear", align_corners=True)
    drawn = torch.lerp(background, _colours(n_images, generator)[..., None, None], coverage)
    pixels = drawn.permute(0, 2, 3, 1).reshape(n_images, 1, -1).mul(255).round().to(torch.uint8).numpy()
    return ImageSet(pixels, pixels[:, 0], (side, side, 3))


def _poses(n: int, generator: torch.Generator) -> Tensor:
    """Maps from coordinates in the image to those in the digit, as ``affine_grid`` takes them, shape ``(n, 2, 3)``."""
    size, angle = uniform(_SIZE, (n,), generator), uniform(_TILT, (n,), generator)
    centre = 2 * uniform(_JITTER, (n, 2, 1), generator)
    # Both run from -1 to 1, rows downwards: digit = rotation^-1 (image - centre) / size.
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    linear = torch.stack([cos, sin, -sin, cos], dim=-1).view(n, 2, 2)
    return torch.cat([linear, -linear @ centre], dim=-1)


def _colours(n: int, generator: torch.Generator) -> Tensor:
    """Bright colours of all hues, shape ``(n, 3)``."""
    hue = 6 * torch.rand(n, 1, generator=generator)
    distance = (hue - torch.tensor([0.0, 2.0, 4.0]) + 3) % 6 - 3  # round the circle, from red, green and blue
    return _WHITE + (1 - _WHITE) * (2 - distance.abs()).clamp(0, 1)
