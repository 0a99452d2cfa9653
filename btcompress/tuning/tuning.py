"""Measure in which way each block-term layer of a model is the fastest, on this machine, and pin that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from btcompress.benching import turns
from btcompress.benching.machine import without_collection
from btcompress.benching.turns import Timed, take_turns
from btcompress.checkpoint.atomic import check_target, claimed
from btcompress.errors import BTCompressError
from btcompress.memory import available
from btcompress.models import uncompiled
from btcompress.nn.choice import Place, choose_way
from btcompress.nn.running import Running
from btcompress.nn.ways import Task, Way, possible_ways
from btcompress.text import listed
from btcompress.tuning.calls import Call, as_before
from btcompress.tuning.pins import Pin, kept_on_failure, told, tunable, write

#: By how much another way has to be faster than the one that would be chosen without measuring.
_CLEARLY = 1.05
#: Ways that take so many times as long as the fastest, in the better of two calls, are not timed further.
_HOPELESS = 3.0
#: Dense matrices at a time of each that is formed: itself, as it is laid out for kernels, and their gradients.
_COPIES = 4


@dataclass(frozen=True, slots=True)
class MeasuredWays:
    """How long each way to run a layer took.

    Attributes:
        pin: where, and the way that was pinned.
        chosen: the way that is chosen where nothing is measured or pinned.
        seconds: by way, of a call of the whole LSTM or cell with this layer run so: the median of all turns, or of
            what was far slower than another way the better of two calls. Ways whose dense matrices memory does not hold
            are missing.
    """

    pin: Pin
    chosen: Way
    seconds: Mapping[Way, float]

    def __str__(self) -> str:
        times = "; ".join(f"{way} {1e3 * took:.3g} ms" for way, took in sorted(self.seconds.items(), key=_took))
        return f"{self.pin.where}: {self.pin.way} ({times})"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What :func:`tune` measured and pinned; printed, a line for each layer and size of its calls.

    Attributes:
        measured: in the order in which the model called its layers.
    """

    measured: tuple[MeasuredWays, ...]

    @property
    def pins(self) -> tuple[Pin, ...]:
        """What was pinned."""
        return tuple(each.pin for each in self.measured)

    def __str__(self) -> str:
        return "\n".join(map(str, self.measured))


def tune(
    module: nn.Module,
    example: Tensor | PackedSequence | tuple[Any, ...],
    *,
    trains: bool = False,
    seconds: float = 1.0,
    file: str | PathLike[str] | None = None,
    force: bool = False,
) -> Tuning:
    """Measure on this machine which way to run each block-term layer is the fastest, and pin it.

    The model runs once on the example, as it stands. At each call of a :class:`btcompress.BTLSTM`, a
    :class:`btcompress.BTGRU`, a :class:`btcompress.BTRNN` or a cell of these with as many steps and sequences as
    were not met before, all ways to run its layers that its method leaves take turns on the inputs at hand, layer
    by layer. The fastest is pinned for calls of that size; the way that would be chosen anyway is pinned unless
    another is 5 % faster. Pins are copied and pickled with their module, are no part of its state dict, and stay
    until ``choice.unpin()`` of the block-term module, or until others take their place.

    Parameters, buffers, gradients and random numbers are afterwards as they were; what else the model keeps from call
    to call is its own affair. What is measured depends on the machine, and so do the ways that are pinned. They differ
    by rounding: what is to repeat elsewhere needs the same pins, from a file.

    Args:
        module: holds block-term recurrent layers or cells, or is one.
        example: what it is called with, as it will be; a tuple for several arguments.
        trains: measure forward and backward, rather than a call that asks for no gradients.
        seconds: for all ways of one layer at one size; each is called several times, however long it takes.
        file: write the pins there as well, for :func:`btcompress.pin`.
        force: replace a file that is there.

    Returns:
        What was measured and pinned.

    Raises:
        BTCompressError: the model has no block-term recurrent layer or cell, or calls none on the example; gradients
            are to be asked for and none of them has any; it is neither on a CPU nor on a CUDA device; ``seconds`` is
            out of range. Nothing is pinned then.
        OutputError: the file cannot be written.
    """
    modules = tunable(module)
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise BTCompressError(f"seconds must be a number above 0, but {seconds!r:.30} was given.")
    arguments = example if isinstance(example, tuple) and not isinstance(example, PackedSequence) else (example,)
    tuner = _Tuner(modules, seconds)
    with ExitStack() as stack:
        if file is not None:
            check_target(Path(file), force=force)
            stack.enter_context(claimed(Path(file)))
        for each in (kept_on_failure(modules), as_before(module), tuner.hooked(), uncompiled()):
            stack.enter_context(each)
        with torch.set_grad_enabled(trains):
            module(*arguments)
        tuning = Tuning(tuple(tuner.measured))
        _check_measured(tuning, modules, trains=trains)
        if file is not None:
            write(tuning.pins, Path(file))
    return tuning


class _Tuner:
    """Measures the calls of modules as they happen, so that each runs under what the model runs it under.

    Args:
        modules: by name.
        seconds: for all ways of one layer at one size.
    """

    def __init__(self, modules: Mapping[str, Running], seconds: float) -> None:
        self.modules, self.seconds = modules, seconds
        self.measured: list[MeasuredWays] = []
        self._met: set[Any] = set()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """See every call of the modules inside."""
        with ExitStack() as stack:
            for name, module in self.modules.items():
                stack.callback(module.register_forward_hook(self._hook(name, module), with_kwargs=True).remove)
            yield

    def _hook(self, name: str, module: Running) -> Any:  # noqa: ANN401
        def see(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> None:
            # A copy of the module has the hook too.
            if called is module:
                self._see(name, Call(module, args, kwargs))

        return see

    def _see(self, name: str, call: Call) -> None:
        """Measure the layers of a call, unless one like it was."""
        if (name, call.key) in self._met:
            return
        if call.device.type not in ("cpu", "cuda"):
            raise BTCompressError(f"on {str(call.device)!r:.40} nothing is measured. Use cpu, or a CUDA device.")
        self._met.add((name, call.key))
        with without_collection():
            for place, task in call.tasks().items():
                if (name, place) not in self._met and task.rows:
                    self._met.add((name, place))
                    self.measured.append(self._measure(name, call, place, task))
        call.module.drop_formed()

    def _measure(self, name: str, call: Call, place: Place, task: Task) -> MeasuredWays:
        """Time all ways at a place, and pin the best."""
        choice = call.module.choice
        chosen = choose_way(task, choice.method)
        ways = [way for way in possible_ways(task, choice.method) if way == chosen or _fits(way, task, call)]
        took = _timed(call, place, ways, self.seconds)
        call.module.drop_formed()
        best = min(ways, key=took.__getitem__)
        best = chosen if took[chosen] <= _CLEARLY * took[best] else best
        choice.pin(best, place)
        return MeasuredWays(Pin(name, *place, best), chosen, took)


def _timed(call: Call, place: Place, ways: Sequence[Way], seconds: float) -> dict[Way, float]:
    """Seconds of a call with each of the ways."""
    device = str(call.device)
    calls = {str(way): Timed(call.run, call.pinning(way, place)) for way in ways}
    took = {name: min(turns.seconds_of(timed, 1, device) for _ in range(2)) for name, timed in calls.items()}
    hopeful = {name: timed for name, timed in calls.items() if took[name] <= _HOPELESS * min(took.values())}
    if len(hopeful) > 1:
        took |= {name: own.median for name, own in take_turns(hopeful, seconds, device).items()}
    return {way: took[str(way)] for way in ways}


def _fits(way: Way, task: Task, call: Call) -> bool:
    """Whether memory holds the dense matrices that a way forms."""
    formed = [(shape, way.inputs) for shape in task.w] + [(shape, way.recurrent) for shape in task.recurrent]
    numbers = sum(shape.dense_params for shape, operand in formed if shape is not None and operand == "dense")
    room = available() if task.cpu else torch.cuda.mem_get_info(call.device)[0]
    return _COPIES * numbers * call.itemsize <= room


def _check_measured(tuning: Tuning, modules: Mapping[str, Running], *, trains: bool) -> None:
    """Refuse a tuning of nothing."""
    if not tuning.measured:
        there = listed([told(name) for name in modules])
        raise BTCompressError(
            f"nothing was measured: on the example the model called none of {there}, or without sequences. A module is "
            "seen where it is called itself, not where its forward is called. Give an example that reaches one."
        )
    if trains and not any(each.pin.trains for each in tuning.measured):
        raise BTCompressError(
            "trains=True measures a backward pass, but on the example no block-term module is asked for gradients. "
            "Let its parameters require gradients, or leave trains out."
        )


def _took(item: tuple[Way, float]) -> float:
    return item[1]
