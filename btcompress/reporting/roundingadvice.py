"""Where rounding alone would have done as well, where 8 bits would cost nothing, and what to do then."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from btcompress.memory import size_text
from btcompress.reporting.comparing import is_better
from btcompress.results import InputsReport, MatrixReport, ModelReport, RoundingReport

#: Errors that 8 bits raise by no more than this share are told to be left as they are.
_UNCHANGED = 0.01
#: Training towards hidden states lets the error of a single matrix rise, up to 2.2 times where it was measured (see
#: docs/choosing.md): of one that was trained, only a rounding with an error so many times smaller says anything.
_GIVEN_BACK = 3.0
#: Files that get smaller by less than this are not worth a word.
_WORTH_SAYING = 1.1


def rounding_advice(
    rows: Sequence[MatrixReport], on_inputs: Sequence[InputsReport], model: ModelReport, *, trained: bool
) -> Iterator[str]:
    """What rounding alone, or 8 bits, would do.

    Args:
        rows: the matrices that were chosen.
        on_inputs: what was measured on inputs given now.
        model: the whole checkpoint.
        trained: whether anything was done since the fit, so that weight errors say nothing any more.
    """
    told = [*_for_lstms(on_inputs), *_for_matrices(rows, trained=trained)]
    yield from told
    if told:
        yield (
            "Let form and bits be chosen together, which by the same measure is never worse than rounding alone: "
            f"factorize with --target-ratio {_bytes_ratio(rows)} --of bytes, and --bits auto, which is its default."
        )
    else:
        yield from _in_8_bits(rows, model, trained=trained)


def _for_lstms(reports: Sequence[InputsReport]) -> Iterator[str]:
    for report in reports:
        of_equal_size = [each for each in report.rounded if each.precision in ("equal_bytes", "same")]
        best = min(of_equal_size, key=lambda each: each.hidden_state_error, default=None)
        if best is not None and not is_better(report.hidden_state_error, best.hidden_state_error):
            whose = f" of {report.lstm}" if report.lstm else ""
            how = ", errors fed back," if best.fed_back else ""
            yield (
                f"Rounding alone does as well or better: at no more bytes, the matrices{whose} as integers{how} leave "
                f"the hidden states off by {best.hidden_state_error:.3f} of their size on the inputs given, and "
                f"this result by {report.hidden_state_error:.3f}."
            )


def _for_matrices(rows: Sequence[MatrixReport], *, trained: bool) -> Iterator[str]:
    pairs = [(row, best) for row in rows if (best := _better_rounding(row, trained=trained)) is not None]
    texts = []
    for row, (rounding, error, own) in pairs:
        how = ", errors fed back" if rounding.fed_back else ""
        size = f"{size_text(rounding.bytes)} against {size_text(row.bytes_after)}"
        texts.append(f"{row.name} (as {rounding.precision}{how} {error:.3f} against {own:.3f}, {size})")
    if texts:
        every = "every matrix that was chosen: " if 1 < len(texts) == len(rows) else ""
        yield f"Rounding alone does as well or better at no more bytes for {every}{', '.join(texts)}."


def _better_rounding(row: MatrixReport, *, trained: bool) -> tuple[RoundingReport, float, float] | None:
    """The best rounding of no more bytes with its error and that of the matrix, if the latter is not the smaller one.

    Errors are those on inputs where they were measured. For a matrix that is rounded already only a better one counts,
    and only before it was trained or fitted to inputs.
    """
    is_dense = row.form == "dense"
    field = _measured_field(row, trained=trained)
    if field is None or (is_dense and trained):
        return None
    own: float = getattr(row, field)
    found = [
        (error, each)
        for each in row.roundings_within
        if (error := getattr(each, field)) is not None and not (each.fed_back and (is_dense or field == "weight_error"))
    ]
    if not found:
        return None
    error, best = min(found, key=lambda pair: pair[0])
    outdone = is_better(error, own) if is_dense else not is_better(own, _GIVEN_BACK * error if trained else error)
    return (best, error, own) if outdone else None


def _measured_field(row: MatrixReport, *, trained: bool) -> str | None:
    """Which error says how good a matrix is."""
    if row.weighted_activation_error is not None:
        return "weighted_activation_error"
    return None if trained else "weight_error"


def _bytes_ratio(rows: Sequence[MatrixReport]) -> str:
    """How many times fewer bytes the matrices take, in three digits, rounded down: what can be wished for again."""
    ratio = sum(row.bytes_before for row in rows) / max(sum(row.bytes_after for row in rows), 1)
    unit = 10.0 ** (math.floor(math.log10(ratio)) - 2)
    return f"{math.floor(ratio / unit) * unit:.10g}"


def _in_8_bits(rows: Sequence[MatrixReport], model: ModelReport, *, trained: bool) -> Iterator[str]:
    floats = [row for row in rows if row.form == "block_terms" and not row.has_fewer_bits]
    pairs = [(row, row.in_8_bits) for row in floats if row.in_8_bits is not None]
    if len(pairs) < len(floats) or not all(_costs_nothing(row, eight, trained=trained) for row, eight in pairs):
        return
    size = model.bytes_after - sum(row.bytes_after - eight.bytes for row, eight in pairs)
    if pairs and size > 0 and model.bytes_after / size >= _WORTH_SAYING:
        yield (
            f"Cores and factors are {', '.join(dict.fromkeys(row.precision for row in floats))}. In 8 bits (--bits 8) "
            f"this file would be {model.bytes_after / size:.2f} times smaller, {size_text(size)}, and no error would "
            f"rise by more than {_UNCHANGED:.0%}, as measured on each matrix."
        )


def _costs_nothing(row: MatrixReport, eight: RoundingReport, *, trained: bool) -> bool:
    field = _measured_field(row, trained=trained)
    error: float | None = None if field is None else getattr(eight, field)
    return field is not None and error is not None and error <= (1 + _UNCHANGED) * getattr(row, field)
