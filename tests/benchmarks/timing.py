"""Time several calls against one another in one process, taking turns, so that a slow hour slows all alike.

What a time is of, the machine and how it computes, is said here too.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from btcompress.benching.turns import median_seconds

__all__ = ["machine", "median_seconds", "seconds_in_turns", "set_tf32", "without_onednn"]

Call = Callable[[], object]


def seconds_in_turns(
    calls: Mapping[str, Call],
    device: str,
    *,
    turns: int,
    seconds: float = 0.0,
    turn: float = 0.0,
    settings: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, list[float]]:
    """Wall-clock seconds of each call; each runs twice first, once if that takes long, then all take turns.

    Args:
        calls: what to time, by name.
        device: whose work is waited for.
        turns: least number of turns.
        seconds: turns are taken for at least so long.
        turn: in its turn a call runs for so long, or once. Where it runs more than once, its first run there does not
            count: it finds the caches filled by the others.
        settings: what calls run in, entered before the clock begins.
    """
    settings = settings or {}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        with settings.get(name, nullcontext)():
            if _seconds(call, device) < 0.5:
                call()
    began, taken = time.perf_counter(), 0
    while taken < turns or time.perf_counter() - began < seconds:
        for name, call in calls.items():
            with settings.get(name, nullcontext)():
                first = _seconds(call, device)
                rest, left = [], turn - first
                while left > 0:
                    rest.append(_seconds(call, device))
                    left -= rest[-1]
                found[name] += rest or [first]
        taken += 1
    return found


@contextmanager
def without_onednn() -> Iterator[None]:
    """Torch's own kernel of the LSTM on a CPU, in place of oneDNN's, which it takes by default."""
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may round factors of float32 to 11 bits, in matrix products and in cuDNN's LSTM alike.

    By torch's default only cuDNN may, which would measure a dense LSTM by other rules than block terms.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def machine(device: str) -> dict[str, object]:
    """What times on a device are of, for a row of results."""
    row = {"device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device != "cpu":
        row |= {"device": torch.cuda.get_device_name(), "tf32": torch.backends.cudnn.allow_tf32}
    return row


def _seconds(call: Call, device: str) -> float:
    """Of one call; a GPU has then done what it was given, as a CPU always has."""
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
