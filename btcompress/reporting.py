"""What a compression gained and lost, in numbers and in plain words."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Protocol

import msgspec

from btcompress.blockterm import BlockTerm, params_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, CompressedMatrix, same_bits
from btcompress.errors import BTCompressError, CheckpointError
from btcompress.fit import OutputErrors, obstacle_of_dtype, weight_error
from btcompress.fit.measures import largest
from btcompress.results import (
    CalibrationReport,
    CompressionReport,
    FineTuneReport,
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


#: What each form of equal size is called in advice.
_FORM_WORDS = {
    "low_rank": "A low-rank matrix of equal size",
    "low_rank_on_inputs": "A low-rank matrix of equal size, fitted to these very inputs,",
    "tensor_train": "A tensor train of equal size",
    "greedy": "Greedy deflation, the same blocks fitted one after another,",
}

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
        on_inputs: measures activation errors on inputs, as :func:`btcompress.calibration.on_inputs` makes it.

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
    size = sum(tensor.nbytes for tensor in compressed.tensors.values())
    model = ModelReport(
        compressed.source.n_params,
        compressed.n_params,
        compressed.source.n_bytes,
        size if bytes_after is None else bytes_after,
    )
    finetuned = tuple(_training(step) for step in compressed.history if step.get("step") == "finetune")
    calibrated = tuple(_calibration(step) for step in compressed.history if step.get("step") == "calibrate")
    trained = any(step.get("step") != "factorize" for step in compressed.history)
    untouched = None if against is None else _untouched(compressed, against, trained=trained)
    low_rank = {name for name, each in matrices.items() if each.shape.n_parts == 1 and each.shape.part.is_low_rank}
    about_fit = _training_advice(finetuned[-1:], calibrated[-1:]) if trained else _fit_advice(rows, low_rank)
    advice = (
        *_untouched_advice(untouched, against),
        *about_fit,
        *_other_forms_advice(rows, low_rank, trained=trained),
        *_size_advice(rows, model),
    )
    return CompressionReport(rows, model, left_dense, tuple(notices), advice, finetuned, calibrated, untouched)


def _training(step: dict[str, Any]) -> FineTuneReport:
    return msgspec.convert(step, FineTuneReport)


def _calibration(step: dict[str, Any]) -> CalibrationReport:
    return msgspec.convert(step, CalibrationReport)


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
    errors = {
        kind: next((step[kind][name] for step in _latest_measured(compressed) if name in step.get(kind, ())), None)
        for kind in ("activation_errors", "weighted_activation_errors")
    }
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
        activation_error=errors["activation_errors"],
        weighted_activation_error=errors["weighted_activation_errors"],
        row_order=shape.part.row_order,
        column_order=shape.part.column_order,
    )


def _latest_measured(compressed: CompressedCheckpoint) -> Iterator[dict[str, Any]]:
    """The steps that measured activation errors, the newest first, as far as nothing was done since."""
    return takewhile(lambda step: step.get("step") in ("calibrate", "refit"), reversed(compressed.history))


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
    names = [name for name in compressed.keys if name not in compressed.matrices]
    changed = [
        name
        for name in names
        if name not in against.tensors or not same_bits(compressed.tensors[name], against.tensors[name])
    ]
    return UntouchedReport(len(names) - len(changed), tuple(changed), trained)


def _untouched_advice(untouched: UntouchedReport | None, against: Checkpoint | None) -> Iterator[str]:
    if untouched is not None and against is not None and untouched.changed and not untouched.trained:
        yield (
            f"Not factorized, and yet other than in {against.source.name}: {', '.join(untouched.changed)}. Nothing was "
            "trained since that could have changed them. Do not use the result with this checkpoint."
        )


def _fit_advice(rows: tuple[MatrixReport, ...], low_rank: Collection[str]) -> Iterator[str]:
    """From the weight errors, which say nothing any more once the tensors are trained.

    Matrices that are plain low rank already, ``low_rank``, are told of no better one: theirs is only rounded.
    """
    emptied = [row for row in rows if row.weight_error >= _NOTHING_KEPT]
    halved = [row for row in rows if _HALF_LOST <= row.weight_error < _NOTHING_KEPT]
    blocks = [row for row in rows if row.name not in low_rank]
    outdone = [row for row in blocks if row.svd_rank and row.svd_error < (1 - _NO_DIFFERENCE) * row.weight_error]
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


def _other_forms_advice(rows: tuple[MatrixReport, ...], low_rank: Collection[str], *, trained: bool) -> Iterator[str]:
    """Where another form fits better: the weights of what was not trained since, and the outputs on the inputs.

    Matrices that are plain low rank already, ``low_rank``, are told of no better one: another fit is no other form.
    """
    for form, words in _FORM_WORDS.items():
        own = low_rank if form.startswith("low_rank") else ()
        pairs = [(row, other) for row in rows if row.name not in own for other in row.yardsticks if other.form == form]
        # Low rank has its advice without being asked for; training gives up weights for what they do.
        if form == "tensor_train" or (form == "greedy" and not trained):
            fitting = [
                f"{row.name} ({_error_at(other.weight_error, other)} against {row.weight_error:.3f})"
                for row, other in pairs
                if _is_better(other.weight_error, row.weight_error)
            ]
            if fitting:
                more = " Factorize anew with more --restarts." if form == "greedy" else ""
                yield f"{words} fits better than block terms for {', '.join(fitting)}.{more}"
        closer = [
            f"{row.name} ({_error_at(other.weighted_activation_error, other)} against "
            f"{row.weighted_activation_error:.3f})"
            for row, other in pairs
            if _is_better(other.weighted_activation_error, row.weighted_activation_error)
        ]
        if closer:
            yield f"{words} is closer than block terms on the inputs given for {', '.join(closer)}."


def _is_better(error: float | None, than: float | None) -> bool:
    return error is not None and than is not None and error < (1 - _NO_DIFFERENCE) * than


def _error_at(error: float | None, other: YardstickReport) -> str:
    """An error, with the rank where the form has one of its own, or all ranks where they differ."""
    ranks = ",".join(map(str, other.ranks if len(set(other.ranks)) > 1 else other.ranks[:1]))
    return f"{error:.3f}" if other.form == "greedy" else f"{error:.3f} at rank {ranks}"


def _with_errors(rows: list[MatrixReport]) -> str:
    return ", ".join(f"{row.name} (weight error {row.weight_error:.3f})" for row in rows)
