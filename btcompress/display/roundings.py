"""What rounding alone would do: the yardsticks beside matrices and LSTMs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from btcompress.display.tables import NumberTable, worse_if
from btcompress.memory import size_text
from btcompress.wording import error_of, precision_words

if TYPE_CHECKING:
    from btcompress.results import InputsReport, MatrixReport, RoundingReport

_INT4 = "int4/32"
#: Errors by what they are called, and the words for them.
_ERRORS = {
    "weight_error": "weight error",
    "activation_error": "activation error",
    "weighted_activation_error": "weighted activation error",
}
_COLUMNS = ("as it is", "int8\nby rows", "int4 in\ngroups of 32", "integers at\nno more bytes")
_SAME = "the same for all\nat no more bytes"


def rounding_table(matrices: Sequence[MatrixReport], *, trained: bool) -> NumberTable:
    """For each matrix its bytes and errors, and those of the dense one rounded alone.

    Args:
        matrices: rows of the report.
        trained: whether they were trained since the fit, so that errors of a single matrix say nothing any more.
    """
    from btcompress.reporting.comparing import is_better

    table = NumberTable("rounded alone", _COLUMNS, worse="is worse than the matrix rounded alone at no more bytes.")
    for row in (row for row in matrices if row.roundings):
        nearest = [each for each in row.roundings if not each.fed_back]
        best = row.best_rounding
        columns = (
            [each for each in nearest if _is_int8_by_rows(each, row.shape[1])],
            [each for each in nearest if each.precision == _INT4],
            [] if best is None else [best],
        )
        on_inputs = best is not None and best.weighted_activation_error is not None
        decisive = "weighted_activation_error" if on_inputs else "weight_error"
        table.add_row(row.name, *[""] * len(_COLUMNS))
        table.add_row(
            "  bytes",
            size_text(row.bytes_after),
            *(size_text(each[0].bytes) if each else "none" for each in columns[:2]),
            "none so few" if best is None else precision_words(best.precision, row.shape[1]),
        )
        for field, words in _ERRORS.items():
            cells = [_least(row, each, field, fed_back=False) for each in columns]
            if any(cell != "-" for cell in cells):
                own = getattr(row, field)
                worse = field == decisive and not trained and is_better(getattr(best, field, None), own)
                table.add_row(f"  {words}", "not measured" if own is None else worse_if(worse, f"{own:.3f}"), *cells)
        cells = [_least(row, each, "weighted_activation_error", fed_back=True) for each in columns]
        if any(cell != "-" for cell in cells):
            table.add_row("    errors fed back", "", *cells)
    return table


def rounded_lstms_table(reports: Sequence[InputsReport]) -> NumberTable:
    """For each LSTM its hidden-state error, and those of the dense one with its matrices rounded alone."""
    from btcompress.reporting.comparing import is_better

    worse = "is worse than the matrices rounded alone at no more bytes."
    table = NumberTable("matrices rounded alone", [*_COLUMNS, _SAME], worse=worse)
    for report in (report for report in reports if report.rounded):
        for fed_back in (False, True):
            errors = {each.precision: each.hidden_state_error for each in report.rounded if each.fed_back is fed_back}
            if errors:
                cells = (errors.get(name) for name in ("int8", "int4", "equal_bytes", "same"))
                error = report.hidden_state_error
                nearer = any(is_better(errors.get(name), error) for name in ("equal_bytes", "same"))
                own = "" if fed_back else worse_if(nearer, f"{error:.4f}")
                first = "  errors fed back" if fed_back else error_of(report.lstm)
                table.add_row(first, own, *("-" if error is None else f"{error:.4f}" for error in cells))
    return table


def _is_int8_by_rows(rounding: RoundingReport, columns: int) -> bool:
    return precision_words(rounding.precision, columns) == "int8 by rows"


def _least(row: MatrixReport, nearest: Iterable[RoundingReport], field: str, *, fed_back: bool) -> str:
    """The least error of roundings to the nearest, or of the same integers with errors fed back; a dash for none."""
    wanted = {each.precision for each in nearest}
    errors = [
        error
        for each in row.roundings
        if each.precision in wanted and each.fed_back is fed_back and (error := getattr(each, field)) is not None
    ]
    return f"{min(errors):.3f}" if errors else "-"
