"""Standard output and standard error as they may be: closed, full, without a reader, or short of characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast

_CLOSED = OSError(errno.EBADF, "it is closed")


class _Guarded:
    """A standard stream that never fails: it takes what cannot be written, and remembers why it could not.

    Whoever writes to it in the middle of long work, code of a user's own included, goes on working; whether the words
    arrived is asked at the end.

    Attributes:
        failure: why something could not be written; None where all was.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # None is what Python makes of a descriptor that is closed.
        is_open = stream is not None and not stream.closed
        self.failure: OSError | None = None if is_open else _CLOSED
        self._stream = stream if stream is not None and is_open else io.StringIO()
        self._broken = not is_open
        if isinstance(stream, io.TextIOWrapper) and is_open:
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        if not self._broken:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if not self._broken:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        self.failure, self._broken = error, True
        try:
            descriptor = self._stream.fileno()
        except OSError:
            return  # a stream of no descriptor, which Python does not flush when it ends
        # What is left in the buffers must go somewhere: Python would fail on it when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Let nothing that is written inside to standard output or standard error fail.

    Characters that their encodings lack are written as backslash escapes. Descriptors that are closed lead nowhere
    from now on, so that no file takes their place and catches what a library writes to them.
    """
    _occupy_standard_descriptors()
    out, err = _Guarded(sys.stdout), _Guarded(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        try:
            yield
        finally:
            out.flush()
            err.flush()


def lost_output() -> str | None:
    """Why standard output did not take all that was written, told once; None where it did, or its reader had enough."""
    out = sys.stdout
    if not isinstance(out, _Guarded):
        return None
    out.flush()
    failure, out.failure = out.failure, None
    if failure is None or isinstance(failure, BrokenPipeError):
        return None
    return failure.strerror or str(failure)


def _occupy_standard_descriptors() -> None:
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
