"""Drawing with matplotlib into PNG files, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from btcompress.checkpoint import replacing
from btcompress.demo.measures import Measure
from btcompress.errors import BTCompressError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120


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


def figure(inches: tuple[float, float]) -> Figure:
    """An empty drawing of this width and height.

    Raises:
        BTCompressError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BTCompressError(
            "the demonstration draws its pictures with matplotlib, which is not installed. "
            "Run: pip install 'btcompress[demo]'"
        ) from error
    return Figure(figsize=inches, layout="constrained")


def save_figure(drawing: Figure, path: Path) -> None:
    """Write a drawing as a PNG file; the same drawing is the same bytes.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        # Without the name of the software, the same picture is the same bytes after an update.
        drawing.savefig(file, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
