"""A picture of clips, and of what models take them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from btcompress.demo.pictures import RIGHT, WRONG, figure, save_figure, sheet, show_sheet
from btcompress.demo.video.clips import Clips

#: White pixels between frames.
_GAP = 2


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
    height, width, _ = clips.frame_shape
    frames = sheet(clips.x.reshape(n_clips, n_frames, *clips.frame_shape), _GAP)
    drawing = figure((2.2 + 1.3 * n_frames + 2.4 * len(taken), 0.3 + 1.3 * n_clips * height / width))
    axes = drawing.subplots()
    shown = [clips.class_names[label] for label in clips.y]
    middles = show_sheet(axes, frames, shown)
    step = 0.32 * frames.shape[1]
    for column, (name, classes) in enumerate(taken.items()):
        left = frames.shape[1] * 1.02 + column * step
        axes.text(left, -0.1 * height, name, va="bottom", fontweight="bold", clip_on=False)
        for middle, right, guess in zip(middles, shown, classes, strict=True):
            mark, colour = RIGHT if guess == right else WRONG
            axes.text(left, middle, f"{mark} {guess}", va="center", color=colour, clip_on=False)
    save_figure(drawing, path)
