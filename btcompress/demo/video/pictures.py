"""A picture of clips, and of what models take them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from btcompress.demo.pictures import figure, save_figure
from btcompress.demo.video.clips import Clips

#: White pixels between frames.
_GAP = 2
_RIGHT, _WRONG = "tab:green", "tab:red"


def save_clips(clips: Clips, taken: Mapping[str, Sequence[str]], path: Path) -> None:
    """Draw clips, one in each row and one frame in each column.

    Args:
        clips: which.
        taken: the class that each model takes each clip for, by the name of the model.
        path: of the picture.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    n_clips, n_frames = clips.x.shape[:2]
    height, width, colours = clips.frame_shape
    framed = np.full((n_clips, n_frames, height + _GAP, width + _GAP, colours), 255, np.uint8)
    framed[:, :, :height, :width] = clips.x.reshape(n_clips, n_frames, *clips.frame_shape)
    sheet = framed.transpose(0, 2, 1, 3, 4).reshape(n_clips * (height + _GAP), n_frames * (width + _GAP), colours)
    drawing = figure((2.2 + 1.3 * n_frames + 2.4 * len(taken), 0.3 + 1.3 * n_clips * height / width))
    axes = drawing.subplots()
    axes.imshow(sheet)
    middles = (np.arange(n_clips) + 0.5) * (height + _GAP)
    shown = [clips.class_names[label] for label in clips.y]
    axes.set_yticks(middles, shown)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    step = 0.32 * sheet.shape[1]
    for column, (name, classes) in enumerate(taken.items()):
        left = sheet.shape[1] * 1.02 + column * step
        axes.text(left, -0.1 * height, name, va="bottom", fontweight="bold", clip_on=False)
        for middle, right, guess in zip(middles, shown, classes, strict=True):
            # The sign as well as the colour says which are right.
            mark, colour = ("✓", _RIGHT) if guess == right else ("✗", _WRONG)
            axes.text(left, middle, f"{mark} {guess}", va="center", color=colour, clip_on=False)
    save_figure(drawing, path)
