"""A picture of captions beside what they describe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from btcompress.demo.captions.grammar import Thing, parse, share_right
from btcompress.demo.pictures import PARTLY_RIGHT, RIGHT, WRONG, figure, save_figure

_SIDE = 1.5  # inches of a picture
_COLUMN = 2.7  # inches of a caption
_LETTERS = 36  # in a line of it


def save_captions(
    images: npt.NDArray[np.uint8],
    shown: Sequence[Sequence[Thing]],
    said: Mapping[str, Sequence[str]],
    path: Path,
) -> None:
    """Draw pictures, one in each row, and beside each what models say of it and whether that is right.

    Args:
        images: shape ``(n, side, side, 3)``.
        shown: the objects of each.
        said: the caption of each model for each picture, by the name of the model.
        path: of the picture.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    drawing = figure((_SIDE + _COLUMN * len(said), 0.3 + (_SIDE + 0.05) * len(images)))
    cells = drawing.subplots(len(images), 1 + len(said), squeeze=False, width_ratios=[_SIDE, *[_COLUMN] * len(said)])
    for axes in cells.flat:
        axes.set_axis_off()
    for axes, name in zip(cells[0, 1:], said, strict=True):
        axes.set_title(name, fontweight="bold", fontsize=10, loc="left")
    for row, image, things, captions in zip(cells, images, shown, zip(*said.values(), strict=True), strict=True):
        row[0].imshow(image)
        for axes, caption in zip(row[1:], captions, strict=True):
            share = share_right(parse(caption), things)
            mark, colour = RIGHT if share == 1 else PARTLY_RIGHT if share else WRONG
            text = f"{mark} {caption}".replace(" ,", ",").replace(" :", ":")
            axes.text(0, 0.5, textwrap.fill(text, _LETTERS), va="center", fontsize=8.5, color=colour)
    save_figure(drawing, path)
