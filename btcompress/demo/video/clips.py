"""Video-like clips with a known motion: one handwritten digit over a random background, 11 motion classes."""

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

# Columns: moves right, moves down, grows, turns clockwise; each -1, 0 or 1.
_MOTIONS = {
    "still": (0, 0, 0, 0),
    "moving left": (-1, 0, 0, 0),
    "moving right": (1, 0, 0, 0),
    "moving up": (0, -1, 0, 0),
    "moving down": (0, 1, 0, 0),
    "moving up and right": (1, -1, 0, 0),
    "moving down and left": (-1, 1, 0, 0),
    "growing": (0, 0, 1, 0),
    "shrinking": (0, 0, -1, 0),
    "turning clockwise": (0, 0, 0, 1),
    "turning counter-clockwise": (0, 0, 0, -1),
}
CLASS_NAMES = tuple(_MOTIONS)

# Ranges of what is drawn at random for each clip, whatever its class. Lengths are in frame heights.
_SIZE = (0.45, 0.6)  # side of the digit in mid-clip
_MARGIN = 0.45  # least distance of the digit's mid-clip centre from the frame's edge
_TILT = (-0.5, 0.5)  # angle in mid-clip, radians
_PATH = (0.1, 0.35)  # way moved from the first frame to the last
_GROWTH = (math.log(1.2), math.log(1.6))  # logarithm of the last size over the first
_TURN = (0.3, 1.2)  # angle turned from the first frame to the last, radians
_INK = (0.7, 1.0)  # each colour of the digit
_BACKGROUND = (0.0, 0.3)  # each colour of the background
_BACKGROUND_CELLS = (4, 5)  # points between which the background's colours are interpolated
_CHUNK = 64  # clips drawn at once, which bounds memory


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """Labelled clips, one row of inputs per frame.

    Attributes:
        x: ``uint8``, shape ``(n_clips, n_frames, height * width * 3)``; each frame flattened in C order
            from ``(height, width, 3)``.
        y: ``int64``, shape ``(n_clips,)``: positions in ``class_names``.
        class_names: what each class does.
        frame_shape: ``(height, width, 3)``.
    """

    x: npt.NDArray[np.uint8]
    y: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    frame_shape: tuple[int, int, int]

    def split(self, *sizes: int) -> tuple[Clips, ...]:
        """Consecutive parts of these sizes, as views.

        Raises:
            BTCompressError: the sizes do not sum to the number of clips.
        """
        if sum(sizes) != len(self.y) or min(sizes, default=0) < 0:
            raise BTCompressError(
                f"sizes {sizes} sum to {sum(sizes)}, but there are {len(self.y)} clips. Give sizes that sum to it."
            )
        bounds = np.cumsum(sizes)[:-1]
        parts = zip(np.split(self.x, bounds), np.split(self.y, bounds), strict=True)
        return tuple(Clips(x, y, self.class_names, self.frame_shape) for x, y in parts)

    def one_of_each(self) -> Clips:
        """The first clip of each class that has one, in the order of the classes."""
        _, rows = np.unique(self.y, return_index=True)
        return Clips(self.x[rows], self.y[rows], self.class_names, self.frame_shape)


def make_clips(
    n_clips: int,
    *,
    height: int = 120,
    width: int = 160,
    n_frames: int = 6,
    noise: float = 0.1,
    generator: torch.Generator,
) -> Clips:
    """Draw clips of one digit that stands still, moves, grows, shrinks or turns.

    Class, digit, colours, background, and the digit's place, size, angle and speed are drawn
    independently of one another. The pose drawn is that of mid-clip, so that first and last frames
    are equally far from it.

    Args:
        n_clips: clips to draw.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        n_frames: frames in a clip.
        noise: standard deviation of the sensor noise, independent for each frame, pixel and colour;
            black is 0 and white is 1.
        generator: source of all randomness, on the CPU.

    Raises:
        BTCompressError: a size below 1, negative noise, or scikit-learn is missing.
    """
    if min(n_clips, height, width, n_frames) < 1 or noise < 0:
        raise BTCompressError(
            f"n_clips={n_clips}, height={height}, width={width}, n_frames={n_frames}, noise={noise} was asked for. "
            "Sizes are at least 1 and noise at least 0."
        )
    digits = handwritten_digits()
    x = torch.empty(n_clips, n_frames, height * width * 3, dtype=torch.uint8)
    y = torch.randint(len(CLASS_NAMES), (n_clips,), generator=generator)
    for rows, classes in zip(torch.split(x, _CHUNK), torch.split(y, _CHUNK), strict=True):
        n = len(classes)
        glyphs = digits[torch.randint(len(digits), (n,), generator=generator)]
        coverage = _coverage(glyphs, _poses(classes, n_frames, width / height, generator), height, width)
        frames = _coloured(coverage, generator)  # (n, T, H, W, 3)
        frames.add_(torch.randn(frames.shape, generator=generator), alpha=noise)
        rows.copy_(frames.mul_(255).round_().clamp_(0, 255).reshape(rows.shape))
    return Clips(x.numpy(), y.numpy(), CLASS_NAMES, (height, width, 3))


def _poses(classes: Tensor, n_frames: int, aspect: float, generator: torch.Generator) -> Tensor:
    """Where the digit is in each frame, as the map from frame to digit coordinates.

    Args:
        classes: shape ``(n,)``.
        n_frames: ``T``.
        aspect: width over height.
        generator: source of the draws.

    Returns:
        Affine matrices as :func:`torch.nn.functional.affine_grid` takes them, shape ``(n, T, 2, 3)``.
    """
    n = len(classes)
    across, down, grows, turns = torch.tensor(list(_MOTIONS.values()), dtype=torch.float32)[classes].T[..., None]
    time = torch.linspace(-0.5, 0.5, n_frames) if n_frames > 1 else torch.zeros(1)
    path = uniform(_PATH, (n, 1), generator) / torch.hypot(across, down).clamp(min=1) * time  # (n, T)
    row = uniform((_MARGIN, 1 - _MARGIN), (n, 1), generator) + down * path
    column = uniform((_MARGIN, aspect - _MARGIN), (n, 1), generator) + across * path
    size = uniform(_SIZE, (n, 1), generator) * torch.exp(grows * uniform(_GROWTH, (n, 1), generator) * time)
    angle = uniform(_TILT, (n, 1), generator) + turns * uniform(_TURN, (n, 1), generator) * time

    # Frame and digit coordinates run from -1 to 1, rows downwards: digit = rotation^-1 (frame - centre) / size.
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    linear = torch.stack([cos * aspect, sin, -sin * aspect, cos], dim=-1).view(n, n_frames, 2, 2)
    centre = torch.stack([2 * column / aspect - 1, 2 * row - 1], dim=-1)[..., None]
    return torch.cat([linear, -linear @ centre], dim=-1)


def _coverage(glyphs: Tensor, poses: Tensor, height: int, width: int) -> Tensor:
    """How much of each pixel the digit covers, shape ``(n, T, H, W)``, from 0 to 1."""
    n, n_frames = poses.shape[:2]
    grid = affine_grid(poses.flatten(0, 1), [n * n_frames, 1, height, width], align_corners=False)
    images = glyphs.repeat_interleave(n_frames, dim=0)
    return grid_sample(images, grid, align_corners=False).view(n, n_frames, height, width)


def _coloured(coverage: Tensor, generator: torch.Generator) -> Tensor:
    """The digit in a random colour over a random smooth background, shape ``(n, T, H, W, 3)``."""
    n, _, height, width = coverage.shape
    cells = uniform(_BACKGROUND, (n, 3, *_BACKGROUND_CELLS), generator)
    background = interpolate(cells, (height, width), mode="bilinear", align_corners=True)
    background = background.permute(0, 2, 3, 1)[:, None]  # (n, 1, H, W, 3)
    ink = uniform(_INK, (n, 1, 1, 1, 3), generator)
    return torch.lerp(background, ink, coverage[..., None])
