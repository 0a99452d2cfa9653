"""What a command shows in the end: one object as JSON, or tables, and which files were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def show_outcome(tables: Callable[[], None], as_json: Callable[[], None], *written: Path, json: bool) -> None:
    """Show one of both, and behind tables the files that were written.

    A quiet command that wrote files says so and no more: its result is in them.
    """
    from btcompress import display

    with display.having_written(*written):
        if json:
            as_json()
            return
        if not (written and display.is_quiet()):
            tables()
        for file in written:
            display.show_written(file)
