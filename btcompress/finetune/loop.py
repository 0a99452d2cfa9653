"""The training loop: an epoch is a function of the state at its start, the seed and its number alone.

That is what makes a resumed training end in the bytes of an uninterrupted one: no generator lives across
epochs, so none has to be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from btcompress.errors import BTCompressError
from btcompress.finetune.blocks import worst_cancellation
from btcompress.finetune.config import TrainConfig
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.state import StateFolder
from btcompress.finetune.tasks import Task

#: Epochs draw from seeds this far apart, so that no two trainings of neighbouring seeds share one.
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to: a row of the metrics file.

    Attributes:
        epoch: its number, from 1.
        epochs: how many there are at most.
        loss: mean over the epoch.
        metric: on the sequences held back, after it.
        learning_rate: at its end.
        cancellation: the worst of :func:`btcompress.finetune.blocks.cancellation`.
        seconds: it took.
        sequences_per_second: trained on.
    """

    epoch: int
    epochs: int
    loss: float
    metric: float
    learning_rate: float
    cancellation: float
    seconds: float
    sequences_per_second: float


OnEpoch = Callable[[Epoch], None]


@dataclass(slots=True)
class Best:
    """The best state so far, the one before any training included.

    Attributes:
        metric: on the sequences held back.
        epoch: after which it was reached; 0 for the start.
        tensors: of the network then, on the CPU.
    """

    metric: float
    epoch: int
    tensors: dict[str, Tensor]


class Trainer:
    """Trains one network for one task on one split, in one or several processes.

    Each process takes every ``n``-th sequence of a batch. Gradients are of sums, added up over parts and
    processes and divided by the whole batch's weight once: how a batch is spread changes rounding only.

    Args:
        network: what to train; called with inputs and lengths.
        task: loss and metric.
        train: sequences to train on.
        held: sequences to measure on.
        config: how to train.
        loose: parameters may take no part in the result, as in a user's network.
    """

    def __init__(
        self, network: nn.Module, task: Task[Any], train: Data, held: Data, config: TrainConfig, *, loose: bool = False
    ) -> None:
        self.network, self.task, self.train, self.held, self.config = network, task, train, held, config
        self.accelerator = _accelerator(config, loose=loose)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.dtype = trained[0].dtype
        self.trained = trained
        optimizer = torch.optim.AdamW(trained, lr=config.peak, weight_decay=config.weight_decay, fused=True)
        n_steps = config.epochs * math.ceil(len(train) / config.batch_size)
        self.schedule = LambdaLR(optimizer, lambda step: config.share_of_peak(step, n_steps))
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        if task.teacher is not None:
            task.teacher.to(self.accelerator.device)
        self.rows: list[dict[str, Any]] = []

    def run(
        self, folder: StateFolder | None = None, on_epoch: OnEpoch | None = None, *, resume: bool = False
    ) -> tuple[float, Best]:
        """Train to the end, keeping the state after each epoch.

        Args:
            folder: where the state is kept; nothing is kept where left out.
            on_epoch: called after each epoch, in the main process.
            resume: go on from the state kept there.

        Returns:
            The metric before training, and the best state.

        Raises:
            BTCompressError: the loss is no longer finite, or the state kept is of another training.
        """
        if folder is not None and resume:
            first, before, best = self._restore(folder.load())
        else:
            first, before = 1, self.measure(self.network)
            best = Best(before, 0, self._tensors())
            self._save(folder, 0, before, best)
        for number in range(first, self.config.epochs + 1):
            if self.config.patience and number - 1 - best.epoch >= self.config.patience:
                break
            epoch = self._epoch(number)
            if self._better(epoch.metric, best.metric):
                best = Best(epoch.metric, number, self._tensors())
            self.rows.append(asdict(epoch))
            self._save(folder, number, before, best)
            if on_epoch is not None and self.accelerator.is_main_process:
                on_epoch(epoch)
        return before, best

    def measure(self, network: nn.Module) -> float:
        """The metric of a network on the sequences held back, over all processes."""
        network.to(self.accelerator.device).eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for rows in torch.arange(len(self.held)).split(self.config.batch_size):
                own, share = self._own(rows)
                batch = self._batch(self.held, own)
                parts = self.task.measure(network(batch.x, batch.lengths), batch)
                sums += share * torch.stack([part.cpu().double() for part in parts])
        total, weight = self._reduced(sums).tolist()
        if not math.isfinite(total) or not weight:
            raise BTCompressError(
                f"the {self.task.metric} on the sequences held back is not a number (sum {total}, weight {weight}). "
                "Look for inputs that are all zero, or out of scale (--scale)."
            )
        return self.task.finish(total, weight)

    def _epoch(self, number: int) -> Epoch:
        began = time.monotonic()
        seed = self.config.seed + _SEED_STRIDE * number
        set_seed(seed % 2**32, device_specific=True)
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        self.model.train()
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in order.split(self.config.batch_size):
            sums += self._step(rows, number)
        total, weight = sums.tolist()
        metric = self.measure(self.network)
        seconds = time.monotonic() - began
        return Epoch(
            number,
            self.config.epochs,
            total / weight,
            metric,
            float(self.schedule.get_last_lr()[0]),
            worst_cancellation(self.network),
            seconds,
            len(self.train) / seconds,
        )

    def _step(self, rows: Tensor, number: int) -> Tensor:
        """One step on a batch; the sums of its loss and its weight over all processes."""
        sums = torch.zeros(2, dtype=torch.float64)
        parts = [part for part in rows.tensor_split(self.config.accumulate) if len(part)]
        for position, part in enumerate(parts):
            own, share = self._own(part)
            batch = self._batch(self.train, own)
            last = position == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                total, weight = self.task.loss(self.model(batch.x, batch.lengths), batch)
                self.accelerator.backward(share * total)
            sums += share * torch.stack([total.detach().cpu().double(), weight.cpu().double()])
        sums = self._reduced(sums)
        total, weight = sums.tolist()
        if not math.isfinite(total) or not weight:
            raise BTCompressError(
                f"training diverged in epoch {number}: the loss is no longer a number (sum {total}, weight {weight}). "
                "Lower --lr or --clip, and look at the scale of the inputs (--scale)."
            )
        # Gradients arrive as the mean over processes of gradients of sums.
        for parameter in self.trained:
            if parameter.grad is not None:
                parameter.grad.mul_(self.accelerator.num_processes / weight)
        self.accelerator.clip_grad_norm_(self.trained, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return sums

    def _own(self, rows: Tensor) -> tuple[Tensor, float]:
        """This process's share of some rows; one row that counts for nothing where none is left for it."""
        own = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return (own, 1.0) if len(own) else (rows[:1], 0.0)

    def _batch(self, data: Data, rows: Tensor) -> Batch:
        return data.batch(rows).to(self.accelerator.device, self.dtype)

    def _reduced(self, sums: Tensor) -> Tensor:
        """The sums over all processes, on the CPU."""
        if self.accelerator.num_processes == 1:
            return sums
        total: Tensor = self.accelerator.reduce(sums.to(self.accelerator.device), "sum")
        return total.cpu()

    def _better(self, metric: float, best: float) -> bool:
        return metric > best if self.task.higher_is_better else metric < best

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def _save(self, folder: StateFolder | None, epoch: int, before: float, best: Best) -> None:
        if folder is not None and self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "epoch": epoch,
                "before": before,
                "best": {"metric": best.metric, "epoch": best.epoch, "tensors": best.tensors},
                "tensors": self._tensors(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            folder.save(state, self.rows)
        self.accelerator.wait_for_everyone()

    def _restore(self, state: dict[str, Any]) -> tuple[int, float, Best]:
        self.network.load_state_dict(state["tensors"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.rows = state["rows"]
        return state["epoch"] + 1, state["before"], Best(**state["best"])


def _accelerator(config: TrainConfig, *, loose: bool) -> Accelerator:
    """Where and in which precision to train, whatever this process trained before."""
    if is_initialized():
        # accelerate keeps to a process's first settings: it refuses another precision, and never leaves the CPU again.
        state = AcceleratorState()
        if state.num_processes == 1 and (state.mixed_precision, state._cpu) != (config.precision, config.cpu):
            AcceleratorState._reset_state(reset_partial_state=True)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=loose)]
    return Accelerator(cpu=config.cpu, mixed_precision=config.precision, kwargs_handlers=handlers)
