"""A report as Markdown, for pages that people read: the same numbers in the same words as on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from btcompress.reporting.tables import (
    bench_table,
    calibration_table,
    inputs_table,
    layer_table,
    matrix_table,
    model_table,
    training_table,
)
from btcompress.reporting.texts import notes, summary
from btcompress.reporting.values import Table
from btcompress.reporting.yardsticktables import rounded_layer_table, rounding_table, yardstick_table
from btcompress.results import CompressionReport
from btcompress.shapes import MatrixShape
from btcompress.text import printable, shortened
from btcompress.wording import MARK, Worse, form_text, rank_text, ratio_text

#: Characters that mean something to Markdown or HTML; behind a backslash they are themselves.
_MARKS = re.compile(r"([\\`*_\[\]<>|~&$])")

#: Characters of a text that are shown.
_MOST_CHARACTERS = 2000


def markdown(report: CompressionReport, *, advice: bool = True) -> str:
    """A report: a row for each matrix, the whole model, what was measured on sequences, then what to know.

    Yardsticks, roundings alone and benches are left to :func:`document`.

    Args:
        report: the report.
        advice: whether to say also what to do, which is for those who compress.
    """
    tables = [
        matrix_table(report),
        model_table(report.model, report.matrices),
        inputs_table(report.on_inputs),
        calibration_table(report.calibrated),
        training_table(report.finetuned),
    ]
    blocks = [_table(each) for each in tables if each.rows]
    speed = () if report.expected_speed is None else report.expected_speed.advice
    left = [f"{each.name}: {each.reason}." for each in report.left_dense]
    texts = {"Expected speed": speed, "Left dense": left, "Note": report.notices}
    texts |= {"Advice": report.advice} if advice else {}
    items = [f"- {title}: {escaped(text)}" for title, of_kind in texts.items() for text in of_kind]
    return "\n\n".join([*blocks, "\n".join(items)] if items else blocks)


def document(report: CompressionReport, name: str) -> str:
    """All of a report under headings, for pull requests and model cards: the advice first, then every table.

    Args:
        report: the report.
        name: of the result, for the heading.
    """
    return "\n\n".join([f"## {escaped(name)}", *_document(report)]) + "\n"


def _document(report: CompressionReport) -> Iterator[str]:
    yield "\n".join(f"- {escaped(text)}" for text in [*summary(report), *report.advice])
    bench = report.bench
    sections: dict[str, Sequence[Table]] = {
        "Where the bytes went": (layer_table(report.layers, report.model), model_table(report.model, report.matrices)),
        "Matrices": (matrix_table(report), rounding_table(report), yardstick_table(report.matrices)),
        "Training": (calibration_table(report.calibrated), training_table(report.finetuned)),
        "On the inputs given": (inputs_table(report.on_inputs), rounded_layer_table(report.on_inputs)),
        "Speed": () if bench is None else (bench_table(bench.cases),),
    }
    for title, tables in sections.items():
        if blocks := [_table(each) for each in tables if each.rows]:
            yield "\n\n".join([f"### {title}", *blocks])
    if items := [f"- {title}: {escaped(text)}" for title, texts in notes(report).items() for text in texts]:
        yield "\n\n".join(["### Notes", "\n".join(items)])


def shapes_table(shapes: Mapping[str, MatrixShape]) -> str:
    """A row for each matrix of which nothing but its shape is known: no errors."""
    rows = []
    for key, shape in shapes.items():
        part = shape.part
        form = form_text(part.out_modes, part.in_modes, shape.gates, part.core, [*part.order_sizes])
        sizes = (f"{shape.dense_params:,}", f"{shape.n_params:,}", ratio_text(shape.ratio))
        size = f"{shape.out_size} x {shape.in_size}"
        rows.append((key, size, form, str(part.n_blocks), rank_text(part.ranks), *sizes))
    return table(("matrix", "size", "form", "N", "R", "before", "after", "ratio"), rows, texts=3)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A table, its cells escaped.

    Args:
        headers: of the columns.
        rows: a cell for each column; one that is worse gets a mark.
        texts: how many columns, from the left, hold text; the others hold numbers.
    """
    rule = ["---" if column < texts else "---:" for column in range(len(headers))]
    lines = [_line(map(escaped, headers)), _line(rule)]
    return "\n".join([*lines, *(_line(map(_cell, row)) for row in rows)])


def escaped(text: str) -> str:
    """Text from elsewhere as one line that Markdown shows as it is: no link, no markup, no end of a cell."""
    return _MARKS.sub(r"\\\1", shortened(printable(text), _MOST_CHARACTERS))


def _table(values: Table) -> str:
    """A table, and below it what a mark in it means."""
    text = table(values.headers, (row.cells for row in values.rows), texts=len(values.texts))
    return f"{text}\n\n{escaped(values.legend)}" if values.legend else text


def _cell(text: str) -> str:
    return f"{escaped(text)}{MARK}" if isinstance(text, Worse) else escaped(text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
