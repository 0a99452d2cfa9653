"""Reports: what a compression gained and lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from btcompress.display.bench import show_measured
from btcompress.display.console import make_console
from btcompress.display.roundings import rounded_lstms_table, rounding_table
from btcompress.display.tables import NumberTable, show_list, show_table
from btcompress.memory import size_text
from btcompress.wording import (
    agreements,
    error_of,
    form_lines,
    metric_text,
    precision_words,
    rank_text,
    ratio_text,
    untouched_text,
)

if TYPE_CHECKING:
    from btcompress.results import (
        CalibrationReport,
        CompressionReport,
        FineTuneReport,
        InputsReport,
        MatrixReport,
        ModelReport,
        YardstickReport,
    )


def show_report(report: CompressionReport) -> None:
    """Print a report: a row for each matrix, the whole model, then what to know and to do."""
    console = make_console()
    if report.matrices:
        show_table(console, _matrix_table(report.matrices))
    if any(row.roundings for row in report.matrices):
        show_table(console, rounding_table(report.matrices))
    if any(row.yardsticks for row in report.matrices):
        show_table(console, _yardstick_table(report.matrices))
    _show_model(console, report.model, report.matrices)
    if report.on_inputs:
        show_table(console, _inputs_table(report.on_inputs))
    if any(each.rounded for each in report.on_inputs):
        show_table(console, rounded_lstms_table(report.on_inputs))
    if report.calibrated:
        show_table(console, _calibration_table(report.calibrated))
    if report.finetuned:
        show_table(console, _training_table(report.finetuned))
    if report.bench is not None:
        show_measured(console, report.bench)
    if report.expected_speed is not None:
        show_list(console, "Expected speed", report.expected_speed.advice)
    if report.untouched is not None:
        show_list(console, "Not factorized", [untouched_text(report.untouched)])
    show_list(console, "Left dense", [f"{left.name}: {left.reason}." for left in report.left_dense])
    show_list(console, "Note", report.notices)
    show_list(console, "Advice", report.advice)


def _matrix_table(matrices: Sequence[MatrixReport]) -> NumberTable:
    """Sizes in parameters, or in bytes, behind what numbers are stored as, where any matrix has fewer bits."""
    measured = any(row.activation_error is not None for row in matrices)
    in_bytes = any(row.has_fewer_bits for row in matrices)
    svd = "SVD at\nequal bytes" if in_bytes else "SVD at\nequal size"
    sizes = ["stored as", "bytes\nbefore", "bytes\nafter"] if in_bytes else ["before", "after"]
    headers = ["matrix", "N", "R", *sizes, "ratio", "weight\nerror", svd]
    table = NumberTable([*headers, *["activation\nerror", "weighted"] * measured])
    for row in matrices:
        of_outputs = (_plain_text(error) for error in (row.activation_error, row.weighted_activation_error))
        table.add_row(
            form_lines(row.name, row.shape, row.out_modes, row.in_modes, row.gates, row.core, _orders(row)),
            str(row.cp_rank) if row.cp_rank else "-",
            rank_text(row.tucker_ranks) if row.tucker_ranks else "-",
            *(_bytes_cells(row) if in_bytes else _parameter_cells(row)),
            f"{row.weight_error:.3f}",
            f"{row.svd_error:.3f} (rank {row.svd_rank})" if row.svd_rank else "none so small",
            *(of_outputs if measured else ()),
        )
    return table


def _parameter_cells(row: MatrixReport) -> tuple[str, ...]:
    return f"{row.params_before:,}", f"{row.params_after:,}", ratio_text(row.weights_ratio)


def _bytes_cells(row: MatrixReport) -> tuple[str, ...]:
    sizes = (size_text(row.bytes_before), size_text(row.bytes_after))
    return precision_words(row.precision, row.shape[1]), *sizes, ratio_text(row.bytes_ratio)


def _plain_text(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.3f}"


def _orders(row: MatrixReport) -> list[str]:
    return [name for name in ("row_order", "column_order") if getattr(row, name)]


def _yardstick_table(matrices: Sequence[MatrixReport]) -> NumberTable:
    """A row of weight errors for each matrix, and two of activation errors where they were measured."""
    forms = {"low_rank": "low rank", "low_rank_on_inputs": "low rank,\nfitted to inputs"}
    forms |= {"tensor_train": "tensor train", "greedy": "greedy\ndeflation"}
    if not any(other.form == "low_rank_on_inputs" for row in matrices for other in row.yardsticks):
        del forms["low_rank_on_inputs"]
    own = "as it is" if any(row.form == "dense" for row in matrices) else "block\nterms"
    table = NumberTable(["at equal size", own, *forms.values()])
    errors = {"weight error": "weight_error", "activation error": "activation_error"}
    errors["weighted activation error"] = "weighted_activation_error"
    for row in matrices:
        others = {other.form: other for other in row.yardsticks}
        table.add_row(row.name, *[""] * (1 + len(forms)))
        for words, name in errors.items():
            if (own := getattr(row, name)) is not None:
                cells = [_error_text(others.get(form), name) for form in forms]
                table.add_row(f"  {words}", f"{own:.3f}", *cells)
    return table


def _error_text(other: YardstickReport | None, name: str) -> str:
    """An error, with the rank where the form has one of its own; a dash where there is none."""
    error: float | None = getattr(other, name, None)
    if other is None or error is None:
        return "-"
    return f"{error:.3f}" if other.form == "greedy" else f"{error:.3f} (rank {rank_text(other.ranks)})"


def _show_model(console: Console, model: ModelReport, matrices: Sequence[MatrixReport]) -> None:
    table = NumberTable(["whole model", "before", "after", "ratio"])
    table.add_row("parameters", f"{model.params_before:,}", f"{model.params_after:,}", ratio_text(model.ratio))
    sizes = {"bytes": (model.bytes_before, model.bytes_after)}
    if any(row.has_fewer_bits for row in matrices):
        before, after = (sum(getattr(row, name) for row in matrices) for name in ("bytes_before", "bytes_after"))
        sizes["  of which the matrices above"] = (before, after)
    for words, (before, after) in sizes.items():
        table.add_row(words, size_text(before), size_text(after), ratio_text(before / max(after, 1)))
    show_table(console, table)


def _inputs_table(reports: Sequence[InputsReport]) -> NumberTable:
    table = NumberTable(["on the inputs given", "", "sequences"])
    for row in reports:
        table.add_row(error_of(row.lstm), f"{row.hidden_state_error:.4f}", f"{row.n_sequences:,}")
        for words, (share,) in agreements([row.agreement]):
            table.add_row(f"  {words}", share, "")
    return table


def _training_table(trainings: Sequence[FineTuneReport]) -> NumberTable:
    table = NumberTable(["on sequences held back", "dense", "before", "fine-tuned", "epochs", "sequences"])
    for row in trainings:
        table.add_row(
            f"{row.metric} ({'higher' if row.higher_is_better else 'lower'} is better)",
            "not measured" if row.dense is None else metric_text(row.dense),
            metric_text(row.before),
            metric_text(row.after),
            f"{row.epochs}",
            f"{row.n_held:,}",
        )
        for words, shares in agreements([row.agreement_before, row.agreement_after]):
            table.add_row(f"  {words}", "", *shares, "", "")
    return table


def _calibration_table(calibrations: Sequence[CalibrationReport]) -> NumberTable:
    rounded = any(row.hidden_state_error_rounded is not None for row in calibrations)
    headers = ["fitted to\nthe weights", "fitted to\nthe inputs", *["rounded"] * rounded]
    table = NumberTable(["on sequences held back", *headers, "calibrated", "epochs", "sequences"])
    for row in calibrations:
        between = [row.hidden_state_error_refitted, *[row.hidden_state_error_rounded] * rounded]
        table.add_row(
            error_of(row.lstm),
            f"{row.hidden_state_error_before:.4f}",
            *("not measured" if error is None else f"{error:.4f}" for error in between),
            f"{row.hidden_state_error_after:.4f}",
            f"{row.layer_epochs} by layer + {row.epochs}" if row.layer_epochs else f"{row.epochs}",
            f"{row.n_held:,}",
        )
        for words, (before, after) in agreements([row.agreement_before, row.agreement_after]):
            table.add_row(f"  {words}", before, *[""] * len(between), after, "", "")
    return table
