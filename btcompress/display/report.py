"""Reports: what a compression gained and lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from btcompress.display.bench import show_measured
from btcompress.display.console import make_console
from btcompress.display.roundings import rounded_lstms_table, rounding_table
from btcompress.display.tables import NumberTable, show_lists, show_tables, worse_if
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
    )


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
    trained = bool(report.calibrated or report.finetuned)
    if report.matrices:
        yield _matrix_table(report.matrices, trained=trained)
    if any(row.roundings for row in report.matrices):
        yield rounding_table(report.matrices, trained=trained)
    if any(row.yardsticks for row in report.matrices):
        yield _yardstick_table(report.matrices)
    yield _model_table(report.model, report.matrices)
    if report.on_inputs:
        yield _inputs_table(report.on_inputs)
    if any(each.rounded for each in report.on_inputs):
        yield rounded_lstms_table(report.on_inputs)
    if report.calibrated:
        yield _calibration_table(report.calibrated)
    if report.finetuned:
        yield _training_table(report.finetuned)


def _matrix_table(matrices: Sequence[MatrixReport], *, trained: bool) -> NumberTable:
    """Sizes in parameters, or in bytes, behind what numbers are stored as, where any matrix has fewer bits.

    Where matrices were trained, or it was measured what they do on inputs, weight errors say nothing of how good they
    are, and none is held against another form's.
    """
    # Here, since the help of the commands is shown without torch.
    from btcompress.reporting.comparing import is_better

    measured = any(row.activation_error is not None for row in matrices)
    in_bytes = any(row.has_fewer_bits for row in matrices)
    sizes = ["stored as", "bytes\nbefore", "bytes\nafter"] if in_bytes else ["before", "after"]
    errors = ["weight\nerror", "SVD at\nequal bytes" if in_bytes else "SVD at\nequal size"]
    errors += ["activation\nerror", "weighted"] * measured
    worse = "is larger than before, or has a greater error than low rank of equal size."
    table = NumberTable("matrix", ["N", "R", *sizes, "ratio"], errors, worse=worse)
    for row in matrices:
        by_weights = not trained and row.weighted_activation_error is None
        outdone = by_weights and bool(row.svd_rank) and is_better(row.svd_error, row.weight_error)
        of_outputs = (_plain_text(error) for error in (row.activation_error, row.weighted_activation_error))
        table.add_row(
            form_lines(row.name, row.shape, row.out_modes, row.in_modes, row.gates, row.core, _orders(row)),
            str(row.cp_rank) if row.cp_rank else "-",
            rank_text(row.tucker_ranks) if row.tucker_ranks else "-",
            *(_bytes_cells(row) if in_bytes else _parameter_cells(row)),
            worse_if(outdone, f"{row.weight_error:.3f}"),
            f"{row.svd_error:.3f} (rank {row.svd_rank})" if row.svd_rank else "none so small",
            *(of_outputs if measured else ()),
        )
    return table


def _parameter_cells(row: MatrixReport) -> tuple[str, ...]:
    return f"{row.params_before:,}", f"{row.params_after:,}", _ratio_text(row.weights_ratio)


def _ratio_text(ratio: float) -> str:
    return worse_if(ratio < 1, ratio_text(ratio))


def _bytes_cells(row: MatrixReport) -> tuple[str, ...]:
    sizes = (size_text(row.bytes_before), size_text(row.bytes_after))
    return precision_words(row.precision, row.shape[1]), *sizes, _ratio_text(row.bytes_ratio)


def _plain_text(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.3f}"


def _orders(row: MatrixReport) -> list[str]:
    return [name for name in ("row_order", "column_order") if getattr(row, name)]


def _yardstick_table(matrices: Sequence[MatrixReport]) -> NumberTable:
    """A row of weight errors for each matrix, and two of activation errors where they were measured."""
    # Here, since the help of the commands is shown without torch.
    from btcompress.reporting.tables import yardstick_text

    forms = {"low_rank": "low rank", "low_rank_on_inputs": "low rank,\nfitted to inputs"}
    forms |= {"tensor_train": "tensor train", "greedy": "greedy\ndeflation"}
    if not any(other.form == "low_rank_on_inputs" for row in matrices for other in row.yardsticks):
        del forms["low_rank_on_inputs"]
    own = "as it is" if any(row.form == "dense" for row in matrices) else "block\nterms"
    table = NumberTable("at equal size", [own, *forms.values()])
    errors = {"weight error": "weight_error", "activation error": "activation_error"}
    errors["weighted activation error"] = "weighted_activation_error"
    for row in matrices:
        others = {other.form: other for other in row.yardsticks}
        table.add_row(row.name, *[""] * (1 + len(forms)))
        for words, name in errors.items():
            if (own := getattr(row, name)) is not None:
                cells = [yardstick_text(others.get(form), name) for form in forms]
                table.add_row(f"  {words}", f"{own:.3f}", *cells)
    return table


def _model_table(model: ModelReport, matrices: Sequence[MatrixReport]) -> NumberTable:
    table = NumberTable("whole model", ["before", "after", "ratio"], worse="is larger than before.")
    table.add_row("parameters", f"{model.params_before:,}", f"{model.params_after:,}", _ratio_text(model.ratio))
    sizes = {"bytes": (model.bytes_before, model.bytes_after)}
    if any(row.has_fewer_bits for row in matrices):
        before, after = (sum(getattr(row, name) for row in matrices) for name in ("bytes_before", "bytes_after"))
        sizes["  of which the matrices above"] = (before, after)
    for words, (before, after) in sizes.items():
        table.add_row(words, size_text(before), size_text(after), _ratio_text(before / max(after, 1)))
    return table


def _inputs_table(reports: Sequence[InputsReport]) -> NumberTable:
    table = NumberTable("on the inputs given", ["", "sequences"])
    for row in reports:
        table.add_row(error_of(row.lstm), f"{row.hidden_state_error:.4f}", f"{row.n_sequences:,}")
        for words, (share,) in agreements([row.agreement]):
            table.add_row(f"  {words}", share, "")
    return table


def _training_table(trainings: Sequence[FineTuneReport]) -> NumberTable:
    columns = ["dense", "before", "fine-tuned"], ["epochs", "sequences"]
    table = NumberTable("on sequences held back", *columns, worse="is worse than before.")
    for row in trainings:
        table.add_row(
            f"{row.metric} ({'higher' if row.higher_is_better else 'lower'} is better)",
            "not measured" if row.dense is None else metric_text(row.dense),
            metric_text(row.before),
            worse_if(_is_worse(row), metric_text(row.after)),
            f"{row.epochs}",
            f"{row.n_held:,}",
        )
        for words, shares in agreements([row.agreement_before, row.agreement_after]):
            table.add_row(f"  {words}", "", *shares, "", "")
    return table


def _is_worse(training: FineTuneReport) -> bool:
    """Whether the metric is worse than before, as it is written."""
    before, after = training.before, training.after
    differ = metric_text(before) != metric_text(after)
    return differ and (after < before if training.higher_is_better else after > before)


def _calibration_table(calibrations: Sequence[CalibrationReport]) -> NumberTable:
    from btcompress.reporting.comparing import is_better

    rounded = any(row.hidden_state_error_rounded is not None for row in calibrations)
    headers = ["fitted to\nthe weights", "fitted to\nthe inputs", *["rounded"] * rounded]
    worse = "is worse than fitted to the weights."
    table = NumberTable("on sequences held back", [*headers, "calibrated"], ["epochs", "sequences"], worse=worse)
    for row in calibrations:
        before, after = row.hidden_state_error_before, row.hidden_state_error_after
        between = [row.hidden_state_error_refitted, *[row.hidden_state_error_rounded] * rounded]
        table.add_row(
            error_of(row.lstm),
            f"{before:.4f}",
            *("not measured" if error is None else f"{error:.4f}" for error in between),
            worse_if(is_better(before, after), f"{after:.4f}"),
            f"{row.layer_epochs} by layer + {row.epochs}" if row.layer_epochs else f"{row.epochs}",
            f"{row.n_held:,}",
        )
        for words, (first, last) in agreements([row.agreement_before, row.agreement_after]):
            table.add_row(f"  {words}", first, *[""] * len(between), last, "", "")
    return table
