"""How the figures of the documents look: colours that also differ in lightness, and shapes without a frame."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import to_rgb

#: Of modes, and of matrices one after another: told apart whatever colours a reader sees (Okabe, Ito, "Color universal
#: design", 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
#: Of what is not taken apart, and of marks and words.
GREY, DARK = "#B8B8B8", "#333333"
#: Sizes of letters, in points.
SMALL, LARGE = 8.5, 9.5


def tint(colour: str, share: float) -> tuple[float, float, float]:
    """A colour of which so large a share is left, on white."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def bare(axes: Any, x: tuple[float, float], y: tuple[float, float], *, equal: bool = False) -> None:  # noqa: ANN401
    """Make axes to draw shapes on, without any frame.

    Args:
        axes: matplotlib's.
        x: what lies at the left and the right end.
        y: what lies at the lower and the upper end.
        equal: one unit is as long across as upwards.
    """
    axes.set_axis_off()
    axes.set(xlim=x, ylim=y, aspect="equal" if equal else "auto")
