"""Time several calls against one another in one process, taking turns, so that a slow hour slows all alike."""

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


def _wait(device: str) -> None:
    """Until a GPU has done what it was given; a CPU always has."""
    if device != "cpu":
        torch.cuda.synchronize()
