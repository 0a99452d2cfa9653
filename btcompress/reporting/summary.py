"""Sum up what a compression gained and lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgspec
from torch import Tensor

from btcompress.blockterm import BlockTerm, params_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, CompressedMatrix, RoundedMatrix, same_bits
from btcompress.checkpoint.source import Source
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import OutputErrors, obstacle_of_dtype, weight_error
from btcompress.fit.measures import largest
from btcompress.memory import size_text
from btcompress.reporting.advice import Findings, advice_on
from btcompress.reporting.expected import expected_speed
from btcompress.reporting.layers import layer_reports
from btcompress.reporting.rounded import Alternatives, Measure, alternatives, measured_anew
from btcompress.reporting.roundedlstms import rounded_lstms
from btcompress.reporting.rows import matrix_of, row_of, size_of, with_matrices
from btcompress.results import (
    CalibrationReport,
    CompressionReport,
    FineTuneReport,
    InputsReport,
    LeftDense,
    MatrixReport,
    ModelReport,
    UntouchedReport,
    YardstickReport,
)
from btcompress.yardsticks import (
    QUICK_ENTRIES,
    OtherForm,
    SVDYardstick,
    low_rank_form,
    structured_forms,
)


class OnInputs(Measure, Protocol):
    """Measures forms and recurrent layers on inputs; :func:`btcompress.calibration.on_inputs` makes one."""

    def fitted(self, key: str, parts: tuple[BlockTerm, ...], /) -> tuple[BlockTerm, ...] | None:
        """A form of a matrix fitted to the inputs; None for a matrix that has none."""

    def reports(self) -> tuple[InputsReport, ...]:
        """What each recurrent layer gives on its inputs, beside the dense one."""

    def hidden_state_errors(self, matrices: Mapping[str, Tensor], /) -> Mapping[str, float]:
        """``||h - h'|| / ||h||`` of dense recurrent layers with other matrices, by the name of each.

        Args:
            matrices: in the place of its own; a layer of whose chosen matrices one is missing is left out.
        """


#: A file that is larger than its tensors by this share, and by so many bytes, holds more than them and their names.
_MORE_IN_FILE, _MORE_BYTES = 0.1, 2**16


def report(
    compressed: CompressedCheckpoint,
    *,
    against: Checkpoint | None = None,
    bytes_after: int | None = None,
    yardsticks: bool = False,
    on_inputs: OnInputs | None = None,
) -> CompressionReport:
    """Sum up a compressed checkpoint; parameters and bytes are counted on the tensors it holds.

    Args:
        compressed: what to report on.
        against: the dense checkpoint, to measure all errors anew on the tensors as they are now, and to compare the
            other tensors with its own; without it errors are those recorded when it was made. Large matrices are
            rounded alone only together with their other forms.
        bytes_after: size of the result's file; the size of its tensors as stored when left out.
        yardsticks: compare each matrix with other forms of equal size; takes seconds for a large one.
        on_inputs: measures on inputs, as :func:`btcompress.calibration.on_inputs` makes it: activation errors, and
            what each recurrent layer gives.

    Raises:
        BTCompressError: yardsticks or activation errors are asked for without ``against``.
        CheckpointError: ``against`` lacks a matrix, or holds it in another shape or with values that are not finite.
    """
    if against is None and (yardsticks or on_inputs is not None):
        raise BTCompressError(
            "other forms and activation errors are measured on the dense matrices, but only the result is given. "
            "Give the dense checkpoint as well (--against MODEL)."
        )
    notices = list(compressed.notices)
    untouched = None
    trained = any(step.get("step") != "factorize" for step in compressed.history)
    if against is None:
        rows = _rows(compressed)
    else:
        notices += _differences(compressed, against)
        rows = _compared(compressed, against, on_inputs, yardsticks=yardsticks)
        notices += _skipped(rows)
        untouched = _untouched(compressed, against, trained=trained)
    left_dense = tuple(LeftDense(**left) for step in compressed.history for left in step.get("left_dense", ()))
    model = _model(compressed, bytes_after)
    notices += _size_notice(compressed.source, model.bytes_before)
    finetuned, calibrated, standing = _reports_of(compressed.history)
    measured = () if on_inputs is None or against is None else rounded_lstms(rows, against, on_inputs)
    compared = None if untouched is None or against is None else (untouched, against)
    low_rank = {name for name, each in compressed.matrices.items() if _is_low_rank(each)}
    findings = Findings(rows, low_rank, model, finetuned, standing, measured, trained, compared)
    return CompressionReport(
        rows,
        model,
        left_dense,
        tuple(notices),
        tuple(advice_on(findings)),
        finetuned,
        calibrated,
        untouched,
        measured,
        compressed.bench,
        expected_speed(compressed),
        layer_reports(compressed),
    )


def _is_low_rank(matrix: CompressedMatrix) -> bool:
    return matrix.shape.n_parts == 1 and matrix.shape.part.is_low_rank


def _rows(compressed: CompressedCheckpoint) -> tuple[MatrixReport, ...]:
    """The rows of all matrices, from what is recorded."""
    of_outputs = [_measured_since(compressed.history, f"{kind}activation_errors") for kind in ("", "weighted_")]
    return tuple(row_of(compressed, key, *(errors.get(key) for errors in of_outputs)) for key in compressed.chosen)


def _reports_of(
    history: Sequence[dict[str, Any]],
) -> tuple[tuple[FineTuneReport, ...], tuple[CalibrationReport, ...], tuple[CalibrationReport, ...]]:
    """Every training; every calibration; and of these the last of each layer that no training followed."""
    finetuned: list[FineTuneReport] = []
    calibrated: list[CalibrationReport] = []
    standing: dict[str, CalibrationReport] = {}
    for step in history:
        if step.get("step") == "finetune":
            finetuned.append(msgspec.convert(step, FineTuneReport))
            standing.clear()
        elif step.get("step") == "calibrate":
            calibrated.append(msgspec.convert(step, CalibrationReport))
            standing[calibrated[-1].lstm] = calibrated[-1]
    return tuple(finetuned), tuple(calibrated), tuple(standing.values())


def _measured_since(history: Sequence[dict[str, Any]], field: str) -> dict[str, float]:
    """Errors of the last steps that measured them: each of these changed other matrices, and another step any."""
    found: dict[str, float] = {}
    for step in history:
        found = {**found, **step[field]} if field in step else {}
    return found


def _model(compressed: CompressedCheckpoint, bytes_after: int | None) -> ModelReport:
    source = compressed.source
    stored = compressed.n_bytes
    size = stored if bytes_after is None else bytes_after
    return ModelReport(source.n_params, compressed.n_params, compressed.dense_bytes, size, source.n_bytes, stored)


def _size_notice(source: Source, n_bytes: int) -> Iterator[str]:
    more = source.n_bytes - n_bytes
    if more > max(_MORE_BYTES, _MORE_IN_FILE * n_bytes):
        yield (
            f"{source.name} has {size_text(source.n_bytes)}, but the tensors taken from it {size_text(n_bytes)}, which "
            "are what the result is compared with. The rest, such as an optimizer's state, was left out."
        )


def _dense_of(compressed: CompressedCheckpoint, name: str, against: Checkpoint) -> Tensor:
    """The dense matrix, if it can be measured against."""
    expected = size_of(matrix_of(compressed, name))
    dense = against.tensors.get(name)
    if dense is None or tuple(dense.shape) != expected:
        given = "has no such matrix" if dense is None else f"has it in shape {tuple(dense.shape)}"
        raise CheckpointError(
            f"{name} was made from a {expected[0]} x {expected[1]} matrix, but {against.source.name} {given}. "
            f"Give the checkpoint that the result was made from, {compressed.source.name}."
        )
    if obstacle := obstacle_of_dtype(dense.dtype):
        raise CheckpointError(f"{name} of {against.source.name} cannot be measured against: {obstacle}.")
    if not math.isfinite(largest(dense)):
        raise CheckpointError(
            f"{name} of {against.source.name} holds values that are not finite (NaN or infinity), so nothing can be "
            "measured against it. Give the checkpoint that the result was made from."
        )
    return dense


def _compared(
    compressed: CompressedCheckpoint, against: Checkpoint, on_inputs: OnInputs | None, *, yardsticks: bool
) -> tuple[MatrixReport, ...]:
    """The rows measured anew, with the other forms of each matrix and what was measured on inputs."""
    dense = {key: _dense_of(compressed, key, against) for key in compressed.chosen}
    fresh = {key: measured_anew(compressed, key, matrix) for key, matrix in dense.items()}
    others = {
        key: tuple(_others(compressed, fresh[key], key, matrix, on_inputs)) if yardsticks else ()
        for key, matrix in dense.items()
    }
    rounded = {
        key: alternatives(compressed, key, matrix, on_inputs)
        if yardsticks or matrix.numel() <= QUICK_ENTRIES
        else Alternatives()
        for key, matrix in dense.items()
    }
    errors = {key: iter(of_forms) for key, of_forms in _errors(compressed, others, rounded, on_inputs).items()}
    own = {key: next(of_forms, None) for key, of_forms in errors.items()}
    reports = {
        key: tuple(_yardstick(each, next(errors[key], None) if each.parts else None) for each in forms)
        for key, forms in others.items()
    }
    rows = _rows(with_matrices(compressed, {key: rounded[key].recorded_in(fresh[key], errors[key]) for key in dense}))
    return tuple(replace(_on(row, own[row.name]), yardsticks=reports[row.name]) for row in rows)


def _errors(
    compressed: CompressedCheckpoint,
    others: Mapping[str, Sequence[OtherForm]],
    rounded: Mapping[str, Alternatives],
    on_inputs: OnInputs | None,
) -> dict[str, tuple[OutputErrors, ...]]:
    """The errors on inputs of each matrix as it is, of its other forms and of its roundings."""
    if on_inputs is None:
        return dict.fromkeys(others, ())
    forms = {
        key: [
            compressed.parts(key) if key in compressed.matrices else compressed.tensors[key],
            *(other.parts for other in others[key] if other.parts),
            *rounded[key].forms,
        ]
        for key in others
    }
    measured = on_inputs(forms)
    return {key: tuple(measured.get(key, ())) for key in others}


def _on(row: MatrixReport, errors: OutputErrors | None) -> MatrixReport:
    if errors is None:
        return row
    return replace(row, activation_error=errors.plain, weighted_activation_error=errors.weighted)


def _yardstick(other: OtherForm, errors: OutputErrors | None) -> YardstickReport:
    if not other.parts:
        return YardstickReport(other.kind, (), 0, None, skipped=other.skipped)
    of_outputs = (None, None) if errors is None else (errors.plain, errors.weighted)
    return YardstickReport(other.kind, other.ranks, other.params, other.weight_error, *of_outputs)


def _others(
    compressed: CompressedCheckpoint,
    own: CompressedMatrix | RoundedMatrix,
    key: str,
    matrix: Tensor,
    on_inputs: OnInputs | None,
) -> Iterator[OtherForm]:
    if not matrix.any():
        return
    low_rank = low_rank_form(matrix, SVDYardstick(own.svd_rank, own.svd_error))
    yield low_rank
    fitted = on_inputs.fitted(key, low_rank.parts) if on_inputs is not None and low_rank.parts else None
    if fitted is not None:
        error = weight_error(matrix, fitted)
        yield replace(low_rank, kind="low_rank_on_inputs", weight_error=error, parts=fitted)
    if isinstance(own, CompressedMatrix):
        yield from structured_forms(matrix, own.shape, params_of(compressed.parts(key)))


def _skipped(rows: tuple[MatrixReport, ...]) -> Iterator[str]:
    names: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for other in row.yardsticks:
            if other.skipped is not None:
                names.setdefault((other.form.replace("_", " "), other.skipped), []).append(row.name)
    for (form, why), without in names.items():
        yield f"There is no yardstick {form} for {', '.join(without)}: {why}."


def _differences(compressed: CompressedCheckpoint, against: Checkpoint) -> Iterator[str]:
    ours, theirs = compressed.source, against.source
    if None not in (ours.sha256, theirs.sha256) and ours.sha256 != theirs.sha256:
        yield f"{theirs.name} is not the file that this result was made from ({ours.name}): their digests differ."


def _untouched(compressed: CompressedCheckpoint, against: Checkpoint, *, trained: bool) -> UntouchedReport:
    same = rounded = 0
    changed = []
    for name in compressed.others:
        if name in against.tensors and same_bits(compressed.tensors[name], against.tensors[name]):
            same += 1
        elif name in against.tensors and compressed.is_same_but_for_precision(name, against.tensors[name]):
            rounded += 1
        else:
            changed.append(name)
    return UntouchedReport(same, tuple(changed), trained, rounded)
