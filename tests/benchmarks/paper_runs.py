"""One task with one seed: its data, its models and what is known of them, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from paper_forms import Form, Start, dense_model
from paper_records import BusyError, Measured, Noisy, Record, Trained, claim, kept
from safetensors.torch import save_file
from torch import nn

from btcompress import apply, load, save
from btcompress.calibration import CalibrationRequest, calibrate
from btcompress.checkpoint import read, replacing
from btcompress.demo import Drawn, Noise, Task, Training
from btcompress.demo.story import draw_data
from btcompress.demo.trainforms import applied, train_form
from btcompress.errors import DivergedError
from btcompress.finetune import Epoch

#: What is done to a model, as records and tables have it.
TRAINED, BEGUN, CALIBRATED = "trained", "before training", "calibrated without labels"


@dataclass(frozen=True, slots=True)
class Model:
    """One trained model of a run.

    Attributes:
        form: of ``W``.
        start: what its training begins with.
        training: how it is trained.
    """

    form: Form
    start: Start
    training: Training

    @property
    def file_name(self) -> str:
        """Without ending."""
        start = f"-{self.start.replace(' ', '-')}" if self.start else ""
        return f"{self.form.file_name}{start}-{self.training.learning_rate:g}-{self.training.weight_decay:g}"


@dataclass(eq=False)
class Run:
    """One task with one seed, and what was made of it in a folder.

    Attributes:
        task: what is learned.
        size: its name.
        seed: of the data and the trainings.
        folder: of its files.
        on_epoch: called after each epoch of a training.
        on_draw: called before data are drawn, which take memory and disk until the run is closed.
        dense: what the dense model is trained with.
        making: whether what is missing is made.
    """

    task: Task[Any]
    size: str
    seed: int
    folder: Path
    on_epoch: Callable[[str, Epoch], None] = field(repr=False)
    on_draw: Callable[[Run], None] = field(default=lambda _: None, repr=False)
    dense: Training | None = None
    making: bool = True

    def __post_init__(self) -> None:
        if self.making:
            self.folder.mkdir(exist_ok=True)
        self._stack = ExitStack()
        self._data: Path | None = None
        self._test: Any = None
        self._noisy: tuple[Noise, Any] | None = None

    def data(self) -> Path:
        """File of the examples to train on, which is this process's own until the run is closed."""
        if self._data is None:
            self.on_draw(self)
            for number in count():
                path = self.folder / f"data-{number}.npz"
                try:
                    self._stack.enter_context(claim(path))
                except BusyError:
                    continue
                break
            # What a process left that was killed is whole, and the same.
            if not path.exists():
                self._take(draw_data(self.task, path, self.seed))
            self._data = path
        return self._data

    def test(self) -> Any:
        """What models are measured on."""
        if self._test is None:
            self.on_draw(self)
            self._take(self.task.draw(self.seed))
        return self._test

    def _take(self, drawn: Drawn[Any]) -> None:
        self._test = drawn.test

    def close(self) -> None:
        """Let go of the data, in files and in memory; where they are asked for again, they are there again."""
        if self._data is not None:
            self._data.unlink(missing_ok=True)
        self._stack.close()
        self._data = self._test = self._noisy = None

    def path(self, model: Model) -> Path:
        """The file of a trained model."""
        return self.folder / f"{model.file_name}.safetensors"

    def dense_path(self) -> Path:
        """The dense checkpoint that others start from; trained, unless that is done."""
        model = self._dense()
        self.trained(model)
        return self.path(model)

    def _dense(self) -> Model:
        if self.dense is None:
            raise RuntimeError("the dense model has not been chosen yet")
        return Model(Form(), "", self.dense)

    def trained(self, model: Model) -> Trained:
        """Train a model, unless that is done.

        Raises:
            BusyError: another process is at it, or at the dense model that it starts from.
        """
        record = self._kept(f"{model.file_name}.trained", Trained, lambda: self._trained(model))
        if self.making:
            # What lets a training go on goes once all that came of it is kept.
            shutil.rmtree(self._place(model), ignore_errors=True)
        return record

    def _place(self, model: Model) -> Path:
        """The folder of a training while it lasts."""
        return self.folder / model.file_name

    def _kept(self, name: str, kind: type[Record], make: Callable[[], Record]) -> Record:
        return kept(self.folder / f"{name}.json", kind, make if self.making else None)

    def _trained(self, model: Model) -> Trained:
        name, place = f"{self.folder.name}/{model.file_name}", self._place(model)
        place.mkdir(exist_ok=True)
        # A training that goes on finds its data under the name that they had, whichever process drew them.
        data = place / "data.npz"
        data.unlink(missing_ok=True)
        data.hardlink_to(self.data())
        made = model.form.begun(self, model.start)
        try:
            trained = train_form(
                self.task,
                made,
                data,
                model.training,
                self.seed,
                place,
                on_epoch=lambda epoch: self.on_epoch(name, epoch),
            )
        except DivergedError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return Trained((), ())
        if trained.compressed is not None:
            save(trained.compressed, self.path(model), force=True)
        else:
            tensors = {key: tensor.contiguous().clone() for key, tensor in trained.model.state_dict().items()}
            with replacing(self.path(model)) as temporary:
                save_file(tensors, temporary)
        (metrics,) = place.glob("*.metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        return Trained(trained.curve, tuple(row["seconds"] for row in rows))

    def measured(self, model: Model) -> Measured:
        """What a trained model scores on the test set."""

        def make() -> Measured:
            return self._record(model, TRAINED, self.loaded(model), self.trained(model).curve)

        return self._kept(model.file_name, Measured, make)

    def begun(self, model: Model) -> Measured:
        """What a model scores as it is before training."""

        def make() -> Measured:
            return self._record(model, BEGUN, applied(self.task, model.form.begun(self, model.start).model), ())

        return self._kept(self._begun_name(model), Measured, make)

    def calibrated(self, model: Model) -> Measured:
        """What a factorized model scores once it is calibrated without labels."""
        name = f"{self._begun_name(model)}-calibrated"

        def make() -> Measured:
            path, inputs = self.folder / f"{name}.safetensors", self.folder / f"{name}.npz"
            samples = self.task.samples(dense_model(self), self.data(), inputs, self.seed)
            request = CalibrationRequest((samples,), self.task.size.held_fraction)
            config = self.task.size.calibration.config(self.seed)
            model.form.begun(self, model.start)
            begun = load(model.form.start_path(self, model.start))
            found = calibrate(begun, read(self.dense_path()), request, config)
            inputs.unlink(missing_ok=True)
            save(found, path, force=True)
            return self._record(model, CALIBRATED, apply(dense_model(self), found), ())

        return self._kept(name, Measured, make)

    def _begun_name(self, model: Model) -> str:
        return f"{model.form.file_name}-{model.start.replace(' ', '-')}-begun"

    def loaded(self, model: Model) -> nn.Module:
        """A trained model.

        Raises:
            DivergedError: its training diverged.
        """
        if not self.trained(model).curve:
            raise DivergedError(f"{model.file_name} diverged, and is not measured. Leave it out, or lower its rates.")
        return model.form.trained(self, self.path(model))

    def _record(self, model: Model, stage: str, module: nn.Module, curve: tuple[float, ...]) -> Measured:
        sizes = model.form.sizes(self, model.start)
        training = model.training if stage == TRAINED else None
        return Measured(
            self.task.name,
            self.size,
            self.seed,
            model.form.name,
            model.start,
            stage,
            sizes.params,
            sizes.n_bytes,
            sizes.model_params,
            sizes.model_bytes,
            None if training is None else training.learning_rate,
            None if training is None else training.weight_decay,
            curve,
            self._scores(module, self.test()),
        )

    def _scores(self, module: nn.Module, test: Any) -> tuple[float, ...]:
        # Some models draw as they are measured.
        torch.manual_seed(self.seed)
        return tuple(float(score) for score in self.task.scores(module, test))

    def noisy(self, model: Model, noise: Noise) -> Noisy:
        """What a trained model scores on noisy inputs."""

        def make() -> Noisy:
            module = self.loaded(model)
            if self._noisy is None or self._noisy[0] != noise:
                self._noisy = (noise, self.task.noisy(self.test(), noise))
            scores = self._scores(module, self._noisy[1])
            where = (self.task.name, self.size, self.seed, model.form.name, model.start)
            return Noisy(*where, noise.kind, noise.strength, scores)

        return self._kept(f"{model.file_name}.{noise.kind}-{noise.strength:g}", Noisy, make)

    def discard(self, model: Model) -> None:
        """Remove the file of a trained model that is needed no more."""
        if self.making:
            self.path(model).unlink(missing_ok=True)
