"""What a compression gained and lost, in numbers and in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, CompressedMatrix
from btcompress.errors import CheckpointError
from btcompress.fit import truncated_svd, weight_error
from btcompress.results import (
    CalibrationReport,
    CompressionReport,
    FineTuneReport,
    LeftDense,
    MatrixReport,
    ModelReport,
)

#: Weight errors from here on leave next to nothing of a matrix, and from the second on half of it.
_NOTHING_KEPT = 0.9
_HALF_LOST = 0.5
#: Errors that differ by a smaller share are as good as equal: a low-rank matrix is rounded when it is stored.
_NO_DIFFERENCE = 1e-3
#: From here on blocks cancel one another rather than share the work.
_CANCELLING = 10.0
#: Below this share of the model's parameters, the matrices chosen cap what can be gained.
_SMALL_SHARE = 0.5


def report(
    compressed: CompressedCheckpoint, *, against: Checkpoint | None = None, bytes_after: int | None = None
) -> CompressionReport:
    """Sum up a compressed checkpoint; parameters are counted on the tensors it holds.

    Args:
        compressed: what to report on.
        against: the dense checkpoint, to measure all errors anew on the tensors as they are now;
            without it they are those recorded at factorization.
        bytes_after: size of the result's file; the size of its tensors when left out.

    Raises:
        CheckpointError: ``against`` lacks a matrix, or holds it in another shape.
    """
    notices = list(compressed.notices)
    matrices = compressed.matrices
    if against is not None:
        notices += _differences(compressed, against)
        matrices = {name: _measured_anew(compressed, name, against) for name in matrices}
    rows = tuple(_row(compressed, name, matrices[name]) for name in compressed.keys if name in matrices)
    left_dense = tuple(LeftDense(**left) for step in compressed.history for left in step.get("left_dense", ()))
    size = sum(tensor.nbytes for tensor in compressed.tensors.values())
    model = ModelReport(
        compressed.source.n_params,
        compressed.n_params,
        compressed.source.n_bytes,
        size if bytes_after is None else bytes_after,
    )
    finetuned = tuple(_training(step) for step in compressed.history if step.get("step") == "finetune")
    calibrated = tuple(_calibration(step) for step in compressed.history if step.get("step") == "calibrate")
    about_fit = _training_advice(finetuned[-1:], calibrated[-1:]) if finetuned or calibrated else _fit_advice(rows)
    advice = (*about_fit, *_size_advice(rows, model))
    return CompressionReport(rows, model, left_dense, tuple(notices), advice, finetuned, calibrated)


def _training(step: dict[str, Any]) -> FineTuneReport:
    return FineTuneReport(**{field.name: step[field.name] for field in fields(FineTuneReport)})


def _calibration(step: dict[str, Any]) -> CalibrationReport:
    return CalibrationReport(**{field.name: step[field.name] for field in fields(CalibrationReport)})


def _training_advice(tuned: tuple[FineTuneReport, ...], calibrated: tuple[CalibrationReport, ...]) -> Iterator[str]:
    for training in tuned:
        if not training.best_epoch:
            yield "Fine-tuning made nothing better, so the tensors are those it began with. Try another --lr."
    for calibration in () if tuned else calibrated:
        if calibration.hidden_state_error_after >= _HALF_LOST:
            yield (
                f"The hidden states are off by {calibration.hidden_state_error_after:.3f} of their size after "
                "calibrating. Raise the ranks, give more sequences, or fine-tune on labels."
            )
    for latest in tuned or calibrated:
        if latest.cancellation > _CANCELLING:
            yield (
                f"Blocks cancel one another: their squared norms add up to {latest.cancellation:,.0f} times that of "
                "their sum, which costs digits and slows training. Lower the CP rank, or train with a lower --lr."
            )


def _row(compressed: CompressedCheckpoint, name: str, matrix: CompressedMatrix) -> MatrixReport:
    shape = matrix.shape
    latest = compressed.history[-1] if compressed.history else {}
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
        params_after=sum(part.n_params for part in compressed.parts(name)),
        weight_error=matrix.weight_error,
        svd_rank=matrix.svd_rank,
        svd_error=matrix.svd_error,
        activation_error=latest.get("activation_errors", {}).get(name),
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
    parts = compressed.parts(name)
    yardstick = truncated_svd(dense, sum(part.n_params for part in parts))
    error = weight_error(dense, parts)
    return replace(matrix, weight_error=error, svd_rank=yardstick.rank, svd_error=yardstick.error)


def _differences(compressed: CompressedCheckpoint, against: Checkpoint) -> Iterator[str]:
    ours, theirs = compressed.source, against.source
    if None not in (ours.sha256, theirs.sha256) and ours.sha256 != theirs.sha256:
        yield f"{theirs.name} is not the file that this result was made from ({ours.name}): their digests differ."


def _fit_advice(rows: tuple[MatrixReport, ...]) -> Iterator[str]:
    """From the weight errors, which say nothing any more once the tensors are trained."""
    emptied = [row for row in rows if row.weight_error >= _NOTHING_KEPT]
    halved = [row for row in rows if _HALF_LOST <= row.weight_error < _NOTHING_KEPT]
    outdone = [row for row in rows if row.svd_rank and row.svd_error < (1 - _NO_DIFFERENCE) * row.weight_error]
    if emptied:
        yield (
            f"Next to nothing is kept of {_with_errors(emptied)}. Raise the CP rank or the Tucker rank, calibrate on "
            "sample inputs, or expect to retrain the model before it is of use."
        )
    if halved:
        yield (
            f"Half or more is lost of {_with_errors(halved)}. Measure the model before you use it; higher ranks "
            "keep more."
        )
    if outdone:
        pairs = (
            f"{row.name} ({row.svd_error:.3f} at rank {row.svd_rank} against {row.weight_error:.3f})" for row in outdone
        )
        yield (
            f"A low-rank matrix of equal size fits better than block terms for {', '.join(pairs)}. Where "
            "inputs are flattened data, mode sizes along the data's own axes may change that."
        )


def _size_advice(rows: tuple[MatrixReport, ...], model: ModelReport) -> Iterator[str]:
    grown = [row for row in rows if row.params_after >= row.params_before]
    if grown:
        sizes = (f"{row.name} (from {row.params_before:,} to {row.params_after:,} parameters)" for row in grown)
        yield f"What grew: {', '.join(sizes)}. Lower the ranks."
    chosen = sum(row.params_before for row in rows)
    if chosen < _SMALL_SHARE * model.params_before:
        best = model.params_before / (model.params_before - chosen)
        yield (
            f"The factorized matrices are {chosen / model.params_before:.0%} of the model's parameters: however small "
            f"they get, the model ratio cannot pass {best:.2f}."
        )


def _with_errors(rows: list[MatrixReport]) -> str:
    return ", ".join(f"{row.name} (weight error {row.weight_error:.3f})" for row in rows)
