"""The command that measures how fast a result runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from btcompress.cli.completing import layers, listed_words
from btcompress.cli.options import EFFORT, JSON, OUTPUT, TAKE, Container, Device, Seed, Strict, numbers
from btcompress.cli.outcome import show_outcome

#: Heading of ``--help``.
_SIZES = "At which sizes"


def bench(
    compressed: Annotated[Path, typer.Argument(metavar="COMPRESSED", help="A result file.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="The dense checkpoint, to take the dense weights from. Default: they are formed from the file, which "
            "runs as fast.",
            show_default=False,
            rich_help_panel=TAKE,
        ),
    ] = None,
    lstm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure this recurrent layer alone. Default: all with block terms.",
            autocompletion=layers,
            show_default=False,
            rich_help_panel=TAKE,
        ),
    ] = None,
    container: Container = None,
    strict: Strict = False,
    batch: Annotated[
        str, typer.Option(metavar="B[,B...]", help="Sequences in a call.", rich_help_panel=_SIZES)
    ] = "1,16",
    steps: Annotated[
        str, typer.Option(metavar="T[,T...]", help="Steps of each sequence in a call.", rich_help_panel=_SIZES)
    ] = "1,50",
    train: Annotated[
        bool,
        typer.Option("--train", help="Measure training as well: forward and backward.", rich_help_panel=_SIZES),
    ] = False,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]",
            autocompletion=listed_words("torch", "onnx"),
            help="What runs the layers: torch, onnx (ONNX Runtime, dense and block terms, each in int8 too), or both.",
            rich_help_panel=EFFORT,
        ),
    ] = "torch",
    device: Device = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads to compute in. Default: as many as torch takes.", show_default=False, rich_help_panel=EFFORT
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(help="How long to measure each layer, batch size and number of steps.", rich_help_panel=EFFORT),
    ] = 2.0,
    seed: Seed = 0,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Write what was measured into the file's record, for btcompress report. Its tensors stay as they are.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    json: JSON = False,
) -> None:
    """Measure how fast a result's recurrent layers run here, beside the dense ones, and what memory that takes."""
    from btcompress import benching, display
    from btcompress.checkpoint import read

    dense = None if against is None else read(against, container, strict=strict)
    with display.bench_progress() as on_progress:
        report = benching.bench(
            compressed,
            against=dense,
            lstm=lstm,
            batch=numbers(batch),
            steps=numbers(steps),
            train=train,
            device=device,
            threads=threads,
            seconds=seconds,
            seed=seed,
            runtime=runtime.split(","),
            record=record,
            on_progress=on_progress,
        )
    written = (compressed,) if record else ()
    tables, as_json = partial(display.show_bench, report), lambda: display.show_json(report.to_dict())
    show_outcome(tables, as_json, *written, json=json)
