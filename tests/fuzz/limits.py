"""What one case may take: time of the processor, and memory."""

import resource
import signal
from contextlib import contextmanager
from pathlib import Path

#: Seconds of the processor that one case may take; the machine may be busy with other things meanwhile.
SECONDS = 5.0
#: Bytes that the code under test is told that it may take.
ALLOWED = 2**30
#: Bytes beyond those of the process that it can take at all.
MOST = 2 * 2**30
#: Bytes that the process may grow by: what is allowed, and something beside it.
GROWTH = ALLOWED + 2**28


class OutOfTime(BaseException):
    """A case took too long; no ``except Exception`` may keep it."""


def _ring(_number, _frame):
    raise OutOfTime(f"more than {SECONDS} s of the processor")


@contextmanager
def within(seconds=SECONDS):
    """Raise :class:`OutOfTime` in what takes longer, again and again where that is not let through."""
    before = signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def capped(most=MOST):
    """Let allocations fail that take the process more than ``most`` bytes beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def peak():
    """The most bytes that the process ever had in memory since it was last forgotten."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak():
    """Let :func:`peak` begin anew at what the process has in memory now."""
    Path("/proc/self/clear_refs").write_text("5")
