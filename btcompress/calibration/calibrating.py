"""Calibrate a compressed checkpoint: let its LSTM give the dense one's hidden states on sample sequences.

The weights of a trained matrix count as much as the inputs that meet them, and its errors as much as the recurrence
lets them grow; only the hidden states say both. So the block terms, and with them all else that the LSTM has, are
trained for a short while to give the dense LSTM's hidden states: layer by layer, each on what the layers below it
really give, and then all layers together. Low-rank matrices are fitted to their inputs first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import torch

from btcompress.calibration.errors import activation_errors
from btcompress.calibration.refit import refit
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LSTMEntry
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch, TrainConfig
from btcompress.finetune.blocks import balance, worst_cancellation
from btcompress.finetune.data import open_data, split
from btcompress.finetune.loop import Trainer
from btcompress.finetune.networks import (
    Recurrent,
    check_inputs,
    choose_lstm,
    is_factorized,
    stored_tensors,
    student_of,
    teacher_of,
)
from btcompress.finetune.tasks import HiddenStates
from btcompress.fit import weight_error

OnEpoch = Callable[[str, Epoch], None]

#: A lower learning rate than fine-tuning's: low-rank matrices begin near where they end.
DEFAULT = TrainConfig(epochs=10, learning_rate=3e-3)


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to calibrate on.

    Attributes:
        data: sequences of an LSTM's inputs, as fine-tuning takes them; labels are not looked at.
        scale: what to multiply the inputs of files by.
        held_fraction: share of the sequences that is held back, to stop on and to measure on.
        lstm: name of the LSTM that they are inputs of; may be left out where there is one.
        train: whether to train after low-rank matrices are fitted to the inputs.
    """

    data: str
    scale: float = 1.0
    held_fraction: float = 0.2
    lstm: str | None = None
    train: bool = True


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


def calibrate(
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    request: CalibrationRequest,
    config: TrainConfig = DEFAULT,
    on_epoch: OnEpoch | None = None,
) -> CompressedCheckpoint:
    """Train an LSTM with block terms to give the hidden states of the dense one, without labels.

    Its other tensors, ``U`` and the biases, change along, unless ``config.freeze`` names them. The best state on the
    sequences held back is kept, the start included. Seeds the global generators of ``random``, NumPy and torch.

    Args:
        compressed: a factorized checkpoint.
        dense: what it was factorized from.
        request: on what.
        config: how to train; ``epochs`` are those over all layers together, and each layer on its own has half as
            many.
        on_epoch: called after each epoch with what is trained.

    Returns:
        The checkpoint with the tensors that changed, its weight errors measured anew, and a step that says what
        was measured on the sequences held back.

    Raises:
        BTCompressError: the sequences are not inputs of an LSTM of the file, or training diverged.
        CheckpointError: the dense checkpoint does not fit.
    """
    entry = choose_lstm(compressed, request.lstm)
    if not is_factorized(compressed, entry):
        raise BTCompressError(
            f"{entry.name or 'the LSTM'} has no block-term matrices to calibrate. Name another LSTM, or factorize it."
        )
    data = open_data(request.data, request.scale)
    check_inputs(data, data.batch(torch.tensor([0])), entry)
    train, held = split(data, request.held_fraction, config.seed)
    config = config.of_way("hidden states")
    stages = list(_stages(entry, config))
    tasks = {s.entry: HiddenStates(teacher_of(dense, compressed, s.entry), keep=True) for s in stages}

    def prepared(stage: _Stage, start: CompressedCheckpoint) -> tuple[Recurrent, Trainer]:
        student = _student(stage, start)
        return student, Trainer(student, tasks[stage.entry], train, held, stage.config)

    student, trainer = prepared(stages[-1], compressed)
    before, errors_before = trainer.measure(student), activation_errors(compressed, dense, entry, held)
    calibrated, refitted, n_epochs = refit(compressed, dense, entry, train), errors_before, 0
    if calibrated is not compressed:
        refitted = activation_errors(calibrated, dense, entry, held)
        student, trainer = prepared(stages[-1], calibrated)
        if trainer.measure(student) > before:  # smaller errors in every matrix are no promise for the recurrence
            calibrated = compressed
    for stage in stages if request.train else ():
        student, trainer = prepared(stage, calibrated)
        _, best = trainer.run(on_epoch=on_epoch and partial(on_epoch, stage.what))
        student.load_state_dict(best.tensors)
        calibrated = replace(calibrated, tensors={**calibrated.tensors, **stored_tensors(student, calibrated)})
        n_epochs += len(trainer.rows)
    student, trainer = prepared(stages[-1], calibrated)
    step = {
        "step": "calibrate",
        "lstm": entry.name,
        "hidden_state_error_before": before,
        "hidden_state_error_after": trainer.measure(student),
        "activation_errors_before": errors_before,
        "activation_errors_refitted": refitted,
        "activation_errors": activation_errors(calibrated, dense, entry, held),
        "epochs": n_epochs,
        "n_train": len(train),
        "n_held": len(held),
        "cancellation": worst_cancellation(student),
        "config": asdict(config),
    }
    return _weighed_anew(calibrated, dense).with_step(step)


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
        key: replace(matrix, weight_error=weight_error(dense.tensors[key], compressed.parts(key)))
        for key, matrix in compressed.matrices.items()
    }
    return replace(compressed, matrices=measured)
