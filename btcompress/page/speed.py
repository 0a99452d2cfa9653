"""The drawings of how fast a result is: what a bench measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from btcompress.page.contents import Picture
from btcompress.page.drawing import AFTER, BEFORE, INK, LINE, named, svg, titled
from btcompress.timings import BenchCase
from btcompress.wording import case_text, milliseconds_text, way_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def case_picture(case: BenchCase, anchor: str) -> Picture | None:
    """A bar for each way to run a layer; None where none was measured.

    Args:
        case: what was measured.
        anchor: of the drawing.
    """
    if not case.ways:
        return None
    longest = max(way.quartiles[1] for way in case.ways)
    longest = max(longest, *(way.seconds for way in case.ways))
    title = case_text(case)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, way in enumerate(case.ways):
            axes.barh(place, way.seconds, 0.55, color=AFTER if "block_terms" in way.way else BEFORE)
            axes.plot(way.quartiles, [place, place], color=INK, linewidth=1.2)
            end = max(way.seconds, way.quartiles[1])
            axes.text(end + 0.015 * longest, place, f"{milliseconds_text(way.seconds)} ms", va="center", fontsize=11)
        axes.set(xlim=(0, 1.3 * longest), xticks=[])
        axes.set_yticks(range(len(case.ways)), [named(way_text(way.way)) for way in case.ways])
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_color(LINE)
        axes.spines["bottom"].set_visible(False)
        titled(figure, title)

    told = "; ".join(f"{named(way_text(way.way))} {milliseconds_text(way.seconds)} ms" for way in case.ways)
    drawn = svg(draw, 50 + 28 * len(case.ways), f"Median of a call, {title}: {told}.", anchor)
    return Picture(drawn, f"{title}: median milliseconds of a call; the thin line is the middle half of the turns.")
