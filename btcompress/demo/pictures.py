"""Drawing with matplotlib into PNG files, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from btcompress.checkpoint import replacing
from btcompress.demo.measures import Measure
from btcompress.demo.missing import missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120

#: Marks and their colours: the sign as well as the colour says what is right.
RIGHT, PARTLY_RIGHT, WRONG = ("✓", "tab:green"), ("~", "tab:orange"), ("✗", "tab:red")


@dataclass(frozen=True, slots=True)
class Curve:
    """How a model became better.

    Attributes:
        name: of the model.
        values: of the task's metric on the examples held back, before training and after each epoch.
    """

    name: str
    values: tuple[float, ...]


def save_curves(curves: Sequence[Curve], metric: Measure, examples: str, path: Path) -> None:
    """Draw a metric on the examples held back against epochs.

    Args:
        curves: what to draw.
        metric: of which.
        examples: what they are called.
        path: of the picture.

    Raises:
        BTCompressError: matplotlib is missing.
        OutputError: the file cannot be written.
    """
    drawing = figure((6.4, 4.0))
    axes = drawing.subplots()
    factor = 100 if metric.is_share else 1
    for curve in curves:
        axes.plot(range(len(curve.values)), [factor * value for value in curve.values], marker=".", label=curve.name)
    unit = ", %" if metric.is_share else ""
    axes.set(xlabel="epochs", ylabel=f"{metric.name} on {examples} held back{unit}", xlim=(0, None))
    if metric.is_share:
        axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right" if metric.higher_is_better else "upper right")
    save_figure(drawing, path)


Pixels = TypeVar("Pixels", bound=np.generic)


def sheet(images: npt.NDArray[Pixels], gap: int) -> npt.NDArray[Pixels]:
    """Images as one, in rows and columns, with white beside and below each.

    Args:
        images: shape ``(rows, columns, height, width, colours)``; white is 255 in bytes, and else 1.
        gap: white pixels between two of them.

    Returns:
        Shape ``(rows * (height + gap), columns * (width + gap), colours)``.
    """
    rows, columns, height, width, colours = images.shape
    white = 255 if images.dtype == np.uint8 else 1
    framed = np.full((rows, columns, height + gap, width + gap, colours), white, images.dtype)
    framed[:, :, :height, :width] = images
    return framed.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), columns * (width + gap), colours)


def show_sheet(axes: Any, pixels: npt.NDArray[Any], names: Sequence[str], **of_names: str) -> npt.NDArray[np.float64]:  # noqa: ANN401 - matplotlib's
    """Show a sheet with the names of its rows beside it, and nothing else around it.

    Args:
        axes: matplotlib's, to show it in.
        pixels: shape ``(height, width, colours)``, of as many rows as there are names.
        names: of the rows.
        of_names: how they are written, as ``Axes.set_yticks`` takes it.

    Returns:
        The middle of each row, in pixels.
    """
    axes.imshow(pixels)
    middles = (np.arange(len(names)) + 0.5) * len(pixels) / len(names)
    axes.set_yticks(middles, names, **of_names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return middles


def figure(inches: tuple[float, float]) -> Figure:
    """An empty drawing of this width and height.

    Raises:
        BTCompressError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("drawing pictures", "matplotlib") from error
    return Figure(figsize=inches, layout="constrained")


def save_figure(drawing: Figure, path: Path) -> None:
    """Write a drawing as a PNG file; the same drawing is the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        # Without the name of the software, the same picture is the same bytes after an update.
        drawing.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
