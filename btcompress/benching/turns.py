"""Time several calls against one another in one process, taking turns, so that a slow hour slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch

#: What calls are named by.
Name = TypeVar("Name", bound=str)

#: A turn of short calls is several of them, which take so many seconds together, but not more than so many calls: a
#: layer that streams finds its weights where its last call left them, and a clock has nothing to say of microseconds.
_TURN_SECONDS, _MOST_CALLS = 2e-3, 50
#: Turns of each call, however long they take and however much time there is.
_LEAST_TURNS, _MOST_TURNS = 8, 1000


@dataclass(frozen=True, slots=True)
class Timed:
    """A call to be timed.

    Attributes:
        call: what to time.
        around: entered before the clock runs, and left after it stopped.
    """

    call: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(slots=True)
class Turns:
    """What the turns of one call took.

    Attributes:
        n_calls: one after another in each turn.
        seconds: of a call in each turn, in order.
    """

    n_calls: int = 1
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all turns."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third."""
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def drift(self) -> float:
        """The difference between the medians of the first and of the second half, over that of all turns."""
        half = len(self.seconds) // 2
        return abs(statistics.median(self.seconds[:half]) - statistics.median(self.seconds[half:])) / self.median


def take_turns(
    calls: Mapping[Name, Timed],
    seconds: float,
    device: str,
    on_progress: Callable[[float], None] | None = None,
) -> dict[Name, Turns]:
    """Run calls in turns for so long, though each for several turns.

    Every round goes in another order, always the same ones, so that no call always finds what the same other one left
    in the caches; and none follows itself, which would find what it left itself.

    Args:
        calls: by name; each is to have run before.
        seconds: for all turns together.
        device: a GPU is waited for.
        on_progress: told after each round how much of the time is over, 0 to 1.
    """
    turns = {name: Turns(_calls_in_a_turn(timed, device)) for name, timed in calls.items()}
    orders = _orders(list(calls))
    began, n_rounds = time.perf_counter(), 0
    while n_rounds < _LEAST_TURNS or (n_rounds < _MOST_TURNS and time.perf_counter() - began < seconds):
        for name in next(orders):
            own = turns[name]
            own.seconds.append(seconds_of(calls[name], own.n_calls, device))
        n_rounds += 1
        if on_progress is not None:
            share = max((time.perf_counter() - began) / seconds, n_rounds / _MOST_TURNS)
            on_progress(min(share, n_rounds / _LEAST_TURNS, 1.0))
    return turns


def median_seconds(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: str, warm_up: int = 2
) -> dict[str, float]:
    """Median wall-clock seconds of each call; each runs ``warm_up`` times first, then all take turns, a call at a time.

    Args:
        calls: by name.
        repeats: turns of each.
        device: a GPU is waited for.
        warm_up: calls of each before.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(seconds_of(Timed(call), 1, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _orders(names: Sequence[Name]) -> Iterator[list[Name]]:
    generator = torch.Generator().manual_seed(0)
    last = None
    while True:
        order = [names[n] for n in torch.randperm(len(names), generator=generator).tolist()]
        if order[0] == last:
            order = [*order[1:], order[0]]
        last = order[-1]
        yield order


def _calls_in_a_turn(timed: Timed, device: str) -> int:
    seconds = min(seconds_of(timed, 1, device) for _ in range(2))
    return max(1, min(_MOST_CALLS, round(_TURN_SECONDS / seconds)))


def seconds_of(timed: Timed, n_calls: int, device: str) -> float:
    """Wall-clock seconds of one of so many calls, made one after another."""
    call = timed.call
    with timed.around():
        _wait(device)
        began = time.perf_counter()
        for _ in range(n_calls):
            call()
        _wait(device)
        return (time.perf_counter() - began) / n_calls


def _wait(device: str) -> None:
    """Until a GPU has done what it was given; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize(device)
