"""A picture of what models draw: out of nothing, step by step, and images that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btcompress.demo.pictures import figure, save_figure

#: White pixels between images.
_GAP = 1
#: Inches of an image.
_SIDE = 0.55


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What one model drew.

    Attributes:
        samples: out of nothing, after each step; shape ``(T, n, height, width, 3)``, where black is 0 and white is 1.
        again: images that it read; shape ``(m, height, width, 3)``.
    """

    samples: npt.NDArray[np.floating]
    again: npt.NDArray[np.floating]


def save_drawings(originals: npt.NDArray[np.uint8], drawn: Mapping[str, Drawn], path: Path) -> None:
    """Draw for each model a row for each sample, with a column for each step; below, images and what became of them.

    Args:
        originals: images as they were read, ``uint8``, shape ``(m, height, width, 3)``.
        drawn: what each model drew, by the models' names.
        path: of the picture.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    steps = {name: each.samples.swapaxes(0, 1) for name, each in drawn.items()}  # (n, T, height, width, 3)
    n_samples, n_steps = next(iter(steps.values())).shape[:2]
    read = {"read": originals / 255, **{name: each.again for name, each in drawn.items()}}
    width = max(len(drawn) * (n_steps + 0.5), len(originals) + 3.0) * _SIDE
    drawing = figure((width, (n_samples + len(read) + 2.0) * _SIDE))
    heights = [n_samples + 1.0, len(read) + 0.7]
    above, below = drawing.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    above.suptitle("Out of nothing, step by step", fontsize="medium")
    for axes, (name, rows) in zip(above.subplots(1, len(steps), squeeze=False)[0], steps.items(), strict=True):
        axes.imshow(_sheet(rows))
        axes.set_title(name, fontsize="small")
        axes.set_axis_off()
    below.suptitle("Images that were read, and as they were drawn again", fontsize="medium")
    axes = below.subplots()
    sheet = _sheet(np.stack(list(read.values())))
    axes.imshow(sheet)
    axes.set_yticks((np.arange(len(read)) + 0.5) * len(sheet) / len(read), list(read), fontsize="small")
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save_figure(drawing, path)


def _sheet(images: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Images of shape ``(rows, columns, height, width, 3)`` as one, with white between them."""
    rows, columns, height, width, colours = images.shape
    framed = np.ones((rows, columns, height + _GAP, width + _GAP, colours), images.dtype)
    framed[:, :, :height, :width] = images
    return framed.transpose(0, 2, 1, 3, 4).reshape(rows * (height + _GAP), columns * (width + _GAP), colours)
