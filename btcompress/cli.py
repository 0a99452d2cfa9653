"""The command line: parse, call, show."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from btcompress.errors import BTCompressError, OutputError
from btcompress.kinds import KINDS, MatrixKind, check_kinds
from btcompress.modes import ShapeRequest

if TYPE_CHECKING:
    from btcompress.plan import Wish

#: Exit code after Ctrl-C, as shells give it.
_INTERRUPTED = 130

app = typer.Typer(
    name="btcompress",
    help="Compress trained LSTMs: write their weight matrices in block-term form.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers such as 8,20,20,18.") from None


def _factor(text: str) -> float:
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not value or not math.isfinite(value):
        raise typer.BadParameter(f"--scale {text!r} is not a number other than 0, or a fraction such as 1/255.")
    return value


def _rank(text: str) -> int | tuple[int, ...]:
    ranks = _numbers(text)
    return ranks[0] if len(ranks) == 1 else ranks


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Dense checkpoint: .safetensors (or its index), or a state dict saved by torch.",
        show_default=False,
    ),
]
CPRank = Annotated[int, typer.Option("--cp-rank", "-n", min=1, help="CP rank N: Tucker blocks summed per matrix.")]
GivenCPRank = Annotated[
    int | None,
    typer.Option("--cp-rank", "-n", min=1, help="CP rank N: Tucker blocks summed per matrix. Default: 1."),
]
TuckerRank = Annotated[
    str,
    typer.Option("--tucker-rank", "-r", metavar="R[,R...]", help="Tucker rank R: one for all modes, or one per mode."),
]
GivenTuckerRank = Annotated[
    str | None,
    typer.Option(
        "--tucker-rank",
        "-r",
        metavar="R[,R...]",
        help="Tucker rank R: one for all modes, or one per mode. Default: 4.",
    ),
]
TargetRatio = Annotated[
    float | None,
    typer.Option(metavar="X", help="Choose forms and ranks: parameters before over after, at least X."),
]
MaxParams = Annotated[int | None, typer.Option(metavar="P", help="Choose forms and ranks: at most P parameters after.")]
MaxError = Annotated[
    float | None,
    typer.Option(
        metavar="E", help="Choose forms and ranks: weight error of every matrix at most E. Also beside those."
    ),
]
OfOption = Annotated[
    Literal["matrices", "model"],
    typer.Option(help="Whether ratio and parameters are those of the chosen matrices or of the whole model."),
]
InModes = Annotated[
    str | None,
    typer.Option(
        metavar="I,I,...", help="Input mode sizes, for the matrices whose inputs they multiply to. Default: chosen."
    ),
]
OutModes = Annotated[
    str | None,
    typer.Option(metavar="J,J,...", help="Output mode sizes, gates included when fused. Default: chosen."),
]
Order = Annotated[int | None, typer.Option(min=1, help="Number of modes. Default: what suits the matrix's size.")]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="S,S,...", help="Shape that was flattened to the input, such as 120,160,3; modes follow its axes."
    ),
]
GatesOption = Annotated[
    Literal["fused", "separate"], typer.Option(help="One block-term form for all four gates, or one for each.")
]
Matrices = Annotated[
    str,
    typer.Option(
        metavar="KIND[,KIND...]",
        help="Kinds of matrices: input (an LSTM's weight_ih), recurrent (its weight_hh and weight_hr), linear layers.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="PATTERN",
        help="Matrices to take, by key or layer name; * and ? match, a leading ! leaves out. Repeatable. Default: all.",
    ),
]
AllowGrowth = Annotated[bool, typer.Option("--allow-growth", help="Also factorize a matrix that this makes larger.")]
Container = Annotated[
    str | None, typer.Option(metavar="NAME", help="Which state dict to read where the file holds several.")
]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@app.command()
def factorize(
    model: Model,
    cp_rank: GivenCPRank = None,
    tucker_rank: GivenTuckerRank = None,
    target_ratio: TargetRatio = None,
    max_params: MaxParams = None,
    max_error: MaxError = None,
    of: OfOption = "matrices",
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Do as this plan says, which btcompress plan --save-plan wrote."),
    ] = None,
    in_modes: InModes = None,
    out_modes: OutModes = None,
    order: Order = None,
    input_shape: InputShape = None,
    gates: GatesOption = "fused",
    matrices: Matrices = "input",
    layer: Layers = None,
    allow_growth: AllowGrowth = False,
    container: Container = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result file. Default: MODEL with .bt.safetensors for its ending.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the result file if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show mode sizes and parameters; fit and write nothing.")
    ] = False,
    restarts: Annotated[int, typer.Option(min=0, help="Further random starts of each fit; the best is kept.")] = 0,
    max_sweeps: Annotated[int, typer.Option(min=0, help="Most joint least-squares sweeps of a fit.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
    device: Annotated[str, typer.Option(help="Where to fit: cpu, cuda, cuda:1, ...")] = "cpu",
    order_units: Annotated[
        bool,
        typer.Option("--order-units/--no-order-units", help="Reorder rows and columns where the fit gains by it."),
    ] = False,
    json: JSON = False,
) -> None:
    """Write matrices of a checkpoint in block-term form: of its LSTMs, and of linear layers if asked to."""
    from btcompress import display, factorization, plan, reporting
    from btcompress.checkpoint import check_target, write
    from btcompress.fit import FitOptions

    ranks, sizes = (cp_rank, tucker_rank), (in_modes, out_modes, order, input_shape)
    wish = _wish(target_ratio, max_params, max_error, of, ranks=ranks, plan_file=plan_file)
    if plan_file is not None:
        _refuse("--plan says it all", *ranks, *sizes, *(layer or ()), None if gates == "fused" else gates)
    if order_units and (wish is not None or plan_file is not None):
        raise BTCompressError(
            "a plan or a wish does not count the integers that --order-units costs. Leave out one of the two."
        )
    request = _request(1 if cp_rank is None else cp_rank, tucker_rank or "4", *sizes, gates)
    options = FitOptions(max_sweeps=max_sweeps, restarts=restarts, seed=seed, device=_usable(device))
    with display.working(f"reading {model}"):
        checkpoint = factorization.open_weights(model, container)
    target = output or _beside(model, checkpoint.source.name)
    if not dry_run:
        check_target(target, force=force, inputs=checkpoint.files)
    every = wish is not None or plan_file is not None
    kinds = _kinds(matrices) if plan_file is None else KINDS
    planned = plan.make_plan(checkpoint, request, layer or (), matrices=kinds, allow_growth=allow_growth or every)
    if wish is not None:
        with display.pricing_progress() as on_pricing:
            planned = plan.meet(
                checkpoint, planned, wish, request, seed=seed, device=device, on_progress=on_pricing
            ).plan
    elif plan_file is not None:
        planned = plan.read_plan(plan_file, checkpoint, planned, allow_growth=allow_growth)
    if dry_run:
        show = display.show_inventory_json if json else display.show_plan
        show(checkpoint, planned)
        return
    asked = None if plan_file is not None else wish or request
    with display.fit_progress() as on_progress:
        compressed = factorization.factorize_as_planned(
            checkpoint, planned, asked, options, on_progress, order_units=order_units
        )
    write(compressed, target, force=force)
    result = reporting.report(compressed, bytes_after=target.stat().st_size)
    if json:
        display.show_json(result.to_dict())
    else:
        display.show_report(result)
        display.show_written(target)


@app.command(name="plan")
def plan_command(
    model: Model,
    target_ratio: TargetRatio = None,
    max_params: MaxParams = None,
    max_error: MaxError = None,
    of: OfOption = "matrices",
    in_modes: InModes = None,
    out_modes: OutModes = None,
    order: Order = None,
    input_shape: InputShape = None,
    gates: GatesOption = "fused",
    matrices: Matrices = "input",
    layer: Layers = None,
    container: Container = None,
    save_plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the plan as YAML, to edit and give to factorize --plan."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the plan file if it exists.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")] = "cpu",
    json: JSON = False,
) -> None:
    """Show which form of each matrix meets a wish at the least loss, and what else there is."""
    from btcompress import display, factorization, plan
    from btcompress.checkpoint import check_target

    wish = plan.Wish(target_ratio, max_params, max_error, of)
    request = _request(1, "4", in_modes, out_modes, order, input_shape, gates)
    device = _usable(device)
    with display.working(f"reading {model}"):
        checkpoint = factorization.open_weights(model, container)
    if save_plan is not None:
        check_target(save_plan, force=force, inputs=checkpoint.files)
    chosen = plan.make_plan(checkpoint, request, layer or (), matrices=_kinds(matrices), allow_growth=True)
    with display.pricing_progress() as on_progress:
        priced = plan.meet(checkpoint, chosen, wish, request, seed=seed, device=device, on_progress=on_progress)
    show = display.show_priced_plan_json if json else display.show_priced_plan
    show(checkpoint, priced)
    if save_plan is not None:
        plan.save_plan(priced, save_plan, name=checkpoint.source.name, sha256=checkpoint.source.sha256)
        if not json:
            display.show_written(save_plan)


@app.command()
def inspect(
    model: Model,
    cp_rank: CPRank = 1,
    tucker_rank: TuckerRank = "4",
    matrices: Matrices = "input",
    container: Container = None,
    json: JSON = False,
) -> None:
    """Show what a checkpoint holds: its LSTMs, and what each matrix would cost at these ranks."""
    from btcompress import display, factorization, plan

    request = _request(cp_rank, tucker_rank)
    with display.working(f"reading {model}"):
        checkpoint = factorization.open_weights(model, container)
    planned = plan.make_plan(checkpoint, request, matrices=_kinds(matrices))
    if json:
        display.show_inventory_json(checkpoint, planned)
    else:
        display.show_inventory(checkpoint, planned)


@app.command()
def report(
    compressed: Annotated[Path, typer.Argument(metavar="COMPRESSED", help="A result file.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="The dense checkpoint, to measure all errors anew.", show_default=False),
    ] = None,
    container: Container = None,
    json: JSON = False,
) -> None:
    """Show what a compression gained and lost."""
    from btcompress import display, models, reporting
    from btcompress.checkpoint import read

    with display.working(f"measuring {compressed}"):
        opened = models.load(compressed)
        dense = None if against is None else read(against, container)
        result = reporting.report(opened, against=dense, bytes_after=compressed.stat().st_size)
    if json:
        display.show_json(result.to_dict())
    else:
        display.show_report(result)


@app.command()
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
    val: Annotated[
        str | None, typer.Option(metavar="FILE|MODULE:FACTORY", help="Sequences to measure on.", show_default=False)
    ] = None,
    val_fraction: Annotated[float, typer.Option(help="Without --val: share of the sequences to hold back.")] = 0.1,
    scale: Annotated[str, typer.Option(help="What to multiply inputs by: a number, or a fraction like 1/255.")] = "1",
    epochs: Annotated[int, typer.Option(help="Passes over the sequences at most.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Sequences in a step, of all processes together.")] = 32,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate at its peak. Default: 0.01, with --model 0.001.", show_default=False),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0,
    warmup: Annotated[float, typer.Option(help="Share of all steps over which the learning rate rises.")] = 0.05,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better metric; 0: never.")] = 10,
    accumulate: Annotated[int, typer.Option(help="Parts into which each batch is split to save memory.")] = 1,
    precision: Annotated[Literal["no", "fp16", "bf16"], typer.Option(help="Mixed precision.")] = "no",
    freeze: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Tensors to leave as they are; * and ? match. Repeatable."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Softens the teacher's scores.")] = 2.0,
    distill: Annotated[float, typer.Option(help="With labels and a teacher: share of the teacher in the loss.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
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
        _factor(scale),
        model,
        loss,
        path,
        container,
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
        if os.environ.get("RANK", "0") == "0":
            display.show_interrupted(room.StateFolder(output, {}))
        raise typer.Exit(_INTERRUPTED) from None
    if not result.is_main:
        return
    told = reporting.report(result.compressed, bytes_after=output.stat().st_size)
    if json:
        display.show_json(told.to_dict())
    else:
        display.show_report(told)
        display.show_written(output)
        display.show_written(result.metrics)
        if result.curves is not None:
            display.show_written(result.curves)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the checkpoints; made if it is not there.")
    ] = Path("btcompress-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the clips and of the training.")] = 0,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="At full size: 57,600 inputs and 256 hidden units; takes 1 GB of disk and far longer."
        ),
    ] = False,
) -> None:
    """Train an LSTM on made-up video clips, factorize it, fine-tune it, and show what came of it (two minutes)."""
    from btcompress import display
    from btcompress.demo import FULL, SMALL, run_demo

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made ({error.strerror}). Choose another folder.") from error
    with display.demo_progress() as on_progress:
        result = run_demo(output, FULL if full else SMALL, seed=seed, on_progress=on_progress)
    display.show_demo(result)


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


def _request(
    cp_rank: int,
    tucker_rank: str,
    in_modes: str | None = None,
    out_modes: str | None = None,
    order: int | None = None,
    input_shape: str | None = None,
    gates: Literal["fused", "separate"] = "fused",
) -> ShapeRequest:
    sizes = (None if text is None else _numbers(text) for text in (in_modes, out_modes, input_shape))
    given_in, given_out, given_shape = sizes
    return ShapeRequest(cp_rank, _rank(tucker_rank), given_in, given_out, order, given_shape, gates)


def _kinds(text: str) -> tuple[MatrixKind, ...]:
    return check_kinds(cast(tuple[MatrixKind, ...], tuple(part.strip() for part in text.split(","))))


def _wish(
    target_ratio: float | None,
    max_params: int | None,
    max_error: float | None,
    of: Literal["matrices", "model"],
    *,
    ranks: tuple[object, ...],
    plan_file: Path | None,
) -> Wish | None:
    """The wish that the options make, if any, which leaves the ranks to the planner."""
    from btcompress.plan import Wish

    if target_ratio is None and max_params is None and max_error is None:
        if of == "model":
            raise BTCompressError("--of says what a ratio is of. Give --target-ratio or --max-params with it.")
        return None
    _refuse("a wish leaves the ranks to be chosen", *ranks, plan_file)
    return Wish(target_ratio, max_params, max_error, of)


def _refuse(reason: str, *options: object) -> None:
    if any(option is not None for option in options):
        raise BTCompressError(
            f"{reason}, but options that say otherwise were given as well. Give one of: a wish (--target-ratio, "
            "--max-params, --max-error), --plan, or ranks and what goes with them."
        )


def _beside(model: Path, name: str) -> Path:
    """The default result file: beside the checkpoint, named after it."""
    folder = model if model.is_dir() else model.parent
    return folder / f"{Path(name.removesuffix('.index.json')).stem}.bt.safetensors"


def _usable(device: str) -> str:
    import torch

    try:
        torch.zeros(1, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise BTCompressError(
            f"--device {device} cannot be used here ({reason}). Use cpu, or a CUDA device if there is one."
        ) from error
    return device


def main() -> None:
    """Run the command line; a user's error is one red line and exit code 2."""
    try:
        app()
    except BTCompressError as error:
        from btcompress.display import show_error

        show_error(str(error))
        sys.exit(2)
