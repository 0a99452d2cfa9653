"""Calibrate a compressed checkpoint: let its LSTM give the dense one's hidden states on sample sequences.

The weights of a trained matrix count as much as the inputs that meet them, and its errors as much as the recurrence
lets them grow; only the hidden states say both. So each matrix is fitted to its inputs first, as its outputs count for
the hidden states. Then the block terms, and with them all else that the LSTM has, are trained for a short while to
give the dense LSTM's hidden states: layer by layer, each on what the layers below it really give, and then all
layers together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import torch

from btcompress.calibration.errors import activation_errors
from btcompress.calibration.refit import refit
from btcompress.calibration.sampling import samples_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LSTMEntry
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch, TrainConfig
from btcompress.finetune.blocks import balance, worst_cancellation
from btcompress.finetune.data import Data, open_data, split
from btcompress.finetune.loop import Trainer
from btcompress.finetune.networks import (
    Recurrent,
    check_inputs,
    choose_dense_lstm,
    choose_lstm,
    is_factorized,
    stored_tensors,
    student_of,
    teacher_of,
    training_dtype,
)
from btcompress.finetune.tasks import HiddenStates
from btcompress.fit import Samples, weight_error

OnEpoch = Callable[[str, Epoch], None]

#: A lower learning rate than fine-tuning's: low-rank matrices begin near where they end.
DEFAULT = TrainConfig(epochs=10, learning_rate=3e-3)


@dataclass(frozen=True, slots=True)
class SampleInputs:
    data: str
    layer: str | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to calibrate on.

    Attributes:
        data: sequences of an LSTM's inputs, as fine-tuning takes them; labels are not looked at.
        scale: what to multiply the inputs of files by.
        held_fraction: share of the sequences that is held back, to stop on and to measure on.
        lstm: name of the LSTM that they are inputs of; may be left out where there is one.
        train: whether to train after the matrices are fitted to the inputs.
    """

    inputs: tuple[SampleInputs, ...]
    held_fraction: float = 0.2
    train: bool = True

    @property
    def data(self):
        return self.inputs[0].data

    @property
    def scale(self):
        return self.inputs[0].scale

    @property
    def lstm(self):
        return self.inputs[0].layer


@dataclass(frozen=True, slots=True)
class _Stage:
    """One training of several.

    Attributes:
        what: is trained, for messages.
        entry: the LSTM, or its first layers.
        fixed: keys of the layers that stay as they are.
        config: how to train.
    """

    what: str
    entry: LSTMEntry
    fixed: tuple[str, ...]
    config: TrainConfig


def gather_samples(
    dense: Checkpoint, request: CalibrationRequest, seed: int = 0, keys: Collection[str] | None = None
) -> dict[str, Samples]:
    """Samples of the inputs of a dense LSTM's matrices, by their keys, to plan with before anything is factorized.

    Args:
        dense: holds the LSTM.
        request: on what; what it says of training does not matter.
        seed: that of the calibration to follow.
        keys: of the matrices asked for; all of them where left out.

    Raises:
        BTCompressError: the sequences are not inputs of an LSTM of the file, or one of the matrices meets only zeros.
    """
    entry = choose_dense_lstm(dense, request.lstm, "Name one with --lstm.")
    train, held = _sequences(request, entry, seed)
    dtype = training_dtype(dense.tensors, entry)
    return _not_zero(samples_of(dense, entry, train, held, dtype, keys=keys, seed=seed))


def calibrate(
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    request: CalibrationRequest,
    config: TrainConfig = DEFAULT,
    on_epoch: OnEpoch | None = None,
    samples: Mapping[str, Samples] | None = None,
) -> CompressedCheckpoint:
    """Fit an LSTM with block terms to its inputs, then train it to give the hidden states of the dense one.

    No labels are needed. Its other tensors, ``U`` and the biases, change along, unless ``config.freeze`` names them.
    The best state on the sequences held back is kept, the start included. Seeds the global generators of ``random``,
    NumPy and torch.

    Args:
        compressed: a factorized checkpoint.
        dense: what it was factorized from.
        request: on what.
        config: how to train; ``epochs`` are those over all layers together, and each layer on its own has half as
            many.
        on_epoch: called after each epoch with what is trained.
        samples: what :func:`gather_samples` gave for the same request and seed; gathered anew where left out.

    Returns:
        The checkpoint with the tensors that changed, its weight errors measured anew, and a step that says what
        was measured on the sequences held back.

    Raises:
        BTCompressError: the sequences are not inputs of an LSTM of the file, one of the matrices meets only zeros, or
            training diverged.
        CheckpointError: the dense checkpoint does not fit.
    """
    entry = choose_lstm(compressed, request.lstm)
    if not is_factorized(compressed, entry):
        raise BTCompressError(
            f"{entry.name or 'the LSTM'} has no block-term matrices to calibrate. Name another LSTM, or factorize it."
        )
    train, held = _sequences(request, entry, config.seed)
    config = config.of_way("hidden states")
    stages = list(_stages(entry, config))
    dtype = training_dtype(compressed.outline(), entry)
    tasks = {s.entry: HiddenStates(teacher_of(dense, s.entry, dtype), keep=True) for s in stages}

    def prepared(stage: _Stage, start: CompressedCheckpoint) -> tuple[Recurrent, Trainer]:
        student = _student(stage, start)
        return student, Trainer(student, tasks[stage.entry], train, held, stage.config)

    student, trainer = prepared(stages[-1], compressed)
    before = trainer.measure(student)
    if samples is None:
        keys = compressed.matrices
        samples = _not_zero(samples_of(dense, entry, train, held, dtype, keys=keys, seed=config.seed))
    calibrated = refitted = refit(compressed, dense, samples)
    student, trainer = prepared(stages[-1], calibrated)
    if trainer.measure(student) > before:  # smaller errors in every matrix are no promise for the recurrence
        calibrated = compressed
    n_epochs = 0
    for stage in stages if request.train else ():
        student, trainer = prepared(stage, calibrated)
        _, best = trainer.run(on_epoch=on_epoch and partial(on_epoch, stage.what))
        student.load_state_dict(best.tensors)
        calibrated = replace(calibrated, tensors={**calibrated.tensors, **stored_tensors(student, calibrated)})
        n_epochs += len(trainer.rows)
    student, trainer = prepared(stages[-1], calibrated)
    versions = {"_before": compressed, "_refitted": refitted, "": calibrated}
    weights = {key: sample.weights for key, sample in samples.items()}
    errors = activation_errors(list(versions.values()), dense, entry, held, weights)
    measured = dict(zip(versions, errors, strict=True))
    step = {
        "step": "calibrate",
        "lstm": entry.name,
        "hidden_state_error_before": before,
        "hidden_state_error_after": trainer.measure(student),
        **{f"activation_errors{when}": {key: e.plain for key, e in each.items()} for when, each in measured.items()},
        **{
            f"weighted_activation_errors{when}": {key: e.weighted for key, e in each.items()}
            for when, each in measured.items()
        },
        "epochs": n_epochs,
        "n_train": len(train),
        "n_held": len(held),
        "cancellation": worst_cancellation(student),
        "config": asdict(config),
    }
    return _weighed_anew(calibrated, dense).with_step(step)


def _sequences(request: CalibrationRequest, entry: LSTMEntry, seed: int) -> tuple[Data, Data]:
    """The sequences to fit and train on, and those held back."""
    data = open_data(request.data, request.scale)
    check_inputs(data, data.batch(torch.tensor([0])), entry)
    return split(data, request.held_fraction, seed)


def _not_zero(samples: dict[str, Samples]) -> dict[str, Samples]:
    """The samples, if each matrix meets something else than zeros: those any form at all would fit."""
    without = [key for key, sample in samples.items() if not sample.inputs.any()]
    if without:
        raise BTCompressError(
            f"{', '.join(without)}: all inputs on the sequences are zero, so nothing can be fitted to them. Give the "
            "inputs that the model gets, scaled as it gets them (--scale) and in sequences of several steps, or leave "
            "such a matrix as it is (--layer '!NAME')."
        )
    return samples


def _stages(entry: LSTMEntry, config: TrainConfig) -> Iterator[_Stage]:
    """Layer by layer where there are several, each on what those below it really give; then all of them."""
    if entry.num_layers > 1:
        short = replace(config, epochs=max(config.epochs // 2, 1))
        for n in range(entry.num_layers):
            below = replace(entry, num_layers=n).keys if n else ()
            yield _Stage(f"layer {n}", replace(entry, num_layers=n + 1), below, short)
    yield _Stage("all layers" if entry.num_layers > 1 else "the LSTM", entry, (), config)


def _student(stage: _Stage, compressed: CompressedCheckpoint) -> Recurrent:
    """The LSTM of a stage, what stays as it is frozen."""
    student = student_of(compressed, stage.entry)
    for name, tensor in student.file_tensors().items():
        fixed = any(name == key or name.startswith(f"{key}.") for key in stage.fixed)
        if fixed or any(fnmatchcase(name, pattern) for pattern in stage.config.freeze):
            tensor.requires_grad_(False)
    balance(student)
    return student


def _weighed_anew(compressed: CompressedCheckpoint, dense: Checkpoint) -> CompressedCheckpoint:
    """With the weight errors of the tensors as they are now."""
    measured = {
        key: replace(matrix, weight_error=weight_error(dense.tensors[key], compressed.parts(key), matrix.dtype))
        for key, matrix in compressed.matrices.items()
    }
    return replace(compressed, matrices=measured)
