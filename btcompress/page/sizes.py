"""The drawing of where the bytes went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from btcompress.memory import size_text
from btcompress.page.contents import Picture
from btcompress.page.drawing import AFTER, BEFORE, LINE, named, svg
from btcompress.reporting.tables import layer_name
from btcompress.results import LayerReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Layers that are drawn, pixels for each, and those for the rest.
_MOST, _EACH, _AROUND = 12, 46, 56
#: How much wider than the longest bar the drawing is, so that its number has room.
_ROOM = 1.25


def layers_picture(layers: Sequence[LayerReport]) -> Picture | None:
    """Two bars for each layer, the largest ones; None where there is none with any bytes."""
    shown = sorted(sorted(layers, key=lambda each: -each.bytes_before)[:_MOST], key=layers.index)
    bars = [(named(layer_name(each)), each.bytes_before, each.bytes_after) for each in shown]
    if len(layers) > len(shown):
        rest = [each for each in layers if each not in shown]
        sums = (sum(getattr(each, name) for each in rest) for name in ("bytes_before", "bytes_after"))
        bars.append((f"{len(rest):,} more layers", *sums))
    longest = max((max(before, after) for _, before, after in bars), default=0)
    if not longest:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (name, *sizes) in enumerate(bars):
            axes.text(0, place - 0.36, name, va="bottom", fontweight="bold")
            for size, at, colour, what in zip(sizes, (-0.16, 0.14), (BEFORE, AFTER), ("before", "after"), strict=True):
                axes.barh(place + at, size, 0.26, color=colour, label=None if place else what)
                axes.text(size + longest * 0.012, place + at, size_text(size), va="center", fontsize=11)
        axes.set(xlim=(0, _ROOM * longest), ylim=(len(bars) - 0.6, -0.75), yticks=[], xticks=[])
        axes.spines["left"].set_color(LINE)
        axes.spines["bottom"].set_visible(False)
        figure.legend(loc="outside lower left", ncols=2)

    told = "; ".join(f"{name} {size_text(before)} before, {size_text(after)} after" for name, before, after in bars)
    label = f"Bytes of each layer before and after: {told}."
    drawn = svg(draw, _AROUND + _EACH * len(bars), label, "sizes")
    return Picture(drawn, "Bytes of each layer, before above after.")
