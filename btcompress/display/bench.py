"""A bench: how long each LSTM takes in each way, what else it takes, and what that means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from btcompress.display.console import make_console
from btcompress.display.tables import NumberTable, show_lists, show_table
from btcompress.wording import left_out_texts, machine_text

if TYPE_CHECKING:
    from btcompress.timings import BenchReport


def show_bench(report: BenchReport) -> None:
    """Print a bench: a row for each case and way, then what to know."""
    show_measured(make_console(), report)


def show_measured(console: Console, report: BenchReport) -> None:
    """Print it on a console, as part of what else is shown there."""
    # Here, since the help of the commands is shown without torch.
    from btcompress.reporting.tables import bench_table

    show_table(console, NumberTable.of(bench_table(report.cases)))
    lists = {
        "Measured": [machine_text(report.machine)],
        "Left out": left_out_texts(report),
        "Note": report.notices,
        "Warning": report.warnings,
        "Advice": report.advice,
    }
    show_lists(console, lists)
