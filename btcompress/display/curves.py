"""Learning curves, drawn in characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from btcompress.demo import Curve, Measure

#: What marks the points of each curve, in turn.
_MARKERS = "ox+*#@%&"
#: Size of the drawing, in characters.
_MOST_COLUMNS, _ROWS = 80, 18


def show_curves(console: Console, curves: Sequence[Curve], metric: Measure, examples: str) -> None:
    """Draw a metric on the examples held back against epochs."""
    import plotext

    factor = 100 if metric.is_share else 1
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, _MOST_COLUMNS), _ROWS)
    marked = [(curve, _MARKERS[place % len(_MARKERS)]) for place, curve in enumerate(curves)]
    for curve, marker in marked:
        points = [(epoch, factor * value) for epoch, value in enumerate(curve.values) if math.isfinite(value)]
        plotext.plot(*map(list, zip(*points, strict=True)), marker=marker)
    if metric.is_share:
        plotext.ylim(0, 100)
        plotext.yticks(range(0, 101, 20))
    else:
        plotext.ylim(*_limits(curves))
    plotext.xticks(_ticks(max(len(curve.values) for curve in curves)))
    plotext.xlabel("epochs")
    unit = ", %" if metric.is_share else ""
    better = "" if metric.higher_is_better else "; lower is better"
    console.print(Text(f"{metric.name} on {examples} held back{unit}{better}"), style="bold")
    console.print(Text(plotext.uncolorize(plotext.build())))
    for curve, marker in marked:
        console.print(Text(f"  {marker} {curve.name}"))


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Least and greatest value behind the first epoch: what random numbers give would leave no room for the others."""
    values = [value for curve in curves for value in curve.values[1:] or curve.values if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.05 * (high - low) or max(abs(high), 1.0)
    return low - room, high + room


def _ticks(n_points: int) -> range:
    """At most about 20 of the epochs."""
    return range(0, n_points, max(1, math.ceil(n_points / 20)))
