"""A bench: how long each LSTM takes in each way, what else it takes, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from btcompress.display.console import make_console
from btcompress.display.tables import NumberTable, show_lists, show_table, worse_if
from btcompress.memory import size_text
from btcompress.wording import ratio_text

if TYPE_CHECKING:
    from btcompress.timings import BenchCase, BenchReport, WayTiming

_WAYS = {
    "dense_onednn": "dense, oneDNN",
    "dense_native": "dense, torch's own",
    "dense_cudnn": "dense, cuDNN",
    "int8": "dense, dynamic int8",
    "block_terms": "block terms",
    "onnx_dense": "ONNX, dense",
    "onnx_dense_int8": "ONNX, dense, int8",
    "onnx_block_terms": "ONNX, block terms",
    "onnx_block_terms_int8": "ONNX, block terms, int8",
    "onnx_block_terms_int8_lstm": "ONNX, int8, LSTM operator",
}
_MILLISECONDS = 1e3
#: Ratios from here on are written as 1 or more.
_AS_FAST = 0.995


def show_bench(report: BenchReport) -> None:
    """Print a bench: a row for each case and way, then what to know."""
    show_measured(make_console(), report)


def show_measured(console: Console, report: BenchReport) -> None:
    """Print it on a console, as part of what else is shown there."""
    show_table(console, _table(report.cases))
    lists = {
        "Measured": [_machine_text(report)],
        "Left out": _left_out(report.cases),
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
        table.add_row(_case_text(case), *[""] * 7)
        for way in case.ways:
            dense = case.onnx_dense if way.way.startswith("onnx") else case.dense
            ratio = "" if dense is None else _ratio_text(way.way, dense.seconds / way.seconds)
            table.add_row(f"  {_way_text(way.way)}", *_cells(case, way), ratio)
    return table


def _ratio_text(way: str, ratio: float) -> str:
    return worse_if("block_terms" in way and ratio < _AS_FAST, ratio_text(ratio))


def _way_text(way: str) -> str:
    return _WAYS.get(way, way)


def _case_text(case: BenchCase) -> str:
    steps = f"{case.steps:,} step{'s' * (case.steps > 1)}"
    return ", ".join(part for part in (case.lstm, case.mode, f"batch {case.batch:,}", steps) if part)


def _cells(case: BenchCase, way: WayTiming) -> tuple[str, ...]:
    first, third = (_digits(each * _MILLISECONDS) for each in way.quartiles)
    return (
        _digits(way.seconds * _MILLISECONDS),
        f"{first} to {third}",
        f"{case.batch * case.steps / way.seconds:,.0f}",
        "not known" if way.peak_bytes is None else size_text(way.peak_bytes),
        f"{way.params:,}",
        "-" if way.operations is None else f"{way.operations:,}",
    )


def _digits(milliseconds: float) -> str:
    """Three digits, of long times all before the point."""
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:#.3g}"


def _machine_text(report: BenchReport) -> str:
    machine = report.machine
    threads = f"{machine.threads} thread{'s' * (machine.threads > 1)}"
    where = f"on {machine.name}" if machine.device == "cpu" else f"on {machine.device}, {machine.name}"
    versions = f"torch {machine.torch}"
    if machine.onnxruntime is not None:
        versions += f", ONNX Runtime {machine.onnxruntime}"
    return f"{where}, {threads}, {versions}; all ways of a case took turns."


def _left_out(cases: Sequence[BenchCase]) -> list[str]:
    """Each way and reason once."""
    found = {(case.mode, each.way, each.reason): None for case in cases for each in case.left_out}
    return [f"{_way_text(way)}, in {mode}: {reason}." for mode, way, reason in found]
