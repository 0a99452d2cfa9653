"""What there is beside block terms, trained on the same examples at about as many parameters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from btcompress.demo.rivals import FEWER_UNITS, RIVALS, ROUNDED, Form, Start
from btcompress.demo.task import Task, Training
from btcompress.demo.tensortrain import tensorly_torch
from btcompress.demo.trainforms import train_form
from btcompress.errors import DivergedError
from btcompress.finetune import Epoch
from btcompress.shapes import BlockTermShape

#: How long a rounded model is trained on, and at which share of the dense model's learning rate.
_ROUNDED_EPOCHS, _ROUNDED_SHARE = 4, 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Rival:
    """What came of one form with one start.

    Attributes:
        name: of both.
        n_weights: parameters of ``W``.
        n_bytes: that these take.
        model: as trained; None where its training diverged.
        curve: the task's metric on the examples held back, before training and after each epoch.
    """

    name: str
    n_weights: int
    n_bytes: int
    model: nn.Module | None
    curve: tuple[float, ...]


def check_rivals() -> None:
    """See that nothing is missing that :class:`Comparison` needs.

    Raises:
        BTCompressError: TensorLy-Torch, which computes tensor trains, is missing.
    """
    with tensorly_torch():
        pass


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Trains what there is beside block terms.

    Attributes:
        task: that the models are for.
        dense: the trained dense model; never changed.
        target: shape of the block terms, whose parameters the others come as near to as they can.
        data: file of ``x`` and ``y``; what is needed meanwhile lies beside it.
        seed: of draws and trainings.
        on_epoch: called with the name of a model as its training begins, and after each epoch.
    """

    task: Task[Any]
    dense: nn.Module
    target: BlockTermShape
    data: Path
    seed: int
    on_epoch: Callable[[str, Epoch | None], None]

    def rivals(self) -> Iterator[Rival]:
        """Every form but block terms, from the dense model and from scratch, one trained after another.

        Raises:
            BTCompressError: a package is missing.
            OutputError: the folder of the data cannot be written to.
        """
        for form in RIVALS:
            for start in form.starts:
                yield self._rival(form, start)

    def _rival(self, form: Form, start: Start) -> Rival:
        name = f"{form.name} from scratch" if start == "from scratch" else f"{form.name}, then fine-tuned"
        self.on_epoch(name, None)
        made = form.build(self.task, self.dense, self.target, start, self.seed)

        def on_epoch(epoch: Epoch) -> None:
            self.on_epoch(name, epoch)

        with tempfile.TemporaryDirectory(dir=self.data.parent, prefix=".btcompress-") as folder:
            training = self._training(form, start)
            try:
                trained = train_form(self.task, made, self.data, training, self.seed, Path(folder), on_epoch=on_epoch)
            except DivergedError:
                return Rival(name, made.n_params, made.n_bytes, None, ())
        return Rival(name, made.n_params, made.n_bytes, trained.model, trained.curve)

    def _training(self, form: Form, start: Start) -> Training:
        size = self.task.size
        if form is FEWER_UNITS:  # a dense LSTM, trained as the larger one
            return size.dense
        if form is ROUNDED:  # hardly anything is lost by then, which large steps would undo
            rate = _ROUNDED_SHARE * size.dense.learning_rate
            return replace(size.dense, epochs=min(_ROUNDED_EPOCHS, size.dense.epochs), learning_rate=rate)
        return size.scratch if start == "from scratch" else size.tuning
