"""Pictures of the demonstration, as PNG files: the clips, and the learning curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from btcompress.checkpoint import replacing
from btcompress.demo.video.clips import Clips
from btcompress.errors import BTCompressError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120
#: White pixels between frames.
_GAP = 2


@dataclass(frozen=True, slots=True)
class Curve:
    """How a model became better.

    Attributes:
        name: of the model.
        accuracies: on the clips held back, before training and after each epoch.
    """

    name: str
    accuracies: tuple[float, ...]


def save_clips(clips: Clips, path: Path) -> None:
    """Draw clips, one in each row and one frame in each column.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    n_clips, n_frames = clips.x.shape[:2]
    height, width, colours = clips.frame_shape
    framed = np.full((n_clips, n_frames, height + _GAP, width + _GAP, colours), 255, np.uint8)
    framed[:, :, :height, :width] = clips.x.reshape(n_clips, n_frames, *clips.frame_shape)
    sheet = framed.transpose(0, 2, 1, 3, 4).reshape(n_clips * (height + _GAP), n_frames * (width + _GAP), colours)
    figure = _figure((2.2 + 1.3 * n_frames, 1.3 * n_clips * height / width))
    axes = figure.subplots()
    axes.imshow(sheet)
    middles = (np.arange(n_clips) + 0.5) * (height + _GAP)
    axes.set_yticks(middles, [clips.class_names[label] for label in clips.y])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def save_curves(curves: tuple[Curve, ...], path: Path) -> None:
    """Draw accuracy on the clips held back against epochs.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    figure = _figure((6.4, 4.0))
    axes = figure.subplots()
    for curve in curves:
        axes.plot(
            range(len(curve.accuracies)), [100 * value for value in curve.accuracies], marker=".", label=curve.name
        )
    axes.set(xlabel="epochs", ylabel="accuracy on clips held back, %", ylim=(0, 100), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def _figure(inches: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BTCompressError(
            "the demonstration draws its pictures with matplotlib, which is not installed. "
            "Run: pip install 'btcompress[demo]'"
        ) from error
    return Figure(figsize=inches, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        # Without the name of the software, the same picture is the same bytes after an update.
        figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
