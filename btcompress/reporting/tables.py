"""The tables of a report as values: wherever they are shown, the numbers and words are the same."""

from __future__ import annotations

from collections.abc import Sequence

from btcompress.memory import size_text
from btcompress.reporting.comparing import is_better, of_matrices_count
from btcompress.reporting.values import Row, Table
from btcompress.results import (
    CalibrationReport,
    CompressionReport,
    ExpectedCase,
    FineTuneReport,
    InputsReport,
    LayerReport,
    MatrixReport,
    ModelReport,
)
from btcompress.timings import BenchCase, WayTiming
from btcompress.wording import (
    agreements,
    case_text,
    error_of,
    error_text,
    form_lines,
    form_text,
    metric_text,
    milliseconds_text,
    precision_words,
    rank_text,
    ratio_text,
    way_text,
    worse_if,
)

#: Ratios of times from here on are written as 1 or more.
_AS_FAST = 0.995


def matrix_table(report: CompressionReport) -> Table:
    """Sizes in parameters, or in bytes, behind what numbers are stored as, where any matrix has fewer bits.

    Where matrices were trained, or it was measured what they do on inputs, weight errors say nothing of how good they
    are, and none is held against another form's.
    """
    matrices = report.matrices
    measured = any(row.activation_error is not None for row in matrices)
    in_bytes = any(row.has_fewer_bits for row in matrices)
    sizes = ("stored as", "bytes\nbefore", "bytes\nafter") if in_bytes else ("before", "after")
    errors = ["weight\nerror", "SVD at\nequal bytes" if in_bytes else "SVD at\nequal size"]
    errors += ["activation\nerror", "weighted"] * measured
    rows = []
    for row in matrices:
        orders = [name for name in ("row_order", "column_order") if getattr(row, name)]
        form = (row.out_modes, row.in_modes, row.gates, row.core, orders)
        by_weights = of_matrices_count(report) and row.weighted_activation_error is None
        outdone = by_weights and bool(row.svd_rank) and is_better(row.svd_error, row.weight_error)
        of_outputs = (error_text(error) for error in (row.activation_error, row.weighted_activation_error))
        numbers = (
            str(row.cp_rank) if row.cp_rank else "-",
            rank_text(row.tucker_ranks) if row.tucker_ranks else "-",
            *(_bytes(row) if in_bytes else _parameters(row)),
            worse_if(outdone, f"{row.weight_error:.3f}"),
            f"{row.svd_error:.3f} (rank {row.svd_rank})" if row.svd_rank else "none so small",
            *(of_outputs if measured else ()),
        )
        texts = (row.name, f"{row.shape[0]} x {row.shape[1]}", form_text(*form))
        rows.append(Row(texts, numbers, narrow=tuple(form_lines(row.name, row.shape, *form))))
    worse = "is larger than before, or has a greater error than low rank of equal size."
    return Table(("matrix", "size", "form"), (("N", "R", *sizes, "ratio"), tuple(errors)), tuple(rows), worse)


def _parameters(row: MatrixReport) -> tuple[str, ...]:
    return f"{row.params_before:,}", f"{row.params_after:,}", _ratio_text(row.weights_ratio)


def _bytes(row: MatrixReport) -> tuple[str, ...]:
    sizes = (size_text(row.bytes_before), size_text(row.bytes_after))
    return precision_words(row.precision, row.shape[1]), *sizes, _ratio_text(row.bytes_ratio)


def _ratio_text(ratio: float) -> str:
    return worse_if(ratio < 1, ratio_text(ratio))


def model_table(model: ModelReport, matrices: Sequence[MatrixReport] = ()) -> Table:
    """Parameters and bytes of the whole model, and bytes of the chosen matrices where any of them has fewer bits."""
    of_params = (f"{model.params_before:,}", f"{model.params_after:,}", _ratio_text(model.ratio))
    rows = [Row(("parameters",), of_params), Row(("bytes",), _sizes(model.bytes_before, model.bytes_after))]
    if any(row.has_fewer_bits for row in matrices):
        before, after = (sum(getattr(row, name) for row in matrices) for name in ("bytes_before", "bytes_after"))
        narrow = ("of which the matrices above",)
        rows.append(Row(("of which the chosen matrices",), _sizes(before, after), 1, narrow))
    return Table(("whole model",), (("before", "after", "ratio"),), tuple(rows), "is larger than before.")


def layer_table(layers: Sequence[LayerReport], model: ModelReport) -> Table:
    """The bytes of each layer, and of what else is in the file."""
    rows = [Row((layer_name(each),), _sizes(each.bytes_before, each.bytes_after)) for each in layers]
    rest = model.bytes_after - model.tensor_bytes_after
    rows += [Row(("names and record",), ("-", size_text(rest), "-"))] if rest > 0 else []
    return Table(("layer",), (("bytes\nbefore", "bytes\nafter", "ratio"),), tuple(rows), "is larger than before.")


def layer_name(layer: LayerReport) -> str:
    """What a layer is called."""
    name = layer.name or "the top of the checkpoint"
    return name if layer.number is None else f"{name}, layer {layer.number}"


def _sizes(before: int, after: int) -> tuple[str, str, str]:
    return size_text(before), size_text(after), worse_if(after > before, ratio_text(before / max(after, 1)))


def inputs_table(reports: Sequence[InputsReport]) -> Table:
    """What each recurrent layer gives on the inputs given."""
    rows = []
    for row in reports:
        rows.append(Row((error_of(row.lstm),), (f"{row.hidden_state_error:.4f}", f"{row.n_sequences:,}")))
        rows += [Row((words,), (share, ""), 1) for words, (share,) in agreements([row.agreement])]
    return Table(("on the inputs given",), (("measured", "sequences"),), tuple(rows))


def calibration_table(calibrations: Sequence[CalibrationReport]) -> Table:
    """What each calibration brought, stage by stage."""
    rounded = any(row.hidden_state_error_rounded is not None for row in calibrations)
    rows = []
    for row in calibrations:
        before, after = row.hidden_state_error_before, row.hidden_state_error_after
        between = [row.hidden_state_error_refitted, *[row.hidden_state_error_rounded] * rounded]
        numbers = (
            f"{before:.4f}",
            *("not measured" if error is None else f"{error:.4f}" for error in between),
            worse_if(is_better(before, after), f"{after:.4f}"),
            f"{row.layer_epochs} by layer + {row.epochs}" if row.layer_epochs else f"{row.epochs}",
            f"{row.n_held:,}",
        )
        rows.append(Row((error_of(row.lstm),), numbers))
        for words, (first, last) in agreements([row.agreement_before, row.agreement_after]):
            rows.append(Row((words,), (first, *[""] * len(between), last, "", ""), 1))
    stages = ("fitted to\nthe weights", "fitted to\nthe inputs", *["rounded"] * rounded, "calibrated")
    worse = "is worse than fitted to the weights."
    return Table(("on sequences held back",), (stages, ("epochs", "sequences")), tuple(rows), worse)


def training_table(trainings: Sequence[FineTuneReport]) -> Table:
    """What each training brought."""
    rows = []
    for row in trainings:
        numbers = (
            "not measured" if row.dense is None else metric_text(row.dense),
            metric_text(row.before),
            worse_if(_is_worse(row), metric_text(row.after)),
            f"{row.epochs}",
            f"{row.n_held:,}",
        )
        better = "higher" if row.higher_is_better else "lower"
        rows.append(Row((f"{row.metric} ({better} is better)",), numbers))
        for words, shares in agreements([row.agreement_before, row.agreement_after]):
            rows.append(Row((words,), ("", *shares, "", ""), 1))
    columns = (("dense", "before", "fine-tuned"), ("epochs", "sequences"))
    return Table(("on sequences held back",), columns, tuple(rows), "is worse than before.")


def _is_worse(training: FineTuneReport) -> bool:
    """Whether the metric is worse than before, as it is written."""
    before, after = training.before, training.after
    differ = metric_text(before) != metric_text(after)
    return differ and (after < before if training.higher_is_better else after > before)


def bench_table(cases: Sequence[BenchCase]) -> Table:
    """A row for each case and way."""
    columns = (
        ("median\nms", "middle half\nms", "steps\na second"),
        ("peak\nmemory", "parameters", "operations\na step"),
        ("dense\nover it",),
    )
    rows = tuple(
        Row((case_text(case), way_text(way.way)), (*_timing(case, way), _times_as_fast(case, way)))
        for case in cases
        for way in case.ways
    )
    return Table(("case", "way"), columns, rows, "is slower than the dense layer.", grouped=True)


def _times_as_fast(case: BenchCase, way: WayTiming) -> str:
    dense = case.onnx_dense if way.way.startswith("onnx") else case.dense
    if dense is None:
        return "-"
    ratio = dense.seconds / way.seconds
    return worse_if("block_terms" in way.way and ratio < _AS_FAST, ratio_text(ratio))


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
    rows = tuple(
        Row((each.lstm or each.kind,), (f"{each.batch:,}", f"{each.steps:,}", ratio_text(each.ratio))) for each in cases
    )
    return Table(("layer",), (("batch", "steps", "dense over it"),), rows)
