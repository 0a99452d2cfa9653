"""What would be in the place of matrices and layers: other forms of equal size and rounding alone, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from btcompress.memory import size_text
from btcompress.reporting.comparing import is_better, of_matrices_count
from btcompress.reporting.values import Row, Table
from btcompress.results import CompressionReport, InputsReport, MatrixReport, RoundingReport, YardstickReport
from btcompress.wording import error_of, error_text, precision_words, rank_text, worse_if

#: Errors by what they are called, and the words for them.
_ERRORS = {
    "weight_error": "weight error",
    "activation_error": "activation error",
    "weighted_activation_error": "weighted activation error",
}
_FORMS = {
    "low_rank": "low rank",
    "low_rank_on_inputs": "low rank,\nfitted to inputs",
    "tensor_train": "tensor train",
    "greedy": "greedy\ndeflation",
}
_INT4 = "int4/32"
_ROUNDED = ("as it is", "int8\nby rows", "int4 in\ngroups of 32", "integers at\nno more bytes")
_BY_ROWS = "int8 by rows"
_ROUNDED_LAYERS = ("int8", "int4", "equal_bytes", "same")
_FED_BACK = "errors fed back"


def yardstick_table(matrices: Sequence[MatrixReport]) -> Table:
    """A row of weight errors for each matrix, and two of activation errors where they were measured."""
    known = {other.form for row in matrices for other in row.yardsticks}
    forms = {form: words for form, words in _FORMS.items() if form != "low_rank_on_inputs" or form in known}
    own_form = "as it is" if any(row.form == "dense" for row in matrices) else "block\nterms"
    rows = []
    for row in matrices if known else ():
        others = {other.form: other for other in row.yardsticks}
        for name, words in _ERRORS.items():
            if (own := getattr(row, name)) is not None:
                cells = (_yardstick_text(others.get(form), name) for form in forms)
                rows.append(Row((row.name, words), (f"{own:.3f}", *cells)))
    return Table(("matrix", "at equal size"), ((own_form, *forms.values()),), tuple(rows), grouped=True)


def _yardstick_text(other: YardstickReport | None, name: str) -> str:
    """An error, with the rank where the form has one of its own; a dash where there is none."""
    error: float | None = getattr(other, name, None)
    if other is None or error is None:
        return "-"
    return f"{error:.3f}" if other.form == "greedy" else f"{error:.3f} (rank {rank_text(other.ranks)})"


def rounding_table(report: CompressionReport) -> Table:
    """For each matrix its bytes and errors, and those of the dense one rounded alone."""
    count = of_matrices_count(report)
    rows = tuple(each for row in report.matrices if row.roundings for each in _rounding_rows(row, count=count))
    worse = "is worse than the matrix rounded alone at no more bytes."
    return Table(("matrix", "rounded alone"), (_ROUNDED,), rows, worse, grouped=True)


def _rounding_rows(row: MatrixReport, *, count: bool) -> Iterator[Row]:
    """Of a matrix as it is, of 8 bits by rows, of 4 bits in groups of 32, and of the best rounding at no more bytes."""
    nearest = [each for each in row.roundings if not each.fed_back]
    best = row.best_rounding
    columns = (
        [each for each in nearest if precision_words(each.precision, row.shape[1]) == _BY_ROWS],
        [each for each in nearest if each.precision == _INT4],
        [] if best is None else [best],
    )
    sizes = (size_text(each[0].bytes) if each else "none" for each in columns[:2])
    within = "none so few" if best is None else precision_words(best.precision, row.shape[1])
    yield Row((row.name, "bytes"), (size_text(row.bytes_after), *sizes, within))
    on_inputs = best is not None and best.weighted_activation_error is not None
    decisive = "weighted_activation_error" if on_inputs else "weight_error"
    for field, words in _ERRORS.items():
        cells = [_least(row, each, field, fed_back=False) for each in columns]
        if any(cell != "-" for cell in cells):
            own = getattr(row, field)
            outdone = count and field == decisive and is_better(getattr(best, field, None), own)
            yield Row((row.name, words), (worse_if(outdone, error_text(own)), *cells))
    field = "weighted_activation_error"
    cells = [_least(row, each, field, fed_back=True) for each in columns]
    if any(cell != "-" for cell in cells):
        yield Row((row.name, f"{_ERRORS[field]}, {_FED_BACK}"), ("", *cells), 1, (_FED_BACK,))


def _least(row: MatrixReport, nearest: Iterable[RoundingReport], field: str, *, fed_back: bool) -> str:
    """The least error of roundings to the nearest, or of the same integers with errors fed back; a dash for none."""
    wanted = {each.precision for each in nearest}
    errors = [
        error
        for each in row.roundings
        if each.precision in wanted and each.fed_back is fed_back and (error := getattr(each, field)) is not None
    ]
    return f"{min(errors):.3f}" if errors else "-"


def rounded_layer_table(reports: Sequence[InputsReport]) -> Table:
    """For each recurrent layer its hidden-state error, and those of the dense one with its matrices rounded alone."""
    rows = []
    for report in (report for report in reports if report.rounded):
        words = error_of(report.lstm)
        for fed_back in (False, True):
            errors = {each.precision: each.hidden_state_error for each in report.rounded if each.fed_back is fed_back}
            if not errors:
                continue
            cells = ["-" if (error := errors.get(name)) is None else f"{error:.4f}" for name in _ROUNDED_LAYERS]
            if fed_back:
                rows.append(Row((f"{words}, {_FED_BACK}",), ("", *cells), 1, (_FED_BACK,)))
            else:
                own = report.hidden_state_error
                outdone = any(is_better(errors.get(name), own) for name in ("equal_bytes", "same"))
                rows.append(Row((words,), (worse_if(outdone, f"{own:.4f}"), *cells)))
    columns = (*_ROUNDED, "the same for all\nat no more bytes")
    worse = "is worse than the matrices rounded alone at no more bytes."
    return Table(("matrices rounded alone",), (columns,), tuple(rows), worse)
