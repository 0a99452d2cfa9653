"""Reports: what a compression gained and lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from btcompress.display.bench import show_measured
from btcompress.display.console import make_console
from btcompress.display.tables import NumberTable, show_lists, show_tables
from btcompress.wording import untouched_text

if TYPE_CHECKING:
    from btcompress.results import CompressionReport


def show_report(report: CompressionReport) -> None:
    """Print a report: a row for each matrix, the whole model, then what to know and to do."""
    console = make_console()
    show_tables(console, _tables(report))
    if report.bench is not None:
        console.print()
        show_measured(console, report.bench)
    lists = {
        "Expected speed": () if report.expected_speed is None else report.expected_speed.advice,
        "Not factorized": [] if report.untouched is None else [untouched_text(report.untouched)],
        "Left dense": [f"{left.name}: {left.reason}." for left in report.left_dense],
        "Note": report.notices,
        "Advice": report.advice,
    }
    show_lists(console, lists)


def _tables(report: CompressionReport) -> Iterator[NumberTable]:
    # Here, since the help of the commands is shown without torch.
    from btcompress.reporting import tables, yardsticktables

    for table in (
        tables.matrix_table(report),
        yardsticktables.rounding_table(report),
        yardsticktables.yardstick_table(report.matrices),
        tables.model_table(report.model, report.matrices),
        tables.inputs_table(report.on_inputs),
        yardsticktables.rounded_layer_table(report.on_inputs),
        tables.calibration_table(report.calibrated),
        tables.training_table(report.finetuned),
    ):
        if table.rows:
            yield NumberTable.of(table)
