"""The drawings of what training brought: stages of calibrations, learning curves, and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from btcompress.page.contents import Picture
from btcompress.page.drawing import AFTER, BEFORE, GROUPS, LINE, MUTED, ROWS, SVD, drawable, named, plot, svg, titled
from btcompress.results import Agreement, CalibrationReport, FineTuneReport, InputsReport, LearningCurve
from btcompress.wording import metric_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Curves in one drawing, told apart by colour, line and mark.
_LOOKS = (
    (AFTER, "-", "o"),
    (SVD, "--", "s"),
    (ROWS, ":", "^"),
    (GROUPS, "-.", "D"),
    (BEFORE, "-", "v"),
    (MUTED, "--", "x"),
)
_STAGES = {
    "hidden_state_error_before": "fitted to the weights",
    "hidden_state_error_refitted": "fitted to the inputs",
    "hidden_state_error_rounded": "rounded",
    "hidden_state_error_after": "calibrated",
}
_HEIGHT = 250
#: Shares that are drawn, the latest ones.
_MOST_ROWS = 12


def stages_picture(calibration: CalibrationReport, anchor: str) -> Picture:
    """The hidden-state error of each stage as a bar."""
    of_stages = [(words, error) for name, words in _STAGES.items() if (error := getattr(calibration, name)) is not None]
    name = named(calibration.lstm) or "the recurrent layer"
    longest = max((y for _, y in drawable(list(enumerate(error for _, error in of_stages)))), default=0.0) or 1.0

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (_, error) in enumerate(of_stages):
            last = place == len(of_stages) - 1
            axes.barh(place, min(error, longest), 0.55, color=AFTER if last else BEFORE)
            axes.text(min(error, longest) + 0.015 * longest, place, f"{error:.4f}", va="center", fontsize=11)
        axes.set(xlim=(0, 1.25 * longest), xticks=[])
        axes.set_yticks(range(len(of_stages)), [words for words, _ in of_stages])
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.spines["left"].set_color(LINE)
        axes.spines["bottom"].set_visible(False)
        titled(figure, name)

    told = "; ".join(f"{words} {error:.4f}" for words, error in of_stages)
    drawn = svg(draw, 60 + 32 * len(of_stages), f"Hidden-state error of {name} after each stage: {told}.", anchor)
    return Picture(drawn, f"{name}: hidden-state error on sequences held back, stage by stage.")


def curves_picture(
    title: str, metric: str, curves: Sequence[LearningCurve], anchor: str, dense: float | None = None
) -> Picture | None:
    """A metric after each epoch of one or several trainings; None where nothing of them is on record.

    Args:
        title: of the drawing.
        metric: what was measured.
        curves: of the trainings.
        anchor: of the drawing.
        dense: the metric of the dense model; None where it is not known.
    """
    named_curves = [("all layers" if each.layer is None else f"layer {each.layer}", each.metrics) for each in curves]
    shown = [(words, values) for words, values in named_curves if drawable(list(enumerate(values)))]
    if not shown:
        return None
    first = shown[-len(_LOOKS) :]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (colour, line, mark), (words, values) in zip(_LOOKS, reversed(first), strict=False):
            points = list(enumerate(values))
            mark = mark if len(values) <= 40 else ""
            plot(axes, points, color=colour, linestyle=line, marker=mark, label=words)
        if dense is not None and drawable([(0, dense)]):
            axes.axhline(dense, color=MUTED, linestyle="--", label="dense model")
        if len(first) > 1 or dense is not None:
            axes.legend(loc="best")
        axes.set(xlabel="epochs", ylabel=metric, xlim=(0, None))
        axes.grid(axis="y")
        titled(figure, title)

    told = "; ".join(
        f"{words} from {metric_text(values[0])} to {metric_text(values[-1])} in {n:,} epoch{'s' * (n != 1)}"
        for words, values in shown
        for n in [len(values) - 1]
    )
    left = "" if len(first) == len(shown) else f" Of {len(shown)} trainings the last {len(first)} are drawn."
    drawn = svg(draw, _HEIGHT, f"{metric} on sequences held back: {told}.{left}", anchor)
    return Picture(drawn, f"{title}: {metric} on sequences held back after each epoch.{left}")


def agreement_picture(
    calibrated: Sequence[CalibrationReport], finetuned: Sequence[FineTuneReport], on_inputs: Sequence[InputsReport]
) -> Picture | None:
    """Shares of decisions as the dense model makes them, before and after; None where none is known."""
    rows = [
        *((each.lstm, "calibrated", each.agreement_before, each.agreement_after) for each in calibrated),
        *(("", "fine-tuned", each.agreement_before, each.agreement_after) for each in finetuned),
        *((each.lstm, "on the inputs given", None, each.agreement) for each in on_inputs),
    ]
    every = [(named(lstm), f"{what}, {kind}", *shares) for lstm, what, *two in rows for kind, shares in _shares(*two)]
    shown = every[-_MOST_ROWS:]
    if not shown:
        return None
    least = min(share for _, _, *shares in shown for share in shares if share is not None)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (lstm, words, before, after) in enumerate(shown):
            text = "\n".join(filter(None, (lstm, words)))
            axes.text(0, place - 0.14, text, va="bottom", transform=axes.get_yaxis_transform(), fontsize=11)
            if before is not None:
                axes.plot([before, after], [place, place], color=LINE, linewidth=3, zorder=1)
                label = "before" if "before" not in axes.get_legend_handles_labels()[1] else None
                axes.plot(before, place, color=BEFORE, marker="o", fillstyle="none", linestyle="", label=label)
            axes.plot(
                after, place, color=AFTER, marker="o", markersize=8, linestyle="", label=None if place else "after"
            )
            side = "right" if 2 * after > 1 + least else "left"
            axes.text(after, place + 0.12, f"{after:.1%}", va="top", ha=side, fontsize=11)
        beside = 0.03 * (1.02 - least)
        axes.set(xlim=(least - beside, 1 + beside), ylim=(len(shown) - 0.4, -0.75), yticks=[])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if least < 0.9 else f"{value:.1%}")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        figure.legend(loc="outside lower left", ncols=2)

    told = "; ".join(
        f"{words} {f'{before:.1%} before and ' if before is not None else ''}{after:.1%} after"
        for lstm, what, before, after in shown
        for words in [", ".join(filter(None, (lstm, what)))]
    )
    height = 80 + (62 if any(lstm for lstm, *_ in shown) else 46) * len(shown)
    drawn = svg(draw, height, f"Decisions as the dense model makes them: {told}.", "agreement")
    return Picture(drawn, "Shares of decisions that are those of the dense model.")


def _shares(before: Agreement | None, after: Agreement | None) -> list[tuple[str, tuple[float | None, float]]]:
    """What of two agreements can be drawn: each kind of decision, with its share before, where known, and after."""
    found = []
    for name, words in (("steps", "steps"), ("ends", "sequence ends")):
        last = None if after is None else getattr(after, name)
        first = None if before is None else getattr(before, name)
        if last is not None and 0 <= last <= 1:
            found.append((words, (first if first is not None and 0 <= first <= 1 else None, last)))
    return found
