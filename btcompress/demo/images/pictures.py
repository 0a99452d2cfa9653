"""A picture of what models draw: out of nothing, step by step, and images that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btcompress.demo.pictures import figure, save_figure, sheet, show_sheet

#: White pixels between images.
_GAP = 1
#: Inches of an image.
_SIDE = 0.55


@dataclass(frozen=True, slots=True, eq=False)
class Drawings:
    """What one model drew.

    Attributes:
        samples: out of nothing, after each step; shape ``(T, n, height, width, 3)``, where black is 0 and white is 1.
        again: images that it read; shape ``(m, height, width, 3)``.
    """

    samples: npt.NDArray[np.floating]
    again: npt.NDArray[np.floating]


def save_drawings(originals: npt.NDArray[np.uint8], drawn: Mapping[str, Drawings], path: Path) -> None:
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
        axes.imshow(sheet(rows, _GAP))
        axes.set_title(name, fontsize="small")
        axes.set_axis_off()
    below.suptitle("Images that were read, and as they were drawn again", fontsize="medium")
    axes = below.subplots()
    show_sheet(axes, sheet(np.stack(list(read.values())), _GAP), list(read), fontsize="small")
    save_figure(drawing, path)
