"""Where all that is shown leaves: results on stdout, all else on stderr, and no character that is not visible."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from btcompress.display.streams import lost_output
from btcompress.text import printable, shortened, valid_values

if TYPE_CHECKING:
    from btcompress.finetune import StateFile

#: Columns of output that goes to a file or a pipe, and the fewest that a terminal is taken to have.
_PIPED_WIDTH, _LEAST_WIDTH = 120, 20
#: Characters of a name, and of a sentence with names in it, beyond which only its two ends are shown.
_NAME_LIMIT, _LINE_LIMIT = 120, 2000


class _VisibleConsole(Console):
    """A console that no text can make do anything: what is not visible is escaped, whoever put it there."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, text.split("\n"))), style)


def make_console() -> Console:
    """The console for results, on stdout."""
    console = _VisibleConsole(highlight=False)
    # Not the console's own width: of a terminal that calls itself dumb it does not ask how wide that is.
    console.width = max(shutil.get_terminal_size().columns, _LEAST_WIDTH) if sys.stdout.isatty() else _PIPED_WIDTH
    return console


def table_width(console: Console) -> int:
    """Columns that a table may take: those of a terminal; in a file or a pipe as many as it needs."""
    return console.width if sys.stdout.isatty() else sys.maxsize


def make_error_console() -> Console:
    """The console for all else, on stderr."""
    return _VisibleConsole(stderr=True, highlight=False)


def can_animate(console: Console) -> bool:
    """Whether what was shown on stderr can be drawn anew: on a terminal, and not a dumb one.

    A console that ``FORCE_COLOR`` made take itself for a terminal still writes to a file or a pipe.
    """
    return console.is_interactive and sys.stderr.isatty()


def name_text(name: str) -> str:
    """A name as it is shown: on one line, visible, and with two ends at most."""
    return shortened(printable(name), _NAME_LIMIT)


def line_text(text: str) -> str:
    """A sentence as it is shown: on one line, visible, and not without end."""
    return shortened(printable(text), _LINE_LIMIT)


def show_line(text: str) -> None:
    """Print one line on stdout, which the terminal may fold."""
    make_console().print(Text(printable(text)), soft_wrap=True)


def show_written(path: Path) -> None:
    """Say on stdout where a result lies."""
    show_line(f"Wrote {path}")


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(valid_values(value), indent=2) + "\n")


def show_document(text: str) -> None:
    """Print a whole document on stdout, and nothing of our own around it."""
    sys.stdout.write(text)


def show_error(text: str) -> None:
    """Print one red line on stderr."""
    _show_aside(f"Error: {text}", style="red")


def show_interrupted(state: StateFile | None = None) -> None:
    """Print one line on stderr: what an interrupted command left, and how to go on with a training."""
    if state is None:
        text = "No file is left half written."
    elif state.exists():
        text = f"The last complete state is kept in {state.path}: the same command with --resume goes on from there."
    else:
        text = "There was no complete state yet, so nothing is kept."
    _show_aside(f"Interrupted. {text}")


def show_defect(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print the traceback of a defect on stderr; a hook for :data:`sys.excepthook`."""
    make_error_console().print(Text("".join(traceback.format_exception(kind, error, where))), end="", soft_wrap=True)


@contextmanager
def having_written(*files: Path) -> Iterator[None]:
    """Tell of files that are written by now: what stdout does not take inside, stderr says in one line."""
    yield
    if files and (reason := lost_output()):
        names = ", ".join(map(str, files))
        _show_aside(f"Wrote {names}, but standard output did not take what there is to tell of it ({reason}).")


def _show_aside(text: str, style: str = "") -> None:
    make_error_console().print(Text(line_text(text), style=style), soft_wrap=True)
