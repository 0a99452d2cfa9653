"""The training loop: an epoch is a function of the state at its start, the epochs before it and the seed alone.

That is what makes a resumed training end in the bytes of an uninterrupted one: no generator lives across
epochs, so none has to be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from btcompress.checkpoint.precisions import Stored
from btcompress.errors import BTCompressError, DivergedError
from btcompress.finetune.blocks import worst_cancellation
from btcompress.finetune.config import TrainConfig
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.epoch import Epoch, OnEpoch
from btcompress.finetune.networks import Network
from btcompress.finetune.rounding import Rounding
from btcompress.finetune.schedule import Schedule
from btcompress.finetune.state import Outline, Scaler, StateFile, TrainingState
from btcompress.finetune.tasks import Task

#: Epochs draw from seeds this far apart, so that no two trainings of neighbouring seeds share one.
_SEED_STRIDE = 1_000_003
#: Batches that sequences are drawn for together where neighbours share one.
_NEIGHBOURHOOD = 8
#: How many times the best error an epoch may end at without being undone.
_TOLERATED = 1.05


@dataclass(slots=True)
class Best:
    """The best state so far, the one before any training included.

    Attributes:
        metric: on the sequences held back.
        epoch: after which it was reached; 0 for the start.
        tensors: of the network then, on the CPU.
        moved: what was rounded to some of them, as :meth:`btcompress.finetune.rounding.Rounding.state` has it.
    """

    metric: float
    epoch: int
    tensors: dict[str, Tensor]
    moved: dict[str, Tensor] = field(default_factory=dict)


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
        stored: how tensors are stored, by their names in the file; what is trained of these goes through its rounding,
            and has the values that are stored.
        cautious: where tensors are rounded, an epoch after which the metric is worse than the best one is undone, and
            those after it take smaller steps: codes that changed too soon lose what the rounding won.
        neighbours: whether sequences that are near one another in ``train`` share batches more often than others,
            which saves steps where it is sorted by length.
    """

    def __init__(
        self,
        network: Network,
        task: Task[Any],
        train: Data,
        held: Data,
        config: TrainConfig,
        *,
        stored: Mapping[str, Stored] | None = None,
        cautious: bool = False,
        loose: bool = False,
        neighbours: bool = False,
    ) -> None:
        self.neighbours = neighbours
        self.network, self.task, self.train, self.held, self.config = network, task, train, held, config
        self.accelerator = _accelerator(config, loose=loose)
        free = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.dtype = free[0].dtype
        network.to(self.accelerator.device)
        self.rounding = Rounding(network, stored or {})
        self.cautious = cautious and bool(self.rounding)
        plain = {"params": [parameter for parameter in free if not self.rounding.holds(parameter)]}
        groups = [plain, *self.rounding.groups(config.peak, config.weight_decay)]
        self.trained: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=config.peak, weight_decay=config.weight_decay, fused=True)
        self.schedule = Schedule(config, self._n_steps)
        self.rates = self._rates_of(optimizer)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        if task.teacher is not None:
            task.teacher.to(self.accelerator.device)
        self.rows: list[Epoch] = []

    def run(
        self, file: StateFile | None = None, on_epoch: OnEpoch | None = None, *, saved: TrainingState | None = None
    ) -> tuple[float, Best]:
        """Train to the end, keeping the state after each epoch.

        Args:
            file: where the state is kept; nothing is kept where left out.
            on_epoch: called after each epoch, in the main process.
            saved: the state to go on from.

        Returns:
            The metric before training, and the best state.

        Raises:
            DivergedError: the loss is no longer finite.
        """
        if saved is None:
            before = self.measure(self.network)
            best = Best(before, 0, self._tensors(), self._moved())
            self._save(file, before, best)
        else:
            before, best = saved.before, self._restored(saved)
        while not self.is_over(self.rows, before):
            epoch = self._epoch(len(self.rows) + 1)
            if self._better(epoch.metric, best.metric):
                best = Best(epoch.metric, epoch.epoch, self._tensors(), self._moved())
            self.rows.append(epoch)
            if self._is_setback(epoch.metric, best.metric):
                self._go_back(best)
            self.schedule = self._schedule_after(self.rows, before)
            self._save(file, before, best)
            if on_epoch is not None and self.accelerator.is_main_process:
                on_epoch(epoch)
        return before, best

    def take(self, best: Best) -> dict[str, Stored]:
        """Let the network be as it was in the best state; how its tensors are stored that were trained, by name."""
        self.network.load_state_dict(best.tensors)
        self.rounding.load(best.moved)
        return self.rounding.stored()

    def is_over(self, rows: Sequence[Epoch], before: float) -> bool:
        """Whether no epoch follows these: all are done, or none got better for too long and the last ones are done."""
        return len(rows) >= self._schedule_after(rows, before).last_epoch

    @property
    def device(self) -> torch.device:
        """Where network and teacher are."""
        return self.accelerator.device

    @property
    def outline(self) -> Outline:
        """What a state of this training looks like."""
        return Outline(
            self.network.state_dict(), self.trained, self.config.epochs, self._n_steps, self.rounding.state()
        )

    @property
    def state_size(self) -> int:
        """Bytes of a state's tensors: network and what is rounded to it twice, two means of each that is trained."""
        tensors = (*self.network.state_dict().values(), *self.rounding.state().values(), *self.trained)
        return 2 * sum(tensor.nbytes for tensor in tensors)

    def measure(self, network: nn.Module) -> float:
        """The metric of a network on the sequences held back, over all processes.

        Raises:
            BTCompressError: it is not a number.
        """
        metric = self.measure_any(network)
        if not math.isfinite(metric):
            raise BTCompressError(
                f"the {self.task.metric} on the sequences held back is not a number ({metric}). Look for inputs that "
                "are all zero, or out of scale (--scale)."
            )
        return metric

    def measure_any(self, network: nn.Module) -> float:
        """The same, NaN or infinite where it is not a number."""
        network.to(self.accelerator.device).eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for rows in torch.arange(len(self.held)).split(self.config.batch_size):
                own, share = self._own(rows)
                batch = self._batch(self.held, own)
                parts = self.task.measure(network(batch.x, batch.lengths, batch.state), batch)
                sums += share * torch.stack([part.cpu().double() for part in parts])
        total, weight = self._reduced(sums).tolist()
        return self.task.finish(total, weight) if math.isfinite(total) and weight else math.nan

    @property
    def _n_steps(self) -> int:
        """Steps in an epoch."""
        return math.ceil(len(self.train) / self.config.batch_size)

    def _schedule_after(self, rows: Sequence[Epoch], before: float) -> Schedule:
        """The schedule as it is after these epochs."""
        found = list(self._best_so_far(rows, before))
        setbacks = sum(self._is_setback(row.metric, best) for row, (best, _) in zip(rows, found, strict=True))
        return Schedule.of(self.config, self._n_steps, (epoch for _, epoch in found), setbacks)

    def _rates_of(self, optimizer: torch.optim.Optimizer, done: int = 0) -> LambdaLR:
        """The learning rate of each step, from where so many are done."""
        return LambdaLR(optimizer, lambda step: self.schedule.share(step), last_epoch=done - 1)

    def _epoch(self, number: int) -> Epoch:
        began = time.monotonic()
        seed = (self.config.seed + _SEED_STRIDE * number) % 2**64
        set_seed(seed % 2**32, device_specific=True)
        self.model.train()
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in self._batches(torch.Generator().manual_seed(seed)):
            sums += self._step(rows, number)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.trained):
            raise _diverged(number, "a tensor")
        total, weight = sums.tolist()
        metric = self.measure(self.network)
        seconds = max(time.monotonic() - began, time.get_clock_info("monotonic").resolution)
        return Epoch(
            number,
            self.schedule.last_epoch,
            total / weight,
            metric,
            float(self.rates.get_last_lr()[0]),
            worst_cancellation(self.network),
            seconds,
            len(self.train) / seconds,
        )

    def _batches(self, generator: torch.Generator) -> list[Tensor]:
        """The sequences of each step of an epoch, in random order."""
        order, size = torch.randperm(len(self.train), generator=generator), self.config.batch_size
        if not self.neighbours:
            return list(order.split(size))
        batches = [rows for some in order.split(_NEIGHBOURHOOD * size) for rows in some.sort().values.split(size)]
        return [batches[n] for n in torch.randperm(len(batches), generator=generator).tolist()]

    def _step(self, rows: Tensor, number: int) -> Tensor:
        """One step on a batch; the sums of its loss and its weight over all processes."""
        sums = torch.zeros(2, dtype=torch.float64)
        parts = [part for part in rows.tensor_split(self.config.accumulate) if len(part)]
        for position, part in enumerate(parts):
            own, share = self._own(part)
            batch = self._batch(self.train, own)
            last = position == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                total, weight = self.task.loss(self.model(batch.x, batch.lengths, batch.state), batch)
                self.accelerator.backward(share * total)
            sums += share * torch.stack([total.detach().cpu().double(), weight.cpu().double()])
        sums = self._reduced(sums)
        total, weight = sums.tolist()
        if not math.isfinite(total) or not weight:
            raise _diverged(number, f"the loss (sum {total}, weight {weight})")
        self.rounding.take_gradients()
        # Gradients arrive as the mean over processes of gradients of sums.
        for parameter in self.trained:
            if parameter.grad is not None:
                parameter.grad.mul_(self.accelerator.num_processes / weight)
        self.accelerator.clip_grad_norm_(self.trained, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.rounding.put()
        self.rates.step()
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

    def _is_setback(self, metric: float, best: float) -> bool:
        """Whether an epoch is to be undone, as the metric after it is so much worse than the best so far."""
        if not self.cautious:
            return False
        return metric < best / _TOLERATED if self.task.higher_is_better else metric > best * _TOLERATED

    def _go_back(self, best: Best) -> None:
        """Go on from the best state, as if the optimizer had seen nothing."""
        self.take(best)
        self.optimizer.optimizer.state.clear()

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def _moved(self) -> dict[str, Tensor]:
        return {name: tensor.cpu().clone() for name, tensor in self.rounding.state().items()}

    def _best_of(self, rows: Sequence[Epoch], before: float) -> tuple[float, int]:
        """The best metric of these epochs and the epoch after which it was reached, 0 for the start."""
        return [(before, 0), *self._best_so_far(rows, before)][-1]

    def _best_so_far(self, rows: Sequence[Epoch], before: float) -> Iterator[tuple[float, int]]:
        """The same after each of these epochs."""
        best = (before, 0)
        for row in rows:
            if self._better(row.metric, best[0]):
                best = (row.metric, row.epoch)
            yield best

    def _save(self, file: StateFile | None, before: float, best: Best) -> None:
        if file is not None and self.accelerator.is_main_process:
            scaler = None
            if self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled():
                known = self.accelerator.scaler.state_dict()
                scaler = Scaler(float(known["scale"]), int(known["_growth_tracker"]))
            optimizer = self.optimizer.state_dict()["state"]
            moved = self._moved(), best.moved
            file.save(TrainingState(self.rows, before, self._tensors(), best.tensors, optimizer, scaler, *moved))
        self.accelerator.wait_for_everyone()

    def _restored(self, saved: TrainingState) -> Best:
        """Go on from this state; the best one so far."""
        self.network.load_state_dict(dict(saved.network))
        self.rounding.load(saved.moved)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved.optimizer, "param_groups": groups})
        self.rows = list(saved.rows)
        # The rate of the next step was set at the end of the last epoch, before what that came to changed the schedule.
        self.schedule = self._schedule_after(self.rows[:-1], saved.before)
        self.rates = self._rates_of(self.optimizer.optimizer, len(self.rows) * self._n_steps)
        self.schedule = self._schedule_after(self.rows, saved.before)
        if saved.scaler is not None and self.accelerator.scaler is not None:
            learned = {"scale": saved.scaler.scale, "_growth_tracker": saved.scaler.growth}
            self.accelerator.scaler.load_state_dict({**self.accelerator.scaler.state_dict(), **learned})
        return Best(*self._best_of(self.rows, saved.before), dict(saved.best), dict(saved.best_moved))


def _diverged(number: int, what: str) -> DivergedError:
    return DivergedError(
        f"training diverged in epoch {number}: {what} is no longer a number. Lower --lr or --clip, and look at the "
        "scale of the inputs (--scale)."
    )


def _accelerator(config: TrainConfig, *, loose: bool) -> Accelerator:
    """Where and in which precision to train, whatever this process trained before."""
    if is_initialized():
        # accelerate keeps to a process's first settings: it refuses another precision, and never leaves the CPU again.
        state = AcceleratorState()
        if state.num_processes == 1 and (state.mixed_precision, state._cpu) != (config.precision, config.cpu):
            AcceleratorState._reset_state(reset_partial_state=True)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=loose)]
    return Accelerator(cpu=config.cpu, mixed_precision=config.precision, kwargs_handlers=handlers)
