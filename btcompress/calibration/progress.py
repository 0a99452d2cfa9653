"""Do jobs one after another, and say how far they are and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from btcompress.results import CalibrationProgress

OnProgress = Callable[[CalibrationProgress], None]
#: Called by a job with how much of it is done, 0 to 1, and more to show.
Tell = Callable[[float, str], None]

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Job(Generic[Value]):
    """One thing to do to a value.

    Attributes:
        what: is done, in words.
        work: about how much that is, in multiplications; only shares of all jobs matter.
        do: does it to the value that the jobs before it gave.
    """

    what: str
    work: float
    do: Callable[[Value, Tell], Value]


def silent(do: Callable[[Value], Value]) -> Callable[[Value, Tell], Value]:
    """What a job does that tells nothing in between."""
    return lambda value, _: do(value)


def do_jobs(jobs: Sequence[Job[Value]], value: Value, on_progress: OnProgress | None) -> Value:
    """Do jobs in their order.

    The seconds left are the work left at the speed of the work done: an estimate.

    Args:
        jobs: what to do.
        value: what to begin with.
        on_progress: called at the beginning and the end of each job, and whenever it tells more.

    Returns:
        What the last job gave.
    """
    began = time.monotonic()
    total = sum(job.work for job in jobs)
    done = 0.0
    for index, job in enumerate(jobs):

        def tell(share: float, state: str = "", index: int = index, job: Job[Value] = job, done: float = done) -> None:
            if on_progress is None:
                return
            now = done + share * job.work
            left = (time.monotonic() - began) * (total - now) / now if now else None
            on_progress(CalibrationProgress(job.what, index, len(jobs), share, left, state))

        tell(0.0)
        value = job.do(value, tell)
        tell(1.0)
        done += job.work
    return value
