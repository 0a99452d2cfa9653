"""Time several calls against one another in one process, taking turns, so that a slow hour slows all alike.

What a time is of, the machine and how it computes, is said here too.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def median_seconds(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: str, warm_up: int = 2
) -> dict[str, float]:
    """Median wall-clock seconds of each call; each runs ``warm_up`` times first, then all take turns."""
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            _wait(device)
            began = time.perf_counter()
            call()
            _wait(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


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


def _wait(device: str) -> None:
    """Until a GPU has done what it was given; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize()
