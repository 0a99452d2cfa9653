"""The demonstration: train a dense model, write it in block terms, fine-tune, train from scratch, measure them all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from btcompress.calibration import CalibrationRequest, calibrate
from btcompress.checkpoint import CompressedCheckpoint, check_target, claimed, read, read_compressed, replacing, write
from btcompress.compression import factorize
from btcompress.demo.apart import TrainingApart, training_apart
from btcompress.demo.comparison import Comparison, check_rivals
from btcompress.demo.files import DemoFiles
from btcompress.demo.pictures import Curve, save_curves
from btcompress.demo.randomstart import random_start
from btcompress.demo.task import Drawn, Task, Training
from btcompress.demo.trainforms import applied
from btcompress.finetune import Epoch
from btcompress.finetune.state import StateFile
from btcompress.reporting import report
from btcompress.results import CalibrationProgress, CompressionReport
from btcompress.shapes import BlockTermShape

DENSE, FACTORIZED, CALIBRATED = "dense", "factorized", "calibrated without labels"
TUNED, SCRATCH = "factorized, then fine-tuned", "block terms from scratch"


@dataclass(frozen=True, slots=True)
class DemoProgress:
    """What the demonstration is at.

    Attributes:
        what: it does.
        epoch: the last one done, where it trains.
        part: where a calibration stands.
    """

    what: str
    epoch: Epoch | None = None
    part: CalibrationProgress | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one model.

    Attributes:
        name: of the model.
        n_weights: parameters of ``W``, the matrix of the large inputs.
        n_bytes: that these take.
        scores: on the test examples, in the order of the task's measures; None where training diverged.
    """

    name: str
    n_weights: int
    n_bytes: int
    scores: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
    """What the demonstration made and measured.

    Attributes:
        task: what was learned.
        files: what it wrote.
        drawn: the data.
        curves: of the models that were trained, on the examples held back.
        outcomes: of all models.
        report: what compression and fine-tuning gained and lost.
    """

    task: Task[Any]
    files: DemoFiles
    drawn: Drawn[Any]
    curves: tuple[Curve, ...]
    outcomes: tuple[Outcome, ...]
    report: CompressionReport

    @property
    def dense(self) -> Outcome:
        """What came of the dense model."""
        return self._outcome(DENSE)

    @property
    def tuned(self) -> Outcome:
        """What came of block terms that were fine-tuned."""
        return self._outcome(TUNED)

    @property
    def rivals(self) -> tuple[Outcome, ...]:
        """What came of what there is beside block terms."""
        own = (DENSE, FACTORIZED, CALIBRATED, TUNED, SCRATCH)
        return tuple(outcome for outcome in self.outcomes if outcome.name not in own)

    def _outcome(self, name: str) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.name == name)


OnProgress = Callable[[DemoProgress], None]


def run_demo(
    folder: Path,
    task: Task[Any],
    *,
    seed: int = 0,
    force: bool = False,
    with_rivals: bool = False,
    on_progress: OnProgress | None = None,
) -> DemoResult:
    """Draw, train, factorize, fine-tune and measure; checkpoints, data and pictures stay in ``folder``.

    All models learn from the same examples in the same loop and keep the epoch that is best on the same examples held
    back. The test examples are seen by no training and choose nothing.

    Args:
        folder: where to write :class:`DemoFiles`.
        task: what to learn, at which size.
        seed: of the data, the first weights, and the order of training.
        force: replace those that exist, and start over a training that was interrupted there.
        with_rivals: train what there is beside block terms too, at as many parameters; see :class:`Comparison`.
        on_progress: called as each stage begins and after each epoch.

    Raises:
        BTCompressError: a package is missing that data, scores, pictures or rivals need, or a training diverged.
        OutputError: the folder cannot be written to, holds one of the files, or another process is writing them.
    """
    files = DemoFiles(folder)
    for path in files.all:
        check_target(path, force=force)
    for path in files.trained:
        StateFile(path).check(force=force, resume=False, inputs=())
    task.check()
    if with_rivals:
        check_rivals()
    with claimed(files.data), torch.random.fork_rng(devices=[]):  # the first that is written stands for all of them
        return _Story(task, files, seed, with_rivals, on_progress or (lambda _: None)).told()


@dataclass(frozen=True, slots=True)
class _Story:
    """One run of the demonstration."""

    task: Task[Any]
    files: DemoFiles
    seed: int
    with_rivals: bool
    tell: OnProgress

    def told(self) -> DemoResult:
        """All of it, one stage after another."""
        task, files = self.task, self.files
        self.tell(DemoProgress(f"drawing {task.examples}"))
        drawn = draw_data(task, files.data, self.seed)
        model, dense_curve = self._dense()
        compressed = self._factorized()
        write(random_start(task.model, compressed, self.seed), files.start, force=True)
        with (
            self._training(files.factorized, files.tuned, task.size.tuning) as tuning,
            self._training(files.start, files.scratch, task.size.scratch) as from_scratch,
        ):
            calibrated = self._calibrated(model, compressed)
            tuned, tuned_curve = self._trained(TUNED, tuning, files.tuned)
            scratch, scratch_curve = self._trained(SCRATCH, from_scratch, files.scratch)
        curves = [Curve(DENSE, dense_curve), Curve(TUNED, tuned_curve), Curve(SCRATCH, scratch_curve)]
        ((key, matrix),) = compressed.matrices.items()
        rivals = list(self._comparison(model, matrix.shape.part).rivals()) if self.with_rivals else []
        curves += [Curve(rival.name, rival.curve) for rival in rivals if rival.curve]

        self.tell(DemoProgress("measuring"))
        models = {DENSE: model}
        for name, found in ((FACTORIZED, compressed), (CALIBRATED, calibrated), (TUNED, tuned), (SCRATCH, scratch)):
            models[name] = applied(task, found)
        itemsize = model.state_dict()[key].itemsize
        outcomes = []
        for name, each in models.items():
            n_weights = matrix.shape.dense_params if name == DENSE else matrix.shape.n_params
            outcomes.append(Outcome(name, n_weights, n_weights * itemsize, task.scores(each, drawn.test)))
        for rival in rivals:
            scores = None if rival.model is None else task.scores(rival.model, drawn.test)
            outcomes.append(Outcome(rival.name, rival.n_weights, rival.n_bytes, scores))
        shown = {name: models[name] for name in (DENSE, TUNED, SCRATCH)}
        task.draw_examples(shown, drawn.test, files.examples)
        save_curves(curves, task.metric, task.examples, files.curves)
        told = report(tuned, bytes_after=files.tuned.stat().st_size)
        return DemoResult(task, files, drawn, tuple(curves), tuple(outcomes), told)

    def _comparison(self, dense: nn.Module, target: BlockTermShape) -> Comparison:
        def on_epoch(name: str, epoch: Epoch | None) -> None:
            self.tell(DemoProgress(f"training: {name}", epoch))

        return Comparison(self.task, dense, target, self.files.data, self.seed, on_epoch)

    def _dense(self) -> tuple[nn.Module, tuple[float, ...]]:
        what = "training the dense model"
        self.tell(DemoProgress(what))
        torch.manual_seed(self.seed)
        model = self.task.model()
        curve = self.task.train(model, self.files.data, self.task.size.dense, self.seed, on_epoch=self._telling(what))
        # By a path, torch.save would write the temporary name into the file.
        with replacing(self.files.dense) as temporary, temporary.open("wb") as file:
            torch.save(model.state_dict(), file)
        return model, curve

    def _factorized(self) -> CompressedCheckpoint:
        self.tell(DemoProgress("factorizing"))
        task = self.task
        compressed = factorize(
            self.files.dense,
            layers=[f"{task.layer}.*"],
            cp_rank=task.size.cp_rank,
            tucker_rank=task.size.tucker_rank,
            input_shape=task.input_shape,
        )
        write(compressed, self.files.factorized, force=True)
        return compressed

    def _calibrated(self, model: nn.Module, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
        what = "calibrating"
        self.tell(DemoProgress(what))
        inputs = self.task.samples(model, self.files.data, self.files.inputs, self.seed)
        request = CalibrationRequest((inputs,), self.task.size.held_fraction)
        calibrated = calibrate(
            compressed,
            read(self.files.dense),
            request,
            self.task.size.calibration.config(self.seed),
            lambda part: self.tell(DemoProgress(what, part=part)),
        )
        write(calibrated, self.files.calibrated, force=True)
        return calibrated

    def _training(self, start: Path, output: Path, training: Training) -> AbstractContextManager[TrainingApart]:
        """Train a compressed checkpoint for the task, meanwhile."""
        request = self.task.finetuning(start, self.files.data, output, self.files.dense)
        return training_apart(request, training.config(self.seed))

    def _trained(
        self, name: str, training: TrainingApart, output: Path
    ) -> tuple[CompressedCheckpoint, tuple[float, ...]]:
        """What came of it, once it is done, and the metric before and after each epoch."""
        what = f"training: {name}"
        self.tell(DemoProgress(what))
        metrics = []
        for epoch in training.epochs():
            metrics.append(epoch.metric)
            self.tell(DemoProgress(what, epoch))
        result = read_compressed(output)
        return result, (report(result).finetuned[-1].before, *metrics)

    def _telling(self, what: str) -> Callable[[Epoch], None]:
        return lambda epoch: self.tell(DemoProgress(what, epoch))


def draw_data(task: Task[Any], data: Path, seed: int) -> Drawn[Any]:
    """Draw data, and write those to train on to a file.

    Raises:
        BTCompressError: a package that they are drawn from is missing.
        OutputError: the file cannot be written.
    """
    drawn = task.draw(seed)
    with replacing(data) as temporary, temporary.open("wb") as file:
        np.savez(file, x=drawn.x, y=drawn.y)
    return drawn
