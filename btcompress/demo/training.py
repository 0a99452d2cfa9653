"""Train a network by the loop that fine-tunes, and leave it at its best epoch."""

from __future__ import annotations

from typing import Any

from torch import nn

from btcompress.finetune.config import TrainConfig
from btcompress.finetune.data import Data
from btcompress.finetune.epoch import OnEpoch
from btcompress.finetune.loop import Trainer
from btcompress.finetune.state import StateFile
from btcompress.finetune.tasks import Task as Objective
from btcompress.finetune.user import UserNetwork


def train_network(
    model: nn.Module,
    objective: Objective[Any],
    train: Data,
    held: Data,
    config: TrainConfig,
    *,
    file: StateFile | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[float, ...]:
    """Train a network in its place, and leave it at the epoch that is best on the data held back.

    Args:
        model: the network; it ends on the CPU.
        objective: loss and metric.
        train: what to train on.
        held: what chooses the epoch.
        config: how to train.
        file: where the state after each epoch is kept, and gone on from where there is one; it is for the caller to
            remove, once the model is kept. Nothing is kept where left out.
        on_epoch: called after each epoch.

    Returns:
        The metric on the data held back, before training and after each epoch.

    Raises:
        BTCompressError: the state is damaged or of another training.
        DivergedError: a loss is no longer a number.
    """
    trainer = Trainer(UserNetwork(model), objective, train, held, config, loose=True)
    saved = None
    if file is not None and file.exists():
        file, saved = file.load(trainer.outline)
    before, best = trainer.run(file, on_epoch, saved=saved)
    trainer.take(best)
    model.cpu()
    return before, *(row.metric for row in trainer.rows)
