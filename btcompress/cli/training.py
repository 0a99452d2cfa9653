"""The command that trains a result on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from btcompress.cli.options import (
    EFFORT,
    INPUTS,
    JSON,
    OUTPUT,
    TEACH,
    Container,
    SaveRecipe,
    Scale,
    Seed,
    Strict,
    scale_of,
)
from btcompress.cli.reports import show_result
from btcompress.errors import INTERRUPTED

if TYPE_CHECKING:
    from btcompress.finetune import FineTuneRequest, TrainConfig


def finetune(
    compressed: Annotated[
        Path, typer.Argument(metavar="COMPRESSED", help="The result file to start from.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE|MODULE:FACTORY",
            help="Sequences: .npz or .safetensors with x (N, T, I) and maybe y and lengths, .npy with x alone, or a "
            "function that gives a Dataset or DataLoader.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The result file to write.", show_default=False, rich_help_panel=OUTPUT),
    ],
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="The dense checkpoint, to learn from.", show_default=False, rich_help_panel=TEACH
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Train this recurrent layer alone, on its inputs, to give the teacher's hidden states.",
            rich_help_panel=TEACH,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY", help="Function of your own that builds the dense network.", rich_help_panel=TEACH
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Loss of your own: of outputs and y, a mean.", rich_help_panel=TEACH
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="Folder in which your own modules lie.", show_default=False, rich_help_panel=TEACH),
    ] = None,
    container: Container = None,
    strict: Strict = False,
    val: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|MODULE:FACTORY", help="Sequences to measure on.", show_default=False, rich_help_panel=INPUTS
        ),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Without --val: share of the sequences to hold back.", rich_help_panel=INPUTS)
    ] = 0.1,
    scale: Scale = "1",
    epochs: Annotated[int, typer.Option(help="Passes over the sequences at most.", rich_help_panel=EFFORT)] = 20,
    batch_size: Annotated[
        int, typer.Option(help="Sequences in a step, of all processes together.", rich_help_panel=EFFORT)
    ] = 32,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate at its peak. Default: 0.01, with --model 0.001; where the start was calibrated or "
            "fine-tuned before, 0.001 for hidden states and 0.003 for labels.",
            show_default=False,
            rich_help_panel=EFFORT,
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.", rich_help_panel=EFFORT)] = 0.0,
    warmup: Annotated[
        float, typer.Option(help="Share of all steps over which the learning rate rises.", rich_help_panel=EFFORT)
    ] = 0.05,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.", rich_help_panel=EFFORT)] = 1.0,
    patience: Annotated[
        int,
        typer.Option(
            help="After so many epochs without a better metric let the learning rate fall to 0 over as many more, and "
            "stop; 0: never.",
            rich_help_panel=EFFORT,
        ),
    ] = 10,
    accumulate: Annotated[
        int, typer.Option(help="Parts into which each batch is split to save memory.", rich_help_panel=EFFORT)
    ] = 1,
    precision: Annotated[
        Literal["no", "fp16", "bf16"], typer.Option(help="Mixed precision.", rich_help_panel=EFFORT)
    ] = "no",
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Tensors to leave as they are; * and ? match. Repeatable.", rich_help_panel=TEACH
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's scores.", rich_help_panel=TEACH)] = 2.0,
    distill: Annotated[
        float, typer.Option(help="With labels and a teacher: share of the teacher in the loss.", rich_help_panel=TEACH)
    ] = 0.5,
    seed: Seed = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.", rich_help_panel=EFFORT)] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for TensorBoard's curves, one for each result.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted training.", rich_help_panel=OUTPUT)
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            "-f",
            help="Replace the result file, and start over what was interrupted.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    save_recipe: SaveRecipe = None,
    json: JSON = False,
) -> None:
    """Train a compressed checkpoint on, to win back what factorizing lost."""
    from btcompress import display, reporting
    from btcompress import finetune as room

    request = room.FineTuneRequest(
        compressed,
        data,
        output,
        teacher,
        layer,
        val,
        val_fraction,
        scale_of(scale),
        model,
        loss,
        path,
        container,
        strict,
        tensorboard,
    )
    config = room.TrainConfig(
        epochs,
        batch_size,
        lr,
        weight_decay,
        warmup,
        clip,
        patience,
        accumulate,
        precision,
        tuple(freeze or ()),
        temperature,
        distill,
        seed,
        cpu,
    )
    if save_recipe is not None:
        _save_recipe(save_recipe, request, config, force=force)
    try:
        with display.finetune_progress() as on_epoch:
            result = room.finetune(request, config, force=force, resume=resume, on_epoch=on_epoch)
    except KeyboardInterrupt:
        # Of several processes, which are all interrupted at once, the first one speaks.
        if room.is_first():
            display.show_interrupted(room.StateFile(output))
        raise typer.Exit(INTERRUPTED) from None
    if not result.is_main:
        return
    told = reporting.report(result.compressed, bytes_after=output.stat().st_size)
    more = (path for path in (result.curves, save_recipe) if path is not None)
    show_result(told, output, result.metrics, *more, json=json)


def _save_recipe(target: Path, request: FineTuneRequest, config: TrainConfig, *, force: bool) -> None:
    from btcompress.checkpoint import check_target
    from btcompress.recipe import FineTuneStep, Recipe, save_recipe

    check_target(target, force=force, inputs=[*request.inputs, request.output])
    save_recipe(Recipe(request.compressed, request.output, (FineTuneStep.of(request, config),)), target)
