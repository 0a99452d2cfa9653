"""The command line: parse, call, show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from btcompress.errors import BTCompressError, OutputError
from btcompress.modes import ShapeRequest

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
TuckerRank = Annotated[
    str,
    typer.Option("--tucker-rank", "-r", metavar="R[,R...]", help="Tucker rank R: one for all modes, or one per mode."),
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
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="PATTERN",
        help="Matrices to take, by key or LSTM name; * and ? match, a leading ! leaves out. Repeatable. Default: all.",
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
    cp_rank: CPRank = 1,
    tucker_rank: TuckerRank = "4",
    in_modes: InModes = None,
    out_modes: OutModes = None,
    order: Order = None,
    input_shape: InputShape = None,
    gates: GatesOption = "fused",
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
    json: JSON = False,
) -> None:
    """Write the input-to-hidden matrices of a checkpoint's LSTMs in block-term form."""
    from btcompress import display, factorization, plan, reporting
    from btcompress.checkpoint import check_target, write
    from btcompress.fit import FitOptions

    request = _request(cp_rank, tucker_rank, in_modes, out_modes, order, input_shape, gates)
    options = FitOptions(max_sweeps=max_sweeps, restarts=restarts, seed=seed, device=_usable(device))
    with display.working(f"reading {model}"):
        checkpoint = factorization.open_weights(model, container)
    planned = plan.make_plan(checkpoint, request, layer or (), allow_growth=allow_growth)
    if dry_run:
        show = display.show_inventory_json if json else display.show_plan
        show(checkpoint, planned)
        return
    target = output or _beside(model, checkpoint.source.name)
    check_target(target, force=force, inputs=checkpoint.files)
    with display.fit_progress() as on_progress:
        compressed = factorization.factorize_as_planned(checkpoint, planned, request, options, on_progress)
    write(compressed, target, force=force)
    result = reporting.report(compressed, bytes_after=target.stat().st_size)
    if json:
        display.show_json(result.to_dict())
    else:
        display.show_report(result)
        display.show_written(target)


@app.command()
def inspect(
    model: Model,
    cp_rank: CPRank = 1,
    tucker_rank: TuckerRank = "4",
    container: Container = None,
    json: JSON = False,
) -> None:
    """Show what a checkpoint holds: its LSTMs, and what each matrix would cost at these ranks."""
    from btcompress import display, factorization, plan

    request = _request(cp_rank, tucker_rank)
    with display.working(f"reading {model}"):
        checkpoint = factorization.open_weights(model, container)
    planned = plan.make_plan(checkpoint, request)
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
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the checkpoints; made if it is not there.")
    ] = Path("btcompress-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the clips and of the training.")] = 0,
) -> None:
    """Train an LSTM on made-up video clips, factorize it, and show what that cost (half a minute)."""
    from btcompress import display
    from btcompress.demo import run_demo

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made ({error.strerror}). Choose another folder.") from error
    with display.training_progress() as on_epoch:
        result = run_demo(output, seed=seed, on_epoch=on_epoch)
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
