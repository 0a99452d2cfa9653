"""The command that factorizes a checkpoint, and calibrates the result where there are sample inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.options import (
    EFFORT,
    INPUTS,
    JSON,
    OUTPUT,
    SMALL,
    TAKE,
    CPRank,
    Force,
    JobOptions,
    SaveRecipe,
    TuckerRank,
    tucker_rank_of,
)
from btcompress.cli.outcome import show_outcome
from btcompress.cli.reading import opened
from btcompress.cli.reports import show_result
from btcompress.cli.targets import beside

if TYPE_CHECKING:
    from btcompress.recipe import FactorizeStep


@dataclass(frozen=True, slots=True)
class FitChoices:
    """Options of factorize alone."""

    allow_growth: Annotated[
        bool,
        typer.Option("--allow-growth", help="Also factorize a matrix that this makes larger.", rich_help_panel=TAKE),
    ] = False
    cp_rank: CPRank = None
    tucker_rank: TuckerRank = None
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Do as this plan says, which btcompress plan --save-plan wrote.",
            show_default=False,
            rich_help_panel=SMALL,
        ),
    ] = None
    calibration_epochs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Passes over the sample inputs that train all layers of an LSTM, GRU or RNN together, once they are "
            "fitted to them; each of several layers is trained by itself before, with half as many. 0: none.",
            rich_help_panel=INPUTS,
        ),
    ] = 10
    calibration_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate at its peak while calibrating. Default: 0.003, and less where the fit to the inputs is "
            "near already.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None
    restarts: Annotated[
        int,
        typer.Option(min=0, help="Further random starts of each fit; the best is kept.", rich_help_panel=EFFORT),
    ] = 0
    max_sweeps: Annotated[
        int, typer.Option(min=0, help="Most joint least-squares sweeps of a fit.", rich_help_panel=EFFORT)
    ] = 100

    def step(self, job: JobOptions) -> FactorizeStep:
        """The job with these choices."""
        same = ("allow_growth", "cp_rank", "plan", "calibration_epochs", "calibration_lr", "restarts", "max_sweeps")
        rank = None if self.tucker_rank is None else tucker_rank_of(self.tucker_rank)
        return job.step(tucker_rank=rank, **{name: getattr(self, name) for name in same})


def factorize(
    job: JobOptions,
    choices: FitChoices,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result file. Default: MODEL with .bt.safetensors for its ending.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show mode sizes, bits, parameters and bytes; fit and write nothing.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    save_recipe: SaveRecipe = None,
    json: JSON = False,
) -> None:
    """Write matrices of a checkpoint in block-term form, in fewer bits, or both: recurrent, and linear if asked to."""
    from btcompress import compression, display, reporting
    from btcompress.checkpoint import check_target

    step = choices.step(job)
    weights = opened(job.model, step)
    target = output or _beside(job.model, weights.dense.source.name)
    if save_recipe is not None:
        from btcompress.recipe import Recipe
        from btcompress.recipe import save_recipe as save

        check_target(save_recipe, force=force, inputs=[*weights.files, *step.files])
        save(Recipe(job.model, target, (step,)), save_recipe)
    with display.job_progress() as on_progress:
        if dry_run:
            prepared = compression.prepare(weights, step, on_progress=on_progress)
        else:
            compressed = compression.compress_to(target, weights, step, force=force, on_progress=on_progress)
    written = () if save_recipe is None else (save_recipe,)
    if dry_run:
        shown = weights.dense, prepared.plan
        tables, as_json = partial(display.show_plan, *shown), partial(display.show_inventory_json, *shown)
        show_outcome(tables, as_json, *written, json=json)
        return
    told = reporting.report(compressed, bytes_after=target.stat().st_size)
    show_result(told, target, *written, json=json)


def _beside(model: Path, name: str) -> Path:
    """The default result file: beside the checkpoint, named after it; ``name`` is that of the one in a folder."""
    # The recorded name of a file is valid Unicode, and its real one need not be.
    return beside(model / name if model.is_dir() else model, ".bt.safetensors")
