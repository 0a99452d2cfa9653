"""The options that every command has: how much it tells, and how much memory it may take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.environment import is_from, said_by, variable
from btcompress.cli.loading import load_torch
from btcompress.cli.options import EFFORT, OUTPUT

if TYPE_CHECKING:
    from btcompress.display import Verbosity

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        envvar=variable("quiet"),
        help="Tell nothing but errors and, of what was written, the names; what only shows is shown.",
        rich_help_panel=OUTPUT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        envvar=variable("verbose"),
        help="Tell on stderr which files are read and written, how long each part took, and where an error arose.",
        rich_help_panel=OUTPUT,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        envvar=variable("max_memory"),
        help="Most memory to take, such as 8G or 500M: what would take more is refused before it begins. Default: "
        "what the machine has left.",
        show_default=False,
        rich_help_panel=EFFORT,
    ),
]


def with_common_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with ``--quiet``, ``--verbose`` and ``--max-memory``, which hold for all that it does."""

    @wraps(command)
    def limited_command(
        context: typer.Context,
        *,
        quiet: bool,  # noqa: ARG001 - the context says as well whether it was given
        verbose: bool,  # noqa: ARG001
        max_memory: str | None,
        **options: object,
    ) -> None:
        from btcompress.display import telling
        from btcompress.memory import limited

        with telling(_verbosity(context)), limited(None if max_memory is None else _n_bytes(context, max_memory)):
            if is_from(context, "device", "environment"):
                _check_device(str(options["device"]))
            command(**options)

    own = {"quiet": (Quiet, False), "verbose": (Verbose, False), "max_memory": (MaxMemory, None)}
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *inspect.signature(command, eval_str=True).parameters.values(),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in own.items()
        ),
    ]
    # Typer makes the options of a command from its signature.
    limited_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return limited_command


def _verbosity(context: typer.Context) -> Verbosity:
    """What the command line says, behind the command or before it; else what environment variables say."""
    names: tuple[Verbosity, ...] = ("quiet", "verbose")
    for source in ("commandline", "environment"):
        for place in (context, context.find_root()):
            wanted = [name for name in names if place.params.get(name) and is_from(place, name, source)]
            if len(wanted) > 1:
                one, other = (said_by(place, name) for name in wanted)
                raise typer.BadParameter(f"{one} and {other} say the opposite. Give one of them.")
            if wanted:
                return wanted[0]
    return "usual"


def _n_bytes(context: typer.Context, text: str) -> int:
    from btcompress.errors import BTCompressError
    from btcompress.memory import size_of

    try:
        return size_of(text)
    except BTCompressError as error:
        raise typer.BadParameter(f"{said_by(context, 'max_memory')} {error}") from None


def _check_device(device: str) -> None:
    """Refuse a device that an environment variable names in its name; others are refused where they are used."""
    load_torch()
    from btcompress.devices import check_device
    from btcompress.errors import BTCompressError

    try:
        check_device(device)
    except BTCompressError as error:
        raise BTCompressError(f"{variable('device')}: {error}") from None
