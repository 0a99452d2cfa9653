"""The command that writes a result in a form that runs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from btcompress.cli.completing import layers
from btcompress.cli.options import JSON, OUTPUT, TAKE, Force
from btcompress.cli.outcome import show_outcome
from btcompress.cli.targets import beside
from btcompress.errors import BTCompressError

if TYPE_CHECKING:
    from btcompress.checkpoint import CompressedCheckpoint
    from btcompress.export import DenseExport, ExportedGraph, ExportedProgram

Target = Literal["onnx", "dense", "torch"]

#: Heading of ``--help``.
_INTERFACE, _GRAPH = "What it takes and gives", "How the graph is written (onnx)"
#: Which options belong to a target.
_OPTIONS: dict[Target, tuple[str, ...]] = {
    "onnx": ("--lstm", "--batch", "--steps", "--onnx-form", "--lengths", "--batch-first", "--int8", "--dequantize"),
    "dense": (),
    "torch": ("--lstm", "--batch-first", "--one-step"),
}


def export(
    compressed: Annotated[Path, typer.Argument(metavar="COMPRESSED", help="A result file.", show_default=False)],
    to: Annotated[
        Target,
        typer.Option(
            "--to",
            help="onnx: a graph of each recurrent layer, for ONNX Runtime and others; dense: a checkpoint for the code "
            "that the model was trained with; torch: a program of each, for torch alone.",
            show_default=False,
        ),
    ],
    lstm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Export this recurrent layer alone (onnx, torch). Default: all that have a matrix that was factorized "
            "or rounded.",
            autocompletion=layers,
            show_default=False,
            rich_help_panel=TAKE,
        ),
    ] = None,
    batch_first: Annotated[
        bool,
        typer.Option(
            "--batch-first",
            help="Inputs and outputs are (batch, steps, ...), not (steps, batch, ...) (onnx, torch).",
            rich_help_panel=_INTERFACE,
        ),
    ] = False,
    lengths: Annotated[
        bool,
        typer.Option(
            "--lengths",
            help="Take the number of steps of each sequence as a fourth input (onnx).",
            rich_help_panel=_INTERFACE,
        ),
    ] = False,
    one_step: Annotated[
        bool,
        typer.Option(
            "--one-step",
            help="Take one step at each call, for streaming: by the factors alone, no matrix is formed (torch).",
            rich_help_panel=_INTERFACE,
        ),
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="B",
            help="Sequences in a run for which the graph is to be fast; it runs with any number. Default: 1.",
            show_default=False,
            rich_help_panel=_GRAPH,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="T",
            help="Steps of each sequence in a run for which the graph is to be fast. Default: 1, streaming.",
            show_default=False,
            rich_help_panel=_GRAPH,
        ),
    ] = None,
    onnx_form: Annotated[
        Literal["auto", "operator", "scan", "lstm"] | None,
        typer.Option(
            help="Write every layer with ONNX's operator for it (LSTM, GRU, RNN), or with Scan over its steps; "
            "lstm says the same as operator. Default: auto, the one that is expected to be faster.",
            show_default=False,
            rich_help_panel=_GRAPH,
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Multiply in 8-bit integers, as ONNX Runtime's quantizer does it; look at the error it shows.",
            rich_help_panel=_GRAPH,
        ),
    ] = False,
    dequantize: Annotated[
        Literal["load", "run"] | None,
        typer.Option(
            help="Make floats of numbers in few bits as a session is made, which is faster, or at each run, which "
            "takes less memory. Default: load.",
            show_default=False,
            rich_help_panel=_GRAPH,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write; of several layers OUT.NAME.onnx for each. Default: COMPRESSED with .onnx, .pt2, or "
            ".dense.pt or .dense.safetensors for its ending.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    json: JSON = False,
) -> None:
    """Write a result in a form that runs without btcompress: ONNX graphs, a dense checkpoint, or torch programs."""
    from btcompress import display, models

    given = {
        "--lstm": lstm,
        "--batch": batch,
        "--steps": steps,
        "--onnx-form": onnx_form,
        "--lengths": lengths or None,
        "--batch-first": batch_first or None,
        "--one-step": one_step or None,
        "--int8": int8 or None,
        "--dequantize": dequantize,
    }
    options = {name: value for name, value in given.items() if value is not None}
    _check_options(to, list(options))
    with display.working(f"exporting {compressed}"):
        opened = models.load(compressed)
        path = output or _default(compressed, to, opened)
        files = _exported(opened, to, path, options, force=force)
    paths = [file.path for file in files]
    value = {"to": to, "files": [file.to_dict() for file in files]}
    show_outcome(partial(display.show_exported, files), partial(display.show_json, value), *paths, json=json)


def _check_options(to: Target, options: Sequence[str]) -> None:
    """Refuse options that would change nothing."""
    foreign = [name for name in options if name not in _OPTIONS[to]]
    if foreign:
        targets = " or ".join(f"--to {other}" for other, own in _OPTIONS.items() if set(foreign) <= set(own))
        own = ", ".join(_OPTIONS[to]) or "none of these options"
        raise BTCompressError(
            f"--to {to} does not take {', '.join(foreign)}. Leave that out, or take {targets}; --to {to} takes {own}."
        )


def _default(compressed: Path, to: Target, opened: CompressedCheckpoint) -> Path:
    """The file beside the result; a dense checkpoint has the ending of the one that was compressed."""
    if to == "dense":
        is_safetensors = opened.source.name.removesuffix(".index.json").endswith(".safetensors")
        return beside(compressed, f".dense.{'safetensors' if is_safetensors else 'pt'}")
    return beside(compressed, {"onnx": ".onnx", "torch": ".pt2"}[to])


def _exported(
    opened: CompressedCheckpoint, to: Target, path: Path, options: dict[str, Any], *, force: bool
) -> Sequence[ExportedGraph | ExportedProgram | DenseExport]:
    from btcompress import export as ways

    if to == "dense":
        return (ways.export_dense(opened, path, force=force),)
    named = {name.removeprefix("--").replace("-", "_"): value for name, value in options.items()}
    lstm = named.pop("lstm", None)
    if to == "torch":
        return ways.export_program(opened, path, lstm=lstm, force=force, **named)
    if "onnx_form" in named:
        named["form"] = named.pop("onnx_form")
    return ways.export_graphs(opened, path, ways.GraphRequest(**named), lstm=lstm, force=force)
