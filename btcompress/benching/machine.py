"""The machine that times are of, and how it computes."""

from __future__ import annotations

import gc
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from btcompress.timings import Machine

_MODEL_NAME = re.compile(r"^model name\s*:\s*(?P<name>\S.*)$", re.MULTILINE)


def machine(device: str) -> Machine:
    """What times on a device are of, now."""
    name = _processor() if device == "cpu" else torch.cuda.get_device_name(device)
    return Machine(device, name, torch.get_num_threads(), torch.__version__)


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
