"""The demonstration: examples, learning curves, what was measured, and what held."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from rich.text import Text

from btcompress.display.console import make_console, show_line
from btcompress.display.curves import show_curves
from btcompress.display.pixels import show_clips, show_picture
from btcompress.display.report import show_report
from btcompress.display.tables import NumberTable, show_table
from btcompress.wording import ratio_text

if TYPE_CHECKING:
    from btcompress.demo import DemoResult

#: Columns beyond which the name of a measure goes on on another line of its header.
_HEADER_WIDTH = 12


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
    show_curves(console, result.curves, task.metric, task.examples)
    console.print()
    show_table(console, _outcomes_table(result))
    console.print(Text(_held_text(result)), soft_wrap=True)


def _outcomes_table(result: DemoResult) -> NumberTable:
    measures = ["\n".join(textwrap.wrap(each.name, _HEADER_WIDTH)) for each in result.task.measures]
    tested = f"on {result.task.size.n_test:,} test {result.task.examples}"
    table = NumberTable([tested, "weights\nof W", "times\nsmaller", *measures])
    for outcome in result.outcomes:
        scores = (each.written(score) for each, score in zip(result.task.measures, outcome.scores, strict=True))
        smaller = ratio_text(result.dense.n_bytes / outcome.n_bytes)
        table.add_row(outcome.name, f"{outcome.n_weights:,}", smaller, *scores)
    return table


def _held_text(result: DemoResult) -> str:
    """In a sentence, whether block terms are as good as the dense model."""
    measure, dense, tuned = result.task.measures[0], result.dense, result.tuned
    lost = (dense.scores[0] - tuned.scores[0]) * (1 if measure.higher_is_better else -1)
    smaller = ratio_text(dense.n_bytes / tuned.n_bytes).removesuffix("x")
    return (
        f"With W {smaller} times smaller and fine-tuned, {measure.name} is {measure.written(tuned.scores[0])}, and of "
        f"the dense model {measure.written(dense.scores[0])}: {'something' if lost > 0 else 'nothing'} was lost."
    )
