"""The commands that show what factorizing would do: plan and inspect."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from btcompress.cli.options import (
    JSON,
    OUTPUT,
    Bits,
    Container,
    CPRank,
    Force,
    Group,
    JobOptions,
    Matrices,
    Model,
    Strict,
    TuckerRank,
    kinds,
    tucker_rank_of,
)
from btcompress.cli.outcome import show_outcome
from btcompress.cli.reading import opened


def plan_command(
    job: JobOptions,
    save_plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the plan as YAML, to edit and give to factorize --plan.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    json: JSON = False,
) -> None:
    """Show which forms meet a wish at the least loss, what they cost, and the curve of each matrix; fit nothing."""
    from btcompress import compression, display, plan
    from btcompress.checkpoint import check_target, claimed
    from btcompress.errors import BTCompressError

    step = job.step()
    if step.rounds_only:
        raise BTCompressError(
            "--bits alone leaves nothing to plan: the matrices stay dense, all in these bits. Give a wish with it, or "
            "see what comes of it with inspect --bits or factorize --bits --dry-run."
        )
    compression.check_wish(step)
    weights = opened(job.model, step)
    dense = weights.dense
    written = () if save_plan is None else (save_plan,)
    with ExitStack() as stack:
        for file in written:
            check_target(file, force=force, inputs=[*weights.files, *step.files])
            stack.enter_context(claimed(file))
        with display.job_progress() as on_progress:
            priced = compression.priced_plan(weights, step, on_progress=on_progress)
        for file in written:
            plan.save_plan(priced, file, name=dense.source.name, sha256=dense.source.sha256)
    tables, as_json = (
        partial(show, dense, priced) for show in (display.show_priced_plan, display.show_priced_plan_json)
    )
    show_outcome(tables, as_json, *written, json=json)


def inspect(
    model: Model,
    cp_rank: CPRank = None,
    tucker_rank: TuckerRank = None,
    bits: Bits = None,
    group: Group = None,
    matrices: Matrices = "input",
    container: Container = None,
    strict: Strict = False,
    json: JSON = False,
) -> None:
    """Show what a checkpoint holds: its recurrent layers, and what each matrix would cost at these ranks and bits."""
    from btcompress import compression, display
    from btcompress.recipe import FactorizeStep

    step = FactorizeStep(
        cp_rank=cp_rank,
        tucker_rank=None if tucker_rank is None else tucker_rank_of(tucker_rank),
        bits=bits,
        group=group,
        matrices=kinds(matrices),
        container=container,
        strict=strict,
    )
    # A result is shown in its dense form as well: all that it holds.
    dense = compression.Opened(opened(model, step).dense)
    show = display.show_inventory_json if json else display.show_inventory
    show(dense.dense, compression.prepare(dense, step).plan)
