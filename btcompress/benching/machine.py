"""The machine that times are of, and how it computes."""

from __future__ import annotations

import gc
import platform
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from btcompress.timings import Machine

#: Seconds within which threads of torch that have no work fall asleep, and more.
_REST = 0.005
_MODEL_NAME = re.compile(r"^model name\s*:\s*(?P<name>\S.*)$", re.MULTILINE)


def machine(device: str, runtimes: Collection[str]) -> Machine:
    """What times on a device are of, now."""
    name = _processor() if device == "cpu" else torch.cuda.get_device_name(device)
    onnxruntime = version("onnxruntime") if "onnx" in runtimes else None
    return Machine(device, name, torch.get_num_threads(), torch.__version__, onnxruntime)


@contextmanager
def in_threads(n_threads: int | None) -> Iterator[None]:
    """Let torch compute in so many threads inside, in all of the process; None leaves their number as it is."""
    before = torch.get_num_threads()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        if n_threads is not None:
            torch.set_num_threads(before)


@contextmanager
def without_collection() -> Iterator[None]:
    """Keep Python's collector of garbage from running inside, which would take time, and free what is not counted."""
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def with_rest(around: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """What is around a turn, and after it a rest, in which torch's threads fall asleep.

    They wait busily for more work first, and would take the processors from another runtime, whose turn it may be.
    """
    with around():
        yield
    time.sleep(_REST)


@contextmanager
def onednn(enabled: bool) -> Iterator[None]:
    """Let torch take oneDNN's kernels inside, or its own."""
    # torch.backends.mkldnn.flags sets more than this, and warns of it on machines without what that is for.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(enabled)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    try:
        found = _MODEL_NAME.search(Path("/proc/cpuinfo").read_text(errors="replace"))
    except OSError:
        found = None
    return found["name"] if found else platform.processor() or platform.machine() or "CPU"
