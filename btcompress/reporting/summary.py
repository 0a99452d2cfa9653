"""Sum up what a compression gained and lost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgspec

from btcompress.blockterm import BlockTerm, params_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, CompressedMatrix
from btcompress.checkpoint.source import Source
from btcompress.checkpoint.tensors import count_bytes
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import OutputErrors, obstacle_of_dtype, weight_error
from btcompress.fit.measures import largest
from btcompress.memory import size_text
from btcompress.reporting.advice import Findings, advice_on
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
from btcompress.yardsticks import OtherForm, SVDYardstick, low_rank_form, structured_forms, truncated_svd


class OnInputs(Protocol):
    """Measures forms on inputs; :func:`btcompress.calibration.on_inputs` makes one."""

    def __call__(
        self, forms: Mapping[str, Sequence[tuple[BlockTerm, ...]]], /
    ) -> Mapping[str, tuple[OutputErrors, ...]]:
        """The errors of several forms of each matrix, by its key; each form is block terms whose rows are stacked."""

    def fitted(self, key: str, parts: tuple[BlockTerm, ...], /) -> tuple[BlockTerm, ...] | None:
        """A form of a matrix fitted to the inputs; None for a matrix that has none."""

    def reports(self) -> tuple[InputsReport, ...]:
        """What each LSTM gives on its inputs, beside the dense one."""


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
    """Sum up a compressed checkpoint; parameters are counted on the tensors it holds.

    Args:
        compressed: what to report on.
        against: the dense checkpoint, to measure all errors anew on the tensors as they are now, and to compare the
            other tensors with its own; without it errors are those recorded at factorization.
        bytes_after: size of the result's file; the size of its tensors when left out.
        yardsticks: compare each matrix with other forms of equal size; takes seconds for a large one.
        on_inputs: measures on inputs, as :func:`btcompress.calibration.on_inputs` makes it: activation errors, and
            what each LSTM gives.

    Raises:
        BTCompressError: yardsticks or activation errors are asked for without ``against``.
        CheckpointError: ``against`` lacks a matrix, or holds it in another shape or with values that are not finite.
    """
    notices = list(compressed.notices)
    matrices = compressed.matrices
    if against is not None:
        notices += _differences(compressed, against)
        matrices = {name: _measured_anew(compressed, name, against) for name in matrices}
    rows = tuple(_row(compressed, name, matrices[name]) for name in compressed.keys if name in matrices)
    if yardsticks or on_inputs is not None:
        if against is None:
            raise BTCompressError(
                "other forms and activation errors are measured on the dense matrices, but only the result is given. "
                "Give the dense checkpoint as well (--against MODEL)."
            )
        rows = _compared(compressed, rows, against, on_inputs, yardsticks=yardsticks)
        notices += _skipped(rows)
    left_dense = tuple(LeftDense(**left) for step in compressed.history for left in step.get("left_dense", ()))
    model = _model(compressed, bytes_after)
    notices += _size_notice(compressed.source, model.bytes_before)
    finetuned, calibrated, standing = _reports_of(compressed.history)
    measured = () if on_inputs is None else on_inputs.reports()
    trained = any(step.get("step") != "factorize" for step in compressed.history)
    untouched = None if against is None else _untouched(compressed, against, trained=trained)
    low_rank = {name for name, each in matrices.items() if each.shape.n_parts == 1 and each.shape.part.is_low_rank}
    compared = None if untouched is None or against is None else (untouched, against)
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
    )


def _reports_of(
    history: Sequence[dict[str, Any]],
) -> tuple[tuple[FineTuneReport, ...], tuple[CalibrationReport, ...], tuple[CalibrationReport, ...]]:
    """Every training; every calibration; and of these the last of each LSTM that no training followed."""
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
    size = count_bytes(compressed.tensors) if bytes_after is None else bytes_after
    return ModelReport(source.n_params, compressed.n_params, compressed.dense_bytes, size, source.n_bytes)


def _size_notice(source: Source, n_bytes: int) -> Iterator[str]:
    more = source.n_bytes - n_bytes
    if more > max(_MORE_BYTES, _MORE_IN_FILE * n_bytes):
        yield (
            f"{source.name} has {size_text(source.n_bytes)}, but the tensors taken from it {size_text(n_bytes)}, which "
            "are what the result is compared with. The rest, such as an optimizer's state, was left out."
        )


def _row(compressed: CompressedCheckpoint, name: str, matrix: CompressedMatrix) -> MatrixReport:
    shape = matrix.shape
    return MatrixReport(
        name=name,
        shape=(shape.out_size, shape.in_size),
        in_modes=shape.part.in_modes,
        out_modes=shape.part.out_modes,
        gates=shape.gates,
        cp_rank=shape.part.n_blocks,
        tucker_ranks=shape.part.ranks,
        core=shape.part.core,
        params_before=shape.dense_params,
        params_after=params_of(compressed.parts(name)),
        weight_error=matrix.weight_error,
        svd_rank=matrix.svd_rank,
        svd_error=matrix.svd_error,
        activation_error=_measured_since(compressed.history, "activation_errors").get(name),
        weighted_activation_error=_measured_since(compressed.history, "weighted_activation_errors").get(name),
        row_order=shape.part.row_order,
        column_order=shape.part.column_order,
    )


def _measured_anew(compressed: CompressedCheckpoint, name: str, against: Checkpoint) -> CompressedMatrix:
    matrix = compressed.matrices[name]
    expected = (matrix.shape.out_size, matrix.shape.in_size)
    dense = against.tensors.get(name)
    if dense is None or tuple(dense.shape) != expected:
        given = "has no such matrix" if dense is None else f"has it in shape {tuple(dense.shape)}"
        raise CheckpointError(
            f"{name} was factorized from a {expected[0]} x {expected[1]} matrix, but {against.source.name} {given}. "
            f"Give the checkpoint that the result was made from, {compressed.source.name}."
        )
    if obstacle := obstacle_of_dtype(dense.dtype):
        raise CheckpointError(f"{name} of {against.source.name} cannot be measured against: {obstacle}.")
    if not math.isfinite(largest(dense)):
        raise CheckpointError(
            f"{name} of {against.source.name} holds values that are not finite (NaN or infinity), so nothing can be "
            "measured against it. Give the checkpoint that the result was made from."
        )
    parts = compressed.parts(name)
    yardstick = truncated_svd(dense, params_of(parts))
    error = weight_error(dense, parts, matrix.dtype)
    return replace(matrix, weight_error=error, svd_rank=yardstick.rank, svd_error=yardstick.error)


def _compared(
    compressed: CompressedCheckpoint,
    rows: tuple[MatrixReport, ...],
    against: Checkpoint,
    on_inputs: OnInputs | None,
    *,
    yardsticks: bool,
) -> tuple[MatrixReport, ...]:
    """The rows with the other forms of each matrix, and with what was measured on inputs."""
    others = {row.name: tuple(_others(compressed, row, against, on_inputs)) if yardsticks else () for row in rows}
    measured: Mapping[str, tuple[OutputErrors, ...]] = {}
    if on_inputs is not None:
        given = {name: [other.parts for other in forms if other.parts] for name, forms in others.items()}
        measured = on_inputs({name: [compressed.parts(name), *parts] for name, parts in given.items()})
    compared = []
    for row in rows:
        errors = iter(measured.get(row.name, ()))
        own = next(errors, None)
        if own is not None:
            row = replace(row, activation_error=own.plain, weighted_activation_error=own.weighted)
        reports = tuple(_yardstick(other, next(errors, None) if other.parts else None) for other in others[row.name])
        compared.append(replace(row, yardsticks=reports))
    return tuple(compared)


def _yardstick(other: OtherForm, errors: OutputErrors | None) -> YardstickReport:
    if not other.parts:
        return YardstickReport(other.kind, (), 0, None, skipped=other.skipped)
    of_outputs = (None, None) if errors is None else (errors.plain, errors.weighted)
    return YardstickReport(other.kind, other.ranks, other.params, other.weight_error, *of_outputs)


def _others(
    compressed: CompressedCheckpoint, row: MatrixReport, against: Checkpoint, on_inputs: OnInputs | None
) -> Iterator[OtherForm]:
    matrix = against.tensors[row.name]
    if not matrix.any():
        return
    low_rank = low_rank_form(matrix, SVDYardstick(row.svd_rank, row.svd_error))
    yield low_rank
    fitted = on_inputs.fitted(row.name, low_rank.parts) if on_inputs is not None and low_rank.parts else None
    if fitted is not None:
        error = weight_error(matrix, fitted)
        yield replace(low_rank, kind="low_rank_on_inputs", weight_error=error, parts=fitted)
    yield from structured_forms(matrix, compressed.matrices[row.name].shape, row.params_after)


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
    names = compressed.others
    changed = [
        name
        for name in names
        if name not in against.tensors or not compressed.is_same_but_for_precision(name, against.tensors[name])
    ]
    return UntouchedReport(len(names) - len(changed), tuple(changed), trained)
