"""A report as Markdown, for pages that people read: the same numbers in the same words as on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from btcompress.memory import size_text
from btcompress.results import (
    CalibrationReport,
    CompressionReport,
    FineTuneReport,
    InputsReport,
    MatrixReport,
    ModelReport,
)
from btcompress.shapes import MatrixShape
from btcompress.text import printable, shortened
from btcompress.wording import agreements, error_of, form_text, metric_text, precision_words, rank_text, ratio_text

#: Characters that mean something to Markdown or HTML; behind a backslash they are themselves.
_MARKS = re.compile(r"([\\`*_\[\]<>|~&$])")

#: Characters of a text that are shown.
_MOST_CHARACTERS = 2000


def markdown(report: CompressionReport, *, advice: bool = True) -> str:
    """A report: a row for each matrix, the whole model, what was measured on sequences, then what to know.

    Yardsticks, roundings alone and benches are left to ``btcompress report``.

    Args:
        report: the report.
        advice: whether to say also what to do, which is for those who compress.
    """
    blocks = [_matrix_table(report.matrices)] if report.matrices else []
    blocks.append(_model_table(report.model))
    blocks += [_inputs_table(report.on_inputs)] if report.on_inputs else []
    blocks += [_calibration_table(report.calibrated)] if report.calibrated else []
    blocks += [_training_table(report.finetuned)] if report.finetuned else []
    speed = () if report.expected_speed is None else report.expected_speed.advice
    left = [f"{each.name}: {each.reason}." for each in report.left_dense]
    texts = {"Expected speed": speed, "Left dense": left, "Note": report.notices}
    texts |= {"Advice": report.advice} if advice else {}
    items = [f"- {title}: {escaped(text)}" for title, of_kind in texts.items() for text in of_kind]
    return "\n\n".join([*blocks, "\n".join(items)] if items else blocks)


def shapes_table(shapes: Mapping[str, MatrixShape]) -> str:
    """A row for each matrix of which nothing but its shape is known: no errors."""
    rows = []
    for key, shape in shapes.items():
        part = shape.part
        form = form_text(part.out_modes, part.in_modes, shape.gates, part.core, [*part.order_sizes])
        sizes = (f"{shape.dense_params:,}", f"{shape.n_params:,}", ratio_text(shape.ratio))
        size = f"{shape.out_size} x {shape.in_size}"
        rows.append((key, size, form, str(part.n_blocks), rank_text(part.ranks), *sizes))
    return table(("matrix", "size", "form", "N", "R", "before", "after", "ratio"), rows, texts=3)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """A table, its cells escaped.

    Args:
        headers: of the columns.
        rows: a cell for each column.
        texts: how many columns, from the left, hold text; the others hold numbers.
    """
    rule = ["---" if column < texts else "---:" for column in range(len(headers))]
    lines = [_line(map(escaped, headers)), _line(rule)]
    return "\n".join([*lines, *(_line(map(escaped, row)) for row in rows)])


def escaped(text: str) -> str:
    """Text from elsewhere as one line that Markdown shows as it is: no link, no markup, no end of a cell."""
    return _MARKS.sub(r"\\\1", shortened(printable(text), _MOST_CHARACTERS))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _matrix_table(matrices: Sequence[MatrixReport]) -> str:
    """Sizes in parameters, and in bytes as well behind what numbers are stored as where any has fewer bits."""
    measured = any(row.activation_error is not None for row in matrices)
    in_bytes = any(row.has_fewer_bits for row in matrices)
    sizes = ["stored as", "bytes before", "bytes after"] if in_bytes else ["before", "after"]
    errors = ["weight error", "SVD at equal bytes" if in_bytes else "SVD at equal size"]
    errors += ["activation error", "weighted"] * measured
    rows = []
    for row in matrices:
        orders = [name for name in ("row_order", "column_order") if getattr(row, name)]
        of_outputs = (row.activation_error, row.weighted_activation_error)
        rows.append(
            (
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                form_text(row.out_modes, row.in_modes, row.gates, row.core, orders),
                str(row.cp_rank) if row.cp_rank else "-",
                rank_text(row.tucker_ranks) if row.tucker_ranks else "-",
                *(_bytes(row) if in_bytes else _parameters(row)),
                f"{row.weight_error:.3f}",
                f"{row.svd_error:.3f} (rank {row.svd_rank})" if row.svd_rank else "none so small",
                *(("not measured" if error is None else f"{error:.3f}" for error in of_outputs) if measured else ()),
            )
        )
    return table(("matrix", "size", "form", "N", "R", *sizes, "ratio", *errors), rows, texts=3)


def _parameters(row: MatrixReport) -> tuple[str, ...]:
    return f"{row.params_before:,}", f"{row.params_after:,}", ratio_text(row.weights_ratio)


def _bytes(row: MatrixReport) -> tuple[str, ...]:
    sizes = (size_text(row.bytes_before), size_text(row.bytes_after))
    return precision_words(row.precision, row.shape[1]), *sizes, ratio_text(row.bytes_ratio)


def _model_table(model: ModelReport) -> str:
    rows = [
        ("parameters", f"{model.params_before:,}", f"{model.params_after:,}", ratio_text(model.ratio)),
        (
            "bytes",
            size_text(model.bytes_before),
            size_text(model.bytes_after),
            ratio_text(model.bytes_before / max(model.bytes_after, 1)),
        ),
    ]
    return table(("whole model", "before", "after", "ratio"), rows)


def _inputs_table(reports: Sequence[InputsReport]) -> str:
    rows: list[Sequence[str]] = []
    for row in reports:
        rows.append((error_of(row.lstm), f"{row.hidden_state_error:.4f}", f"{row.n_sequences:,}"))
        rows += [(words, share, "") for words, (share,) in agreements([row.agreement])]
    return table(("on the inputs given", "", "sequences"), rows)


def _calibration_table(calibrations: Sequence[CalibrationReport]) -> str:
    rows: list[Sequence[str]] = []
    for row in calibrations:
        errors = (row.hidden_state_error_refitted, row.hidden_state_error_rounded, row.hidden_state_error_after)
        cells = ("not measured" if error is None else f"{error:.4f}" for error in errors)
        rows.append((error_of(row.lstm), f"{row.hidden_state_error_before:.4f}", *cells, f"{row.n_held:,}"))
        shares = agreements([row.agreement_before, row.agreement_after])
        rows += [(words, before, "", "", after, "") for words, (before, after) in shares]
    columns = ("fitted to the weights", "fitted to the inputs", "rounded", "calibrated", "sequences")
    return table(("on sequences held back", *columns), rows)


def _training_table(trainings: Sequence[FineTuneReport]) -> str:
    rows: list[Sequence[str]] = []
    for row in trainings:
        better = "higher" if row.higher_is_better else "lower"
        dense = "not measured" if row.dense is None else metric_text(row.dense)
        values = (dense, metric_text(row.before), metric_text(row.after))
        rows.append((f"{row.metric} ({better} is better)", *values, f"{row.epochs}", f"{row.n_held:,}"))
        shares = agreements([row.agreement_before, row.agreement_after])
        rows += [(words, "", *both, "", "") for words, both in shares]
    return table(("on sequences held back", "dense", "before", "fine-tuned", "epochs", "sequences"), rows)
