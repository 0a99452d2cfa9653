"""The commands that train: finetune, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from btcompress.cli.options import JSON, Container, Scale, Seed, Strict, scale_of
from btcompress.cli.reports import show_result
from btcompress.errors import INTERRUPTED, OutputError
from btcompress.seeds import MAX_SEED


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
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The result file to write.", show_default=False)],
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="The dense checkpoint, to learn from.", show_default=False),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Train this LSTM alone, on its inputs, to give the teacher's hidden states."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="Function of your own that builds the dense network.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Loss of your own: of outputs and y, a mean.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="Folder in which your own modules lie.", show_default=False)] = None,
    container: Container = None,
    strict: Strict = False,
    val: Annotated[
        str | None, typer.Option(metavar="FILE|MODULE:FACTORY", help="Sequences to measure on.", show_default=False)
    ] = None,
    val_fraction: Annotated[float, typer.Option(help="Without --val: share of the sequences to hold back.")] = 0.1,
    scale: Scale = "1",
    epochs: Annotated[int, typer.Option(help="Passes over the sequences at most.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Sequences in a step, of all processes together.")] = 32,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate at its peak. Default: 0.01, with --model 0.001; where the start was calibrated or "
            "fine-tuned before, 0.001 for hidden states and 0.003 for labels.",
            show_default=False,
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0,
    warmup: Annotated[float, typer.Option(help="Share of all steps over which the learning rate rises.")] = 0.05,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    patience: Annotated[
        int,
        typer.Option(
            help="After so many epochs without a better metric let the learning rate fall to 0 over as many more, and "
            "stop; 0: never."
        ),
    ] = 10,
    accumulate: Annotated[int, typer.Option(help="Parts into which each batch is split to save memory.")] = 1,
    precision: Annotated[Literal["no", "fp16", "bf16"], typer.Option(help="Mixed precision.")] = "no",
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Tensors to leave as they are; * and ? match. Repeatable."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's scores.")] = 2.0,
    distill: Annotated[float, typer.Option(help="With labels and a teacher: share of the teacher in the loss.")] = 0.5,
    seed: Seed = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for TensorBoard's curves, one for each result.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace the result file, and start over what was interrupted.")
    ] = False,
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
    curves = () if result.curves is None else (result.curves,)
    show_result(told, output, result.metrics, *curves, json=json)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the checkpoints; made if it is not there.")
    ] = Path("btcompress-demo"),
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the clips and of the training.")] = 0,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="At full size: 57,600 inputs and 256 hidden units; takes 1 GB of disk and far longer."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace files of these names, as an earlier demonstration left them.")
    ] = False,
) -> None:
    """Train an LSTM on made-up video clips, factorize it, fine-tune it, and show what came of it (a minute or two)."""
    from btcompress import display
    from btcompress.demo import FULL, SMALL, run_demo

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made ({error.strerror}). Choose another folder.") from error
    with display.demo_progress() as on_progress:
        result = run_demo(output, FULL if full else SMALL, seed=seed, force=force, on_progress=on_progress)
    with display.having_written(output):
        display.show_demo(result)
