"""The demonstration: examples, learning curves, what was measured, and what held."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from btcompress.display.console import make_console, show_line
from btcompress.display.curves import show_curves
from btcompress.display.pixels import show_clips, show_picture
from btcompress.display.report import show_report
from btcompress.display.tables import NumberTable, show_sentence, show_table
from btcompress.text import listed
from btcompress.wording import ratio_text

if TYPE_CHECKING:
    from btcompress.demo import DemoResult, Outcome

#: Curves that can be told apart in characters; the picture that was written has all.
_MOST_CURVES = 3
#: Times the bytes of block terms up to which others count as as small.
_AS_SMALL = 1.5
#: Lines of a header, as long as the name of a measure may be before it goes on on another.
_HEADER = textwrap.TextWrapper(width=12, break_long_words=False, break_on_hyphens=False)


def show_demo(result: DemoResult) -> None:
    """Print what the demonstration did and measured."""
    from btcompress.demo.video import Clips

    console, task, files = make_console(), result.task, result.files
    if isinstance(result.drawn.test, Clips):
        show_clips(console, result.drawn.test.one_of_each())
    else:
        show_picture(console, files.examples)
    for what, path in (
        (f"{task.examples} to train on", files.data),
        ("dense model", files.dense),
        ("factorized", files.factorized),
        ("calibrated", files.calibrated),
        ("fine-tuned", files.tuned),
        ("from scratch", files.scratch),
        (f"{task.examples}, and what models make of them", files.examples),
        ("learning curves", files.curves),
    ):
        show_line(f"{what}: {path}")
    console.print()
    show_report(result.report)
    console.print()
    show_curves(console, result.curves[:_MOST_CURVES], task.metric, task.examples)
    console.print()
    show_table(console, _outcomes_table(result))
    show_sentence(console, _held_text(result))


def _outcomes_table(result: DemoResult) -> NumberTable:
    measures = result.task.measures
    headers = ["\n".join(_HEADER.wrap(each.name)) for each in measures]
    tested = f"on {result.task.size.n_test:,} test {result.task.examples}"
    table = NumberTable(tested, ["weights\nof W", "times\nsmaller"], headers)
    for outcome in result.outcomes:
        if outcome.scores is None:
            scores = ["diverged"] * len(measures)
        else:
            scores = [each.written(score) for each, score in zip(measures, outcome.scores, strict=True)]
        smaller = ratio_text(result.dense.n_bytes / outcome.n_bytes)
        table.add_row(outcome.name, f"{outcome.n_weights:,}", smaller, *scores)
    return table


def _held_text(result: DemoResult) -> str:
    """In a sentence, whether block terms are as good as the dense model; in another, as what there is beside them."""
    measure, dense, tuned = result.task.measures[0], _first_score(result.dense), _first_score(result.tuned)
    smaller = ratio_text(result.dense.n_bytes / result.tuned.n_bytes).removesuffix("x")
    text = (
        f"With W {smaller} times smaller and fine-tuned, {measure.name} is {measure.written(tuned)}, and of the dense "
        f"model {measure.written(dense)}: {'something' if measure.is_better(dense, tuned) else 'nothing'} was lost."
    )
    as_small = [rival for rival in result.rivals if rival.n_bytes <= _AS_SMALL * result.tuned.n_bytes]
    if not as_small:
        return text
    better = [rival.name for rival in as_small if rival.scores and measure.is_better(rival.scores[0], tuned)]
    return f"{text} Of all others as small did better: {listed(better)}."


def _first_score(outcome: Outcome) -> float:
    return outcome.scores[0] if outcome.scores else math.nan
