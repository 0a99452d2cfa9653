"""Which of several processes this is, as launchers say it to each before any of them has met the others."""

from __future__ import annotations

import os

#: Where torchrun and accelerate, and the launchers of MPI, give a process its number.
_NUMBERS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def is_first() -> bool:
    """Whether this process is the first of its training, or the only one."""
    return next((os.environ[name] for name in _NUMBERS if name in os.environ), "0") == "0"
