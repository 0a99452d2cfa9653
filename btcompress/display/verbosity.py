"""How much is told besides results and errors: nothing, progress, or all that a command does; decided here alone."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from rich.console import Console
from rich.text import Text

from btcompress.display.console import line_text, make_error_console
from btcompress.errors import BTCompressError

Verbosity = Literal["quiet", "usual", "verbose"]

_verbosity: ContextVar[Verbosity] = ContextVar("_verbosity", default="usual")
#: The console on which something moves, if there is one: another one would print into it.
_moving: list[Console] = []
_now = time.monotonic


@contextmanager
def telling(verbosity: Verbosity) -> Iterator[None]:
    """Let what is done inside tell so much.

    ``"quiet"``: nothing on stderr but errors. ``"verbose"``: which files are read and written, how long each stage and
    all of it took, and where a user's error arose.
    """
    token, began = _verbosity.set(verbosity), _now()
    handler, log = _Handler(), logging.getLogger("btcompress")
    level = log.level
    if verbosity == "verbose":
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
        tell(f"done in {seconds_text(_now() - began)}")
    except BTCompressError as error:
        tell(*"".join(traceback.format_exception(error)).splitlines())
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        _verbosity.reset(token)


def is_quiet() -> bool:
    """Whether nothing is to be told but errors, and on stdout nothing but what was asked for."""
    return _verbosity.get() == "quiet"


def is_verbose() -> bool:
    """Whether all is to be told that a command does."""
    return _verbosity.get() == "verbose"


def tell(*lines: str) -> None:
    """Print lines on stderr where all is to be told."""
    if is_verbose():
        for line in lines:
            _print(line)


def tell_above(console: Console | None) -> None:
    """Print what is told on this console, which draws something that moves; None: on one of its own again."""
    _moving.clear()
    if console is not None:
        _moving.append(console)


def seconds_text(seconds: float) -> str:
    """How long something took."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.1f} s"


class _Handler(logging.Handler):
    """Shows what rooms log, each line once: many open a file more than once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            _print(text)


def _print(line: str) -> None:
    console = _moving[0] if _moving else make_error_console()
    console.print(Text(line_text(line), "dim"), soft_wrap=True)
