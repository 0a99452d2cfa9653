"""The tables of a report as values, for pages that people read: the same numbers in the same words as on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from btcompress.memory import size_text
from btcompress.results import (
    CalibrationReport,
    ExpectedCase,
    FineTuneReport,
    InputsReport,
    LayerReport,
    MatrixReport,
    ModelReport,
    RoundingReport,
    YardstickReport,
)
from btcompress.timings import BenchCase, WayTiming
from btcompress.wording import (
    agreements,
    case_text,
    error_of,
    form_text,
    metric_text,
    milliseconds_text,
    precision_words,
    rank_text,
    ratio_text,
    way_text,
)

#: Errors by what they are called, and the words for them.
ERRORS = {
    "weight_error": "weight error",
    "activation_error": "activation error",
    "weighted_activation_error": "weighted activation error",
}
_FORMS = {
    "low_rank": "low rank",
    "low_rank_on_inputs": "low rank, fitted to inputs",
    "tensor_train": "tensor train",
    "greedy": "greedy deflation",
}
_INT4 = "int4/32"
_ROUNDED = ("as it is", "int8 by rows", "int4 in groups of 32", "integers at no more bytes")


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        headers: of the columns.
        rows: a cell for each column.
        texts: how many columns, from the left, hold text; the others hold numbers. The first one names the row.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1

    @classmethod
    def of(cls, headers: Iterable[str], rows: Iterable[Sequence[str]], texts: int = 1) -> Table:
        """A table of any cells."""
        return cls(tuple(headers), tuple(tuple(row) for row in rows), texts)


def matrix_table(matrices: Sequence[MatrixReport]) -> Table:
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
    return Table.of(("matrix", "size", "form", "N", "R", *sizes, "ratio", *errors), rows, texts=3)


def _parameters(row: MatrixReport) -> tuple[str, ...]:
    return f"{row.params_before:,}", f"{row.params_after:,}", ratio_text(row.weights_ratio)


def _bytes(row: MatrixReport) -> tuple[str, ...]:
    sizes = (size_text(row.bytes_before), size_text(row.bytes_after))
    return precision_words(row.precision, row.shape[1]), *sizes, ratio_text(row.bytes_ratio)


def model_table(model: ModelReport, matrices: Sequence[MatrixReport] = ()) -> Table:
    """Parameters and bytes of the whole model, and bytes of the chosen matrices where any of them has fewer bits."""
    sizes = {"bytes": (model.bytes_before, model.bytes_after)}
    if any(row.has_fewer_bits for row in matrices):
        before, after = (sum(getattr(row, name) for row in matrices) for name in ("bytes_before", "bytes_after"))
        sizes["of which the chosen matrices"] = (before, after)
    rows = [("parameters", f"{model.params_before:,}", f"{model.params_after:,}", ratio_text(model.ratio))]
    rows += [(words, *_sizes(before, after)) for words, (before, after) in sizes.items()]
    return Table.of(("whole model", "before", "after", "ratio"), rows)


def layer_table(layers: Sequence[LayerReport], model: ModelReport) -> Table:
    """The bytes of each layer, and of what else is in the file."""
    rows = [(layer_name(each), *_sizes(each.bytes_before, each.bytes_after)) for each in layers]
    rest = model.bytes_after - model.tensor_bytes_after
    rows += [("names and record", "-", size_text(rest), "-")] if rest > 0 else []
    return Table.of(("layer", "bytes before", "bytes after", "ratio"), rows)


def layer_name(layer: LayerReport) -> str:
    """What a layer is called."""
    name = layer.name or "the top of the checkpoint"
    return name if layer.number is None else f"{name}, layer {layer.number}"


def _sizes(before: int, after: int) -> tuple[str, str, str]:
    return size_text(before), size_text(after), ratio_text(before / max(after, 1))


def yardstick_table(matrices: Sequence[MatrixReport]) -> Table:
    """A row of weight errors for each matrix, and two of activation errors where they were measured."""
    known = {other.form for row in matrices for other in row.yardsticks}
    forms = {form: words for form, words in _FORMS.items() if form != "low_rank_on_inputs" or form in known}
    rows = []
    for row in (row for row in matrices if row.yardsticks):
        others = {other.form: other for other in row.yardsticks}
        for name, words in ERRORS.items():
            if (own := getattr(row, name)) is not None:
                cells = (yardstick_text(others.get(form), name) for form in forms)
                rows.append((row.name, words, f"{own:.3f}", *cells))
    return Table.of(("matrix", "at equal size", "as it is", *forms.values()), rows, texts=2)


def yardstick_text(other: YardstickReport | None, name: str) -> str:
    """An error, with the rank where the form has one of its own; a dash where there is none."""
    error: float | None = getattr(other, name, None)
    if other is None or error is None:
        return "-"
    return f"{error:.3f}" if other.form == "greedy" else f"{error:.3f} (rank {rank_text(other.ranks)})"


def rounding_table(matrices: Sequence[MatrixReport]) -> Table:
    """For each matrix its bytes and errors, and those of the dense one rounded alone."""
    rows = [
        (row.name, "bytes" if field == "bytes" else f"{ERRORS[field]}{', errors fed back' * fed_back}", *cells)
        for row in matrices
        for field, fed_back, cells in rounding_rows(row)
    ]
    return Table.of(("matrix", "rounded alone", *_ROUNDED), rows, texts=2)


def rounding_rows(row: MatrixReport) -> Iterator[tuple[str, bool, tuple[str, ...]]]:
    """What there is to show of a matrix and its roundings; nothing where it was not rounded.

    Yields:
        ``"bytes"`` or the name of an error; whether errors were fed back; and the cells: of the matrix as it is, of 8
        bits by rows, of 4 bits in groups of 32, and of the best rounding at no more bytes.
    """
    if not row.roundings:
        return
    nearest = [each for each in row.roundings if not each.fed_back]
    best = row.best_rounding
    columns = (
        [each for each in nearest if precision_words(each.precision, row.shape[1]) == _ROUNDED[1]],
        [each for each in nearest if each.precision == _INT4],
        [] if best is None else [best],
    )
    sizes = (size_text(each[0].bytes) if each else "none" for each in columns[:2])
    within = "none so few" if best is None else precision_words(best.precision, row.shape[1])
    yield "bytes", False, (size_text(row.bytes_after), *sizes, within)
    for field in ERRORS:
        cells = [_least(row, each, field, fed_back=False) for each in columns]
        if any(cell != "-" for cell in cells):
            own = getattr(row, field)
            yield field, False, ("not measured" if own is None else f"{own:.3f}", *cells)
    field = "weighted_activation_error"
    cells = [_least(row, each, field, fed_back=True) for each in columns]
    if any(cell != "-" for cell in cells):
        yield field, True, ("", *cells)


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
        for fed_back in (False, True):
            errors = {each.precision: each.hidden_state_error for each in report.rounded if each.fed_back is fed_back}
            if errors:
                cells = (errors.get(name) for name in ("int8", "int4", "equal_bytes", "same"))
                own = "" if fed_back else f"{report.hidden_state_error:.4f}"
                first = f"{error_of(report.lstm)}{', errors fed back' * fed_back}"
                rows.append((first, own, *("-" if error is None else f"{error:.4f}" for error in cells)))
    return Table.of(("matrices rounded alone", *_ROUNDED, "the same for all at no more bytes"), rows)


def inputs_table(reports: Sequence[InputsReport]) -> Table:
    """What each recurrent layer gives on the inputs given."""
    rows: list[Sequence[str]] = []
    for row in reports:
        rows.append((error_of(row.lstm), f"{row.hidden_state_error:.4f}", f"{row.n_sequences:,}"))
        rows += [(words, share, "") for words, (share,) in agreements([row.agreement])]
    return Table.of(("on the inputs given", "measured", "sequences"), rows)


def calibration_table(calibrations: Sequence[CalibrationReport]) -> Table:
    """What each calibration brought, stage by stage."""
    rows: list[Sequence[str]] = []
    for row in calibrations:
        errors = (row.hidden_state_error_refitted, row.hidden_state_error_rounded, row.hidden_state_error_after)
        cells = ("not measured" if error is None else f"{error:.4f}" for error in errors)
        epochs = f"{row.layer_epochs} by layer + {row.epochs}" if row.layer_epochs else f"{row.epochs}"
        rows.append((error_of(row.lstm), f"{row.hidden_state_error_before:.4f}", *cells, epochs, f"{row.n_held:,}"))
        shares = agreements([row.agreement_before, row.agreement_after])
        rows += [(words, before, "", "", after, "", "") for words, (before, after) in shares]
    columns = ("fitted to the weights", "fitted to the inputs", "rounded", "calibrated", "epochs", "sequences")
    return Table.of(("on sequences held back", *columns), rows)


def training_table(trainings: Sequence[FineTuneReport]) -> Table:
    """What each training brought."""
    rows: list[Sequence[str]] = []
    for row in trainings:
        better = "higher" if row.higher_is_better else "lower"
        dense = "not measured" if row.dense is None else metric_text(row.dense)
        values = (dense, metric_text(row.before), metric_text(row.after))
        rows.append((f"{row.metric} ({better} is better)", *values, f"{row.epochs}", f"{row.n_held:,}"))
        shares = agreements([row.agreement_before, row.agreement_after])
        rows += [(words, "", *both, "", "") for words, both in shares]
    return Table.of(("on sequences held back", "dense", "before", "fine-tuned", "epochs", "sequences"), rows)


def bench_table(cases: Sequence[BenchCase]) -> Table:
    """A row for each case and way."""
    columns = ("median ms", "middle half ms", "steps a second", "peak memory", "parameters", "operations a step")
    rows = []
    for case in cases:
        for way in case.ways:
            dense = case.onnx_dense if way.way.startswith("onnx") else case.dense
            ratio = "-" if dense is None else ratio_text(dense.seconds / way.seconds)
            rows.append((case_text(case), way_text(way.way), *_timing(case, way), ratio))
    return Table.of(("case", "way", *columns, "dense over it"), rows, texts=2)


def _timing(case: BenchCase, way: WayTiming) -> tuple[str, ...]:
    first, third = map(milliseconds_text, way.quartiles)
    return (
        milliseconds_text(way.seconds),
        f"{first} to {third}",
        f"{case.batch * case.steps / way.seconds:,.0f}",
        "not known" if way.peak_bytes is None else size_text(way.peak_bytes),
        f"{way.params:,}",
        "-" if way.operations is None else f"{way.operations:,}",
    )


def expected_table(cases: Sequence[ExpectedCase]) -> Table:
    """How fast layers are to be beside the dense ones, by the cost model."""
    rows = [(each.lstm or each.kind, f"{each.batch:,}", f"{each.steps:,}", ratio_text(each.ratio)) for each in cases]
    return Table.of(("layer", "batch", "steps", "dense over it"), rows)
