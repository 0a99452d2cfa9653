"""How much memory a job may take, compared with what it will take before anything is formed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from pathlib import Path

import psutil

from btcompress.errors import BTCompressError, MemoryLimitError

#: Where Linux says what a container may take, and takes already; versions 2 and 1 of control groups.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
#: Texts by which torch says that an allocation failed, where it raises no error of its own for that.
_FAILED_ALLOCATIONS = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?P<unit>[KMGT]?)B?", re.IGNORECASE)

_limit: ContextVar[int | None] = ContextVar("_limit", default=None)


@contextmanager
def limited(n_bytes: int | None) -> Iterator[None]:
    """Let what is done inside take at most ``n_bytes``, whatever the machine has; None leaves it to the machine."""
    token = _limit.set(n_bytes)
    try:
        yield
    finally:
        _limit.reset(token)


def limit() -> int | None:
    """The limit set by hand, in bytes; None where it is left to the machine."""
    return _limit.get()


def available() -> int:
    """Bytes that may be taken now: the limit set by hand, or else what the machine and its container have left."""
    n_bytes = limit()
    return _left() if n_bytes is None else n_bytes


def require(n_bytes: int, what: str, advice: str) -> None:
    """Refuse what would not fit; costs nothing, so ask before anything is formed.

    Args:
        n_bytes: what it will take.
        what: would take it, in words, as the beginning of a sentence.
        advice: what to do instead, a sentence.

    Raises:
        MemoryLimitError: there is not so much memory.
    """
    room = available()
    if n_bytes > room:
        why = "are available" if _limit.get() is None else "are allowed (--max-memory)"
        raise MemoryLimitError(
            f"{what} would take {size_text(n_bytes)} of memory, but {size_text(room)} {why}. {advice}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the CPU or on a GPU."""
    texts = isinstance(error, RuntimeError) and any(text in str(error) for text in _FAILED_ALLOCATIONS)
    return isinstance(error, MemoryError) or texts


def size_text(n_bytes: int) -> str:
    """Bytes in the unit that suits them."""
    value = float(min(n_bytes, 10**30))
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def size_of(text: str) -> int:
    """Bytes from a number with or without a unit: k, M, G or T, powers of 1,000; a part of a byte does not count.

    Raises:
        BTCompressError: it is no such size, or below one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    value = 0 if match is None else int(Decimal(match["number"]) * _UNITS[match["unit"].upper()])
    if value < 1:
        raise BTCompressError(f"{text[:40]!r} is not a size such as 8G, 1.5M, 400k or a number of bytes.")
    return value


def _left() -> int:
    left = [psutil.virtual_memory().available]
    for limit, usage in _CGROUPS:
        try:
            left.append(max(int(Path(limit).read_text()) - int(Path(usage).read_text()), 0))
        except (OSError, ValueError):
            continue  # no such limit here: the file is missing, or says "max"
    return min(left)
