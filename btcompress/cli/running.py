"""The command that does what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from btcompress.cli.options import JSON, Force
from btcompress.cli.reports import show_result


def run(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="YAML that --save-recipe wrote, or you did.", show_default=False),
    ],
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Let it run code: the modules that it names for data, networks and losses of your own.",
        ),
    ] = False,
    force: Force = False,
    json: JSON = False,
) -> None:
    """Do the steps of a recipe, each on the result of the one before; what was interrupted goes on where it was."""
    from btcompress import display, reporting, running
    from btcompress.recipe import read_recipe

    job = read_recipe(recipe, allow_code=allow_code)
    with display.job_progress() as on_progress:
        compressed = running.run(job, force=force, on_progress=on_progress)
    told = reporting.report(compressed, bytes_after=job.output.stat().st_size)
    show_result(told, *job.outputs, json=json)
