"""Calibrate one recurrent entry: fit its matrices to its inputs, round them, train it to give the dense hidden states.

Layer by layer, each on what the layers below it really give, and then all layers together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch

from btcompress.calibration.errors import activation_errors, errors_fields
from btcompress.calibration.inputs import dtype_of
from btcompress.calibration.layers import Layer, dense_layers, layers_of
from btcompress.calibration.progress import Job, Tell, silent
from btcompress.calibration.refit import fit_job
from btcompress.calibration.rounding import rounding_job, with_rounded
from btcompress.calibration.stacks import GivenStates, Room, Stack, Taught
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LinearEntry, RecurrentEntry
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.precisions import Stored
from btcompress.finetune import Epoch, TrainConfig
from btcompress.finetune.blocks import balance, worst_cancellation
from btcompress.finetune.config import rate_from
from btcompress.finetune.data import Data
from btcompress.finetune.decisions import agreement_on
from btcompress.finetune.loop import Trainer
from btcompress.finetune.networks import Recurrent, named, stored_tensors, student_of
from btcompress.fit import Samples
from btcompress.packing import Precision
from btcompress.results import LearningCurve

#: What an epoch costs for each sequence trained on, in runs over it.
_TRAINING = 3


@dataclass(slots=True)
class RecurrentCalibration:
    """The calibration of one recurrent entry on its own inputs, as jobs that each change a compressed checkpoint.

    Attributes:
        entry: its layers.
        head: the linear layer on its outputs, which is fitted to them; None where none is known.
        train: sequences to train on.
        held: sequences to measure on.
        dense: holds the dense layers.
        samples: of the inputs of its chosen matrices, by key.
        config: how to train.
        precisions: how the numbers of those are to be stored that are not yet, by key.
    """

    entry: RecurrentEntry
    head: LinearEntry | None
    train: Data
    held: Data
    dense: Checkpoint
    samples: Mapping[str, Samples]
    config: TrainConfig
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    _device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _teachers: list[Stack] = field(default_factory=list)
    _below: Stack | None = None
    _room: Room = field(default_factory=Room)
    _versions: dict[str, CompressedCheckpoint] = field(default_factory=dict)
    _start: float = math.inf
    _measured: dict[str, Any] = field(default_factory=dict)
    _curves: list[LearningCurve] = field(default_factory=list)
    _epochs: dict[str, int] = field(default_factory=lambda: {"layer_epochs": 0, "epochs": 0})

    def jobs(self, compressed: CompressedCheckpoint, *, train: bool) -> Iterator[Job[CompressedCheckpoint]]:
        """What to do, in this order.

        Args:
            compressed: holds the forms.
            train: whether to train after the fits.
        """
        name, layers = named(self.entry), layers_of(self.entry)
        measuring = 4 * work_of_run(self.entry, self.held)
        fits = [
            fit_job(compressed, key, self.dense, samples)
            for key, samples in self.samples.items()
            if key in compressed.matrices and not compressed.has_fewer_bits(key)
        ]
        yield Job(f"measuring {name} as fitted to the weights", measuring, silent(self._measure_start))
        yield from fits
        if fits:
            yield Job(
                f"measuring {name} as fitted to its inputs",
                measuring,
                silent(partial(self._take_the_better, compressed)),
            )
        for key, precision in self.precisions.items():
            yield rounding_job(key, self.dense, precision, self.samples[key])
        if self.precisions:
            yield Job(f"measuring {name} as rounded", measuring, silent(self._measure_rounded))
        if train and len(layers) > 1:
            short = replace(self.config, epochs=max(self.config.epochs // 2, 1))
            for layer in layers:
                work = self._work_of_training(layer.entry, short)
                yield Job(f"calibrating layer {layer.number} of {name}", work, self._training(short, layer))
        if train:
            what = f"all layers of {name}" if len(layers) > 1 else name
            work = self._work_of_training(self.entry, self.config)
            yield Job(f"calibrating {what}", work, self._training(self.config, None))
        yield Job(f"measuring {name}", measuring, silent(self._finish))

    def _work_of_training(self, entry: RecurrentEntry, config: TrainConfig) -> float:
        train, held = (work_of_run(entry, data) for data in (self.train, self.held))
        return config.epochs * (_TRAINING * train + held)

    def _measure_start(self, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        networks = dense_layers(self.entry, self.dense, dtype_of(self.entry, self.dense.tensors))
        room, below = Room(), None
        for layer, network in zip(layers_of(self.entry), networks, strict=True):
            below = Stack(layer, network, room, below)
            self._teachers.append(below)
        before = compressed
        for key, precision in self.precisions.items():
            before = with_rounded(before, key, self.dense, precision)
        self._versions["_before"] = before
        self._start = self._measured["hidden_state_error_before"] = self._error_of(before)
        self._measured["agreement_before"] = self._agreement_of(before)
        return compressed

    def _take_the_better(self, before: CompressedCheckpoint, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        """The fit to the inputs or that to the weights: smaller errors in every matrix are no promise."""
        error = self._measured["hidden_state_error_refitted"] = self._error_of(compressed)
        self._versions["_refitted"] = compressed
        given = self._error_of(before) if self.precisions else self._start
        self._start = min(error, given)
        if error <= given:
            return compressed
        own = {key: matrix.shape for key, matrix in before.matrices.items() if key in self.entry.matrix_keys}
        names = [name for key, shape in own.items() for part in part_names(key, shape) for name in part]
        stored = {name: before.stored[name] for name in names if name in before.stored}
        return compressed.with_tensors({name: before.tensors[name] for name in names}, stored)

    def _measure_rounded(self, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        """Rounded with errors fed back, or by the entries alone where that is nearer after all."""
        error = self._measured["hidden_state_error_rounded"] = self._error_of(compressed)
        self._versions["_rounded"] = compressed
        before = self._measured["hidden_state_error_before"]
        self._start = min(error, before)
        return compressed if error <= before else self._versions["_before"]

    def _training(
        self, config: TrainConfig, layer: Layer | None
    ) -> Callable[[CompressedCheckpoint, Tell], CompressedCheckpoint]:
        """A training of a layer on what those below it give, or of all layers."""

        def do(compressed: CompressedCheckpoint, tell: Tell) -> CompressedCheckpoint:
            if self.config.learning_rate is None:
                self.config = replace(self.config, learning_rate=rate_from(self._start))
            rate = self.config.learning_rate
            own = compressed if layer is None else layer.cut(compressed)
            student = self._student(own, layer)
            stored: dict[str, Stored] = {}
            if any(parameter.requires_grad for parameter in student.parameters()):
                trainer = self._trainer(student, replace(config, learning_rate=rate), layer, own.stored)
                before, best = trainer.run(on_epoch=lambda epoch: tell(epoch.epoch / epoch.epochs, _state(epoch)))
                stored = trainer.take(best)
                after = (row.metric for row in trainer.rows)
                self._curves.append(LearningCurve.of(before, after, None if layer is None else layer.number))
                self._epochs["epochs" if layer is None else "layer_epochs"] += len(trainer.rows)
            tensors = stored_tensors(student, own)
            if layer is None:
                return compressed.with_tensors(tensors, stored)
            self._below = Stack(layer, student, self._room, self._below)
            return layer.put_back(compressed, tensors, stored)

        return do

    def _finish(self, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        """With a step that says what was measured."""
        student = self._student(compressed, None)
        weights = {key: samples.weights for key, samples in self.samples.items()}
        versions = {**self._versions, "": compressed}
        errors = activation_errors(list(versions.values()), self.dense, self.entry, self.held, weights, head=self.head)
        step = {
            "step": "calibrate",
            "lstm": self.entry.name,
            **self._measured,
            "hidden_state_error_after": self._error_of(compressed),
            "agreement_after": self._agreement_of(compressed),
            **errors_fields(dict(zip(versions, errors, strict=True))),
            **self._epochs,
            "n_train": len(self.train),
            "n_held": len(self.held),
            "cancellation": worst_cancellation(student),
            "config": asdict(self.config),
            "learning_curves": [asdict(curve) for curve in self._curves],
        }
        return compressed.with_step(step)

    def _student(self, compressed: CompressedCheckpoint, layer: Layer | None) -> Recurrent:
        """All layers, or one of them, to train; what stays as it is frozen."""
        student = student_of(compressed, self.entry if layer is None else layer.entry)
        for name, tensor in student.file_tensors().items():
            known = name if layer is None else layer.named(name)
            if any(fnmatchcase(known, pattern) for pattern in self.config.freeze):
                tensor.requires_grad_(False)
        balance(student, [tensor for name, tensor in student.file_tensors().items() if name in compressed.stored])
        return student

    def _trainer(
        self,
        student: Recurrent,
        config: TrainConfig,
        layer: Layer | None = None,
        stored: Mapping[str, Stored] | None = None,
    ) -> Trainer:
        teacher, below = self._teachers[-1 if layer is None else layer.number], None if layer is None else self._below
        dtype = dtype_of(self.entry, self.dense.tensors)
        train, held = (Taught(data, teacher, self._device, dtype, layer, below) for data in (self.train, self.held))
        trainer = Trainer(student, GivenStates(), train, held, config, stored=stored, cautious=True, neighbours=True)
        self._device = trainer.accelerator.device
        return trainer

    def _error_of(self, compressed: CompressedCheckpoint) -> float:
        student = self._student(compressed, None)
        return self._trainer(student, self.config).measure(student)

    def _agreement_of(self, compressed: CompressedCheckpoint) -> dict[str, Any] | None:
        agreement = agreement_on(compressed, self.dense, self.entry, self.held, self.config.batch_size)
        return None if agreement is None else asdict(agreement)


def work_of_run(entry: RecurrentEntry, data: Data) -> float:
    """About how many multiplications it takes to run an entry over sequences."""
    first = data.batch(torch.tensor([0])).x
    entries = sum(shape[0] * shape[1] for shape in entry.shapes.values() if len(shape) == 2)
    return float(len(data) * first.shape[1] * entries)


def _state(epoch: Epoch) -> str:
    return f"epoch {epoch.epoch} of {epoch.epochs}, loss {epoch.loss:.4f}, hidden-state error {epoch.metric:.4f}"
