"""Pictures with objects of known shape, colour, size and place, over textured backgrounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from btcompress.demo.digits import handwritten_digits, uniform
from btcompress.errors import BTCompressError

SHAPES = ("disc", "ring", "square", "triangle", "cross", "digit")
_COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.75, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.9, 0.1),
    "purple": (0.75, 0.15, 0.85),
    "white": (0.95, 0.95, 0.95),
}
COLOURS = tuple(_COLOURS)
SIZES = ("large", "small")
_PLACES = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
#: From the top, and from the left in each row.
PLACES = tuple(_PLACES)
#: Objects in a picture.
N_OBJECTS = 2

# Ranges of what is drawn at random for each picture. Lengths are in sides of the picture.
_SIDE = {"large": (0.36, 0.4), "small": (0.2, 0.23)}  # of an object
_JITTER = 0.03  # of an object's centre from that of its place
_TILT = (-0.15, 0.15)  # angle of an object, radians
_SHADE = 0.08  # of each colour of an object from that of its name
_BACKGROUND = (0.0, 0.3)  # each colour of the background
_BACKGROUND_CELLS = 4  # points each way between which the background's colours are interpolated
_WAVE = (0.0, 0.08)  # height of the waves over it
_WAVES = (3.0, 12.0)  # of them across the picture
_NOISE = 0.03  # standard deviation of each pixel and colour
_WINDOW = 0.52  # side of what is drawn anew for an object, which is never longer, even tilted and off its place
_GLYPH = 32  # pixels of the bitmap of an object, each way
_CHUNK = 64  # pictures drawn at once, which bounds memory


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """Pictures and what they show.

    Attributes:
        images: ``uint8``, shape ``(n, side, side, 3)``.
        objects: ``int8``, shape ``(n, N_OBJECTS, 4)``: positions in :data:`SHAPES`, :data:`COLOURS`, :data:`SIZES` and
            :data:`PLACES` of each object, in the order of their places.
    """

    images: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.int8]


def make_scenes(n_scenes: int, *, side: int, generator: torch.Generator) -> Scenes:
    """Draw pictures; shapes, colours and sizes are independent, and no two objects are at one place.

    Args:
        n_scenes: pictures to draw.
        side: of a picture, in pixels.
        generator: source of all randomness, on the CPU.

    Raises:
        BTCompressError: a size below 1, or scikit-learn is missing.
    """
    if min(n_scenes, side) < 1:
        raise BTCompressError(f"n_scenes={n_scenes}, side={side} was asked for. Both are at least 1.")
    glyphs = _glyphs()
    images = torch.empty(n_scenes, side, side, 3, dtype=torch.uint8)
    objects = _objects(n_scenes, generator)
    for image, shown in zip(images.split(_CHUNK), objects.split(_CHUNK), strict=True):
        pixels = _background(len(image), side, generator)  # (n, side, side, 3)
        for each in shown.unbind(1):
            _draw(pixels, each, glyphs, generator)
        pixels.add_(torch.randn(pixels.shape, generator=generator), alpha=_NOISE)
        image.copy_(pixels.mul_(255).round_().clamp_(0, 255))
    return Scenes(images.numpy(), objects.to(torch.int8).numpy())


def _objects(n: int, generator: torch.Generator) -> Tensor:
    """What is where, shape ``(n, N_OBJECTS, 4)``."""
    kinds = [torch.randint(len(of), (n, N_OBJECTS), generator=generator) for of in (SHAPES, COLOURS, SIZES)]
    places = torch.rand(n, len(PLACES), generator=generator).argsort(1)[:, :N_OBJECTS].sort(1).values
    return torch.stack([*kinds, places], dim=-1)


def _background(n: int, side: int, generator: torch.Generator) -> Tensor:
    """Smooth colours with waves over them, shape ``(n, side, side, 3)``."""
    cells = uniform(_BACKGROUND, (n, 3, _BACKGROUND_CELLS, _BACKGROUND_CELLS), generator)
    smooth = interpolate(cells, (side, side), mode="bilinear", align_corners=True)
    angle, waves = uniform((0, math.pi), (n, 1, 1), generator), uniform(_WAVES, (n, 1, 1), generator)
    phase, height = uniform((0, 2 * math.pi), (n, 1, 1), generator), uniform(_WAVE, (n, 1, 1), generator)
    steps = torch.linspace(0, 2 * math.pi, side)
    along = torch.cos(angle) * steps + torch.sin(angle) * steps[:, None]  # (n, side, side)
    return (smooth + (height * torch.sin(waves * along + phase))[:, None]).permute(0, 2, 3, 1).contiguous()


def _draw(pixels: Tensor, objects: Tensor, glyphs: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    """Draw one object into each picture, in place."""
    n, side = pixels.shape[:2]
    shape, colour, size, place = objects.T
    named, digits = glyphs
    which = torch.randint(len(digits), (n,), generator=generator)
    is_digit = shape == SHAPES.index("digit")
    bitmaps = torch.where(is_digit[:, None, None], digits[which], named[shape.clamp(max=len(named) - 1)])
    low, high = torch.tensor([_SIDE[name] for name in SIZES])[size].T
    length = low + (high - low) * torch.rand(n, generator=generator)
    middle = torch.tensor([_PLACES[name] for name in PLACES])[place]  # column, row
    middle += uniform((-_JITTER, _JITTER), (n, 2), generator)
    angle = uniform(_TILT, (n,), generator)

    # Only a window is drawn, which holds the object wherever it is in its place.
    window = math.ceil(_WINDOW * side)
    corner = ((middle - _WINDOW / 2) * side).round().long().clamp(0, side - window)
    centre = 2 * (middle * side - corner) / window - 1
    # Window and bitmap coordinates run from -1 to 1, rows downwards: bitmap = rotation^-1 (window - centre) / length.
    length = length * side / window
    cos, sin = torch.cos(angle) / length, torch.sin(angle) / length
    linear = torch.stack([cos, sin, -sin, cos], dim=-1).view(n, 2, 2)
    poses = torch.cat([linear, -linear @ centre[..., None]], dim=-1)
    grid = affine_grid(poses, [n, 1, window, window], align_corners=False)
    coverage = grid_sample(bitmaps[:, None], grid, align_corners=False)[:, 0, ..., None]  # (n, window, window, 1)
    ink = torch.tensor([_COLOURS[name] for name in COLOURS])[colour]
    ink = (ink + uniform((-_SHADE, _SHADE), (n, 3), generator)).clamp_(0, 1)[:, None, None]
    columns, rows = (corner[..., None] + torch.arange(window)).unbind(1)  # (n, window) each
    index = torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]
    pixels[index] = torch.lerp(pixels[index], ink, coverage)


def _glyphs() -> tuple[Tensor, Tensor]:
    """Ink from 0 to 1: of each shape but digits, shape ``(5, 32, 32)``, and of all digits of scikit-learn's set."""
    fine = 4  # points each way in a pixel, over which ink is averaged
    across = ((torch.arange(_GLYPH * fine) + 0.5) / (_GLYPH * fine) * 2 - 1)[None, :]
    down = across.T
    far = torch.hypot(across, down)
    inside = {
        "disc": far < 0.95,
        "ring": (far < 0.97) & (far > 0.6),
        "square": torch.maximum(across.abs(), down.abs()) < 0.82,
        "triangle": (down < 0.8) & (across.abs() < (down + 0.95) * 0.55),
        "cross": torch.minimum(across.abs(), down.abs()).lt(0.27) & torch.maximum(across.abs(), down.abs()).lt(0.95),
    }
    named = torch.stack([inside[name].float() for name in SHAPES if name != "digit"])
    named = interpolate(named[:, None], (_GLYPH, _GLYPH), mode="area")[:, 0]
    return named, interpolate(handwritten_digits(), (_GLYPH, _GLYPH), mode="bilinear", align_corners=False)[:, 0]
