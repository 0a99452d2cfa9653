"""Train any form of a task's model, by files or in memory, so that an interrupted training goes on."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from btcompress.checkpoint import CompressedCheckpoint, read_compressed, write
from btcompress.demo.rivals import Made
from btcompress.demo.task import Task, Training
from btcompress.finetune import finetune
from btcompress.finetune.epoch import OnEpoch
from btcompress.finetune.request import contents_digest
from btcompress.finetune.state import StateFile
from btcompress.models import apply


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model that was trained.

    Attributes:
        model: as it was at its best epoch, on the CPU.
        curve: the metric on the examples held back, before training and after each epoch.
        compressed: the same as a compressed checkpoint, where it is one.
    """

    model: nn.Module
    curve: tuple[float, ...]
    compressed: CompressedCheckpoint | None = None


def train_form(
    task: Task[Any],
    made: Made,
    data: Path,
    training: Training,
    seed: int,
    folder: Path,
    *,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train a model, from the data alone.

    Args:
        task: what it learns.
        made: the model; not changed.
        data: file of ``x`` and ``y``.
        training: how.
        seed: of the split and the order of training.
        folder: that exists and is for this training alone. What it leaves there lets the same call go on where it was
            interrupted, or give the same again once it is done; it is for the caller to remove.
        on_epoch: called after each epoch.

    Raises:
        BTCompressError: what is in the folder is damaged or of another training.
        DivergedError: a loss is no longer a number.
        OutputError: the folder cannot be written to.
    """
    if isinstance(made.model, nn.Module):
        model = copy.deepcopy(made.model)
        about = {"data": contents_digest(data), "seed": seed, **asdict(training)}
        file = StateFile(folder / "trained", about)
        return Trained(model, task.train(model, data, training, seed, file=file, on_epoch=on_epoch))
    return _trained_by_files(task, made.model, data, training, seed, folder, on_epoch)


def applied(task: Task[Any], model: nn.Module | CompressedCheckpoint) -> nn.Module:
    """A model as it is, or a task's with the weights of a checkpoint; torch's generator is left as it was."""
    if isinstance(model, nn.Module):
        return model
    with torch.random.fork_rng(devices=[]):
        return apply(task.model(), model)


def _trained_by_files(
    task: Task[Any],
    compressed: CompressedCheckpoint,
    data: Path,
    training: Training,
    seed: int,
    folder: Path,
    on_epoch: OnEpoch | None,
) -> Trained:
    start, output = folder / "start.safetensors", folder / "trained.safetensors"
    file = StateFile(output)
    interrupted = file.exists()
    if interrupted or not output.exists():
        write(compressed, start, force=True)
        request = task.finetuning(start, data, output)
        finetune(request, training.config(seed), resume=interrupted, on_epoch=on_epoch)
    trained = read_compressed(output)
    rows = [json.loads(line)["metric"] for line in file.metrics.read_text().splitlines()]
    return Trained(applied(task, trained), (trained.history[-1]["before"], *rows), trained)
