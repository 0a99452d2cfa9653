"""The option that every command has: how much memory it may take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated

import typer

from btcompress.cli.options import EFFORT

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

        with limited(None if max_memory is None else _n_bytes(max_memory)):
            command(*args, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("max_memory", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=MaxMemory)
    # Typer makes the options of a command from its signature.
    limited_command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    return limited_command


def _n_bytes(text: str) -> int:
    from btcompress.errors import BTCompressError
    from btcompress.memory import size_of

    try:
        return size_of(text)
    except BTCompressError as error:
        raise typer.BadParameter(f"--max-memory {error}") from None
