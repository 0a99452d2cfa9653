"""A bench: how long each LSTM takes in each way, what else it takes, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from btcompress.display.console import make_console
from btcompress.display.tables import NumberTable, show_lists, show_table, worse_if
from btcompress.memory import size_text
from btcompress.wording import case_text, left_out_texts, machine_text, milliseconds_text, ratio_text, way_text

if TYPE_CHECKING:
    from btcompress.timings import BenchCase, BenchReport, WayTiming

#: Ratios from here on are written as 1 or more.
_AS_FAST = 0.995


def show_bench(report: BenchReport) -> None:
    """Print a bench: a row for each case and way, then what to know."""
    show_measured(make_console(), report)


def show_measured(console: Console, report: BenchReport) -> None:
    """Print it on a console, as part of what else is shown there."""
    show_table(console, _table(report.cases))
    lists = {
        "Measured": [machine_text(report.machine)],
        "Left out": left_out_texts(report),
        "Note": report.notices,
        "Warning": report.warnings,
        "Advice": report.advice,
    }
    show_lists(console, lists)


def _table(cases: Sequence[BenchCase]) -> NumberTable:
    table = NumberTable(
        "",
        ["median\nms", "middle half\nms", "steps\na second"],
        ["peak\nmemory", "parameters", "operations\na step"],
        ["dense\nover it"],
        worse="is slower than the dense layer.",
    )
    for case in cases:
        table.add_row(case_text(case), *[""] * 7)
        for way in case.ways:
            dense = case.onnx_dense if way.way.startswith("onnx") else case.dense
            ratio = "" if dense is None else _ratio_text(way.way, dense.seconds / way.seconds)
            table.add_row(f"  {way_text(way.way)}", *_cells(case, way), ratio)
    return table


def _ratio_text(way: str, ratio: float) -> str:
    return worse_if("block_terms" in way and ratio < _AS_FAST, ratio_text(ratio))


def _cells(case: BenchCase, way: WayTiming) -> tuple[str, ...]:
    first, third = (milliseconds_text(each) for each in way.quartiles)
    return (
        milliseconds_text(way.seconds),
        f"{first} to {third}",
        f"{case.batch * case.steps / way.seconds:,.0f}",
        "not known" if way.peak_bytes is None else size_text(way.peak_bytes),
        f"{way.params:,}",
        "-" if way.operations is None else f"{way.operations:,}",
    )
