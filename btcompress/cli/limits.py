"""The option that every command has: how much memory it may take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Annotated

import typer

from btcompress.cli.options import EFFORT

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?P<unit>[KMGT]?)B?", re.IGNORECASE)

MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory to take, such as 8G or 500M: what would take more is refused before it begins. Default: "
        "what the machine has left.",
        show_default=False,
        rich_help_panel=EFFORT,
    ),
]


def with_memory_limit(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``--max-memory``, which holds for all that it does."""

    @wraps(command)
    def limited_command(*args: object, max_memory: str | None = None, **options: object) -> None:
        from btcompress.memory import limited

        with limited(None if max_memory is None else n_bytes(max_memory)):
            command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("max_memory", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=MaxMemory)
    # Typer makes the options of a command from its signature.
    limited_command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    return limited_command


def n_bytes(text: str) -> int:
    """Bytes from a number with or without a unit: K, M, G or T, powers of 1,000."""
    match = _SIZE.fullmatch(text.strip())
    value = 0 if match is None else int(float(match["number"]) * _UNITS[match["unit"].upper()])
    if value < 1:
        raise typer.BadParameter(f"--max-memory {text!r} is not a size such as 8G, 500M or a number of bytes.")
    return value
