"""What rounding alone would do: the yardsticks beside matrices and LSTMs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from btcompress.display.tables import NumberTable, worse_if
from btcompress.wording import error_of

if TYPE_CHECKING:
    from btcompress.results import InputsReport, MatrixReport

_COLUMNS = ("as it is", "int8\nby rows", "int4 in\ngroups of 32", "integers at\nno more bytes")
_SAME = "the same for all\nat no more bytes"


def rounding_table(matrices: Sequence[MatrixReport], *, trained: bool) -> NumberTable:
    """For each matrix its bytes and errors, and those of the dense one rounded alone.

    Args:
        matrices: rows of the report.
        trained: whether they were trained since the fit, so that errors of a single matrix say nothing any more.
    """
    from btcompress.reporting.comparing import is_better
    from btcompress.reporting.tables import ERRORS, rounding_rows

    table = NumberTable("rounded alone", _COLUMNS, worse="is worse than the matrix rounded alone at no more bytes.")
    for row in (row for row in matrices if row.roundings):
        best = row.best_rounding
        on_inputs = best is not None and best.weighted_activation_error is not None
        decisive = "weighted_activation_error" if on_inputs else "weight_error"
        table.add_row(row.name, *[""] * len(_COLUMNS))
        for field, fed_back, (own, *cells) in rounding_rows(row):
            if field == "bytes":
                table.add_row("  bytes", own, *cells)
            elif fed_back:
                table.add_row("    errors fed back", own, *cells)
            else:
                outdone = field == decisive and is_better(getattr(best, field, None), getattr(row, field))
                table.add_row(f"  {ERRORS[field]}", worse_if(outdone and not trained, own), *cells)
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
