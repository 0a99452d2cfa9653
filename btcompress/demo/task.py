"""What a demonstration learns: a task draws data, makes its dense model, trains, and scores what models do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from btcompress.calibration import SampleInputs
from btcompress.demo.digits import handwritten_digits
from btcompress.demo.measures import Measure
from btcompress.demo.noise import Noise
from btcompress.demo.pictures import figure
from btcompress.demo.training import train_network
from btcompress.finetune.config import TrainConfig
from btcompress.finetune.data import open_data, split
from btcompress.finetune.epoch import OnEpoch
from btcompress.finetune.request import FineTuneRequest
from btcompress.finetune.state import StateFile
from btcompress.finetune.tasks import Labels, OwnLoss
from btcompress.finetune.tasks import Task as Objective
from btcompress.recorder import recording

__all__ = ["Drawn", "Measure", "Size", "Task", "Training"]

#: Examples on which inputs are recorded to calibrate on, at most.
_N_SAMPLES = 400
_BATCH = 50

#: What a task is tested on; each task has a kind of its own.
Test = TypeVar("Test")


@dataclass(frozen=True, slots=True)
class Training:
    """How one model is trained: from the data alone, without a teacher.

    Attributes:
        epochs: passes over the data to train on; the best of them on the data held back counts.
        learning_rate: at its peak.
        weight_decay: of AdamW.
        batch_size: sequences in one step.
    """

    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    batch_size: int = 32

    def config(self, seed: int) -> TrainConfig:
        """As the training loop takes it."""
        return TrainConfig(
            self.epochs,
            self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            patience=0,
            distill=0.0,
            seed=seed,
        )


@dataclass(frozen=True, slots=True)
class Size:
    """How much is drawn, how large the models are, and how they are trained.

    Attributes:
        n_train: examples to train on, those included that choose the best epoch.
        n_test: examples to measure on at the end; they choose nothing.
        hidden_size: of the LSTM with the large inputs.
        cp_rank: ``N`` of its input matrix.
        tucker_rank: ``R`` of it.
        dense: how the dense model is trained.
        tuning: how a model with a smaller form of the matrix is trained on from the dense one's.
        scratch: how such a model is trained from random numbers.
        held_fraction: share of ``n_train`` that chooses the best epoch, of all models.
        calibration: how a factorized model is calibrated.
    """

    n_train: int
    n_test: int
    hidden_size: int
    cp_rank: int
    tucker_rank: int
    dense: Training
    tuning: Training
    scratch: Training
    held_fraction: float = 0.2
    calibration: Training = Training(6, 1e-2)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn(Generic[Test]):
    """What was drawn for one seed.

    Attributes:
        x: inputs to train on, shape ``(n_train, ...)``; ``scale`` of the task is still to be applied.
        y: what is wanted for each, shape ``(n_train, ...)``.
        test: what models are measured on.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    test: Test


class Task(ABC, Generic[Test]):
    """One of the three tasks at one size; a frozen value, whose methods draw all randomness from the seeds given.

    Attributes:
        name: by which it is asked for.
        layer: where in the model the LSTM (``nn.LSTM`` of one layer, or ``nn.LSTMCell``) with the large inputs is.
        measures: what :meth:`scores` gives, the most telling first.
        metric: what chooses the best epoch, on the examples held back.
        examples: what the examples are called, as in "1,000 test clips".
        size: how much is drawn, how large the models are, and how they are trained.
    """

    name: ClassVar[str]
    layer: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    metric: ClassVar[Measure]
    examples: ClassVar[str]
    size: Size

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape whose C-order flattening is the large input."""

    @property
    def scale(self) -> float:
        """What the stored inputs are multiplied by."""
        return 1.0

    @property
    def model_reference(self) -> str | None:
        """``package.module:factory`` of the dense model, by which ``finetune`` makes it; None where it needs none."""
        return None

    @property
    def loss(self) -> Callable[[Any, Tensor], Tensor] | None:
        """The mean loss of ``(outputs, y)``, a function of a module; None where labels say what is wanted."""
        return None

    @property
    def loss_reference(self) -> str | None:
        """``package.module:function`` of the loss, by which ``finetune`` finds it."""
        return None if self.loss is None else f"{self.loss.__module__}:{self.loss.__qualname__}"

    def check(self) -> None:
        """See that no package is missing that data, scores and pictures need; to be asked before long work.

        Raises:
            BTCompressError: one is.
        """
        handwritten_digits()
        figure((1, 1))

    @abstractmethod
    def draw(self, seed: int) -> Drawn[Test]:
        """Draw what to train and to test on.

        Raises:
            BTCompressError: a package that the pictures come from is missing.
        """

    @abstractmethod
    def model(self, hidden_size: int | None = None) -> nn.Module:
        """A dense model with random weights from torch's generator.

        Args:
            hidden_size: of the LSTM with the large inputs, where it is not that of the size.
        """

    @abstractmethod
    def scores(self, model: nn.Module, test: Test) -> tuple[float, ...]:
        """What is measured of a model, in the order of ``measures``; the model is in evaluation mode after it."""

    @abstractmethod
    def noisy(self, test: Test, noise: Noise) -> Test:
        """The same to test on, with noise over the pictures that inputs are made of."""

    @abstractmethod
    def draw_examples(self, models: Mapping[str, nn.Module], test: Test, path: Path) -> None:
        """Draw a picture of some examples and what the models, by their names, make of them.

        Raises:
            BTCompressError: matplotlib is missing.
            OutputError: the file cannot be written.
        """

    def finetuning(self, compressed: Path, data: Path, output: Path, dense: Path | None = None) -> FineTuneRequest:
        """What ``btcompress finetune`` is asked for to train a compressed checkpoint for the task.

        Args:
            compressed: its file.
            data: file of ``x`` and ``y``.
            output: the file to write.
            dense: the dense checkpoint, to be measured beside it where given.
        """
        return FineTuneRequest(
            compressed,
            str(data),
            output,
            dense,
            held_fraction=self.size.held_fraction,
            scale=self.scale,
            model=self.model_reference,
            loss=self.loss_reference,
        )

    def samples(self, model: nn.Module, data: Path, path: Path, seed: int) -> SampleInputs:
        """Inputs of the layer to calibrate on.

        They are the data where the layer reads these, as it does in models that need no code. Else they are recorded as
        the dense model runs on some of the examples to train on.

        Args:
            model: the dense one.
            data: file of ``x`` and ``y``.
            path: ``.npz`` where recorded inputs go.
            seed: of the split.

        Raises:
            OutputError: the file cannot be written.
        """
        if self.model_reference is None:
            return SampleInputs(str(data), None, self.scale)
        examples, _ = split(open_data(str(data), self.scale), self.size.held_fraction, seed)
        with recording(model.eval(), path, layers=[self.layer], force=True), torch.no_grad():
            for rows in torch.arange(min(_N_SAMPLES, len(examples))).split(_BATCH):
                model(examples.batch(rows).x.float())
        return SampleInputs(str(path), self.layer)

    def objective(self, config: TrainConfig) -> Objective[Any]:
        """What models are trained for: the loss, or where there is none the labels."""
        return Labels("classes", None, config.temperature, 0.0) if self.loss is None else OwnLoss(self.loss, None)

    def train(
        self,
        model: nn.Module,
        data: Path,
        training: Training,
        seed: int,
        *,
        file: StateFile | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> tuple[float, ...]:
        """Train a model in its place, and leave it at the epoch that is best on the examples held back.

        Args:
            model: any that takes what the dense one does; it ends on the CPU.
            data: file of ``x`` and ``y``.
            training: how.
            seed: of the split and the order of training.
            file: where the state is kept; see :func:`btcompress.demo.training.train_network`.
            on_epoch: called after each epoch.

        Returns:
            The metric on the examples held back, before training and after each epoch.

        Raises:
            BTCompressError: the state is damaged or of another training.
            DivergedError: a loss is no longer a number.
        """
        config = training.config(seed)
        parts = split(open_data(str(data), self.scale), self.size.held_fraction, seed)
        return train_network(model, self.objective(config), *parts, config, file=file, on_epoch=on_epoch)
