"""The command line: parse, call, show."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from btcompress.cli.factorizing import factorize
from btcompress.cli.limits import with_memory_limit
from btcompress.cli.planning import inspect, plan_command
from btcompress.cli.reports import report
from btcompress.cli.training import demo, finetune
from btcompress.errors import BTCompressError

__all__ = ["app", "main"]

app = typer.Typer(
    name="btcompress",
    help="Compress trained LSTMs: write their weight matrices in block-term form.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(with_memory_limit(factorize))
app.command(name="plan")(with_memory_limit(plan_command))
app.command()(with_memory_limit(inspect))
app.command()(with_memory_limit(report))
app.command()(with_memory_limit(finetune))
app.command()(with_memory_limit(demo))


def _version(wanted: bool) -> None:
    if wanted:
        from btcompress import __version__

        typer.echo(f"btcompress {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; a user's error is one red line and exit code 2."""
    try:
        app()
    except BTCompressError as error:
        from btcompress.display import show_error

        show_error(str(error))
        sys.exit(2)
