"""The command that shows what a compression gained and lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.options import JSON, Container, Scale, Strict, scale_of
from btcompress.errors import BTCompressError

if TYPE_CHECKING:
    from btcompress.calibration import SampleInputs
    from btcompress.results import CompressionReport


def report(
    compressed: Annotated[Path, typer.Argument(metavar="COMPRESSED", help="A result file.", show_default=False)],
    against: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="The dense checkpoint, to measure all errors anew.", show_default=False),
    ] = None,
    yardsticks: Annotated[
        bool,
        typer.Option("--yardsticks", help="With --against: compare with other forms of equal size."),
    ] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]FILE",
            help="With --against: sample inputs, as --calibration takes them, to measure what the errors do on them. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    scale: Scale = "1",
    lstm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The LSTM that the inputs are for, if there are several.", show_default=False
        ),
    ] = None,
    container: Container = None,
    strict: Strict = False,
    json: JSON = False,
) -> None:
    """Show what a compression gained and lost."""
    from btcompress import display, models, reporting
    from btcompress.checkpoint import read

    if against is None and (yardsticks or inputs):
        option = "--yardsticks compares" if yardsticks else "--inputs measures"
        raise BTCompressError(f"{option} with the dense matrices. Give the dense checkpoint with --against MODEL.")
    if not inputs and (lstm is not None or scale != "1"):
        raise BTCompressError("--scale and --lstm say how to take inputs, but there are none. Give --inputs FILE.")
    with display.working(f"measuring {compressed}"):
        opened = models.load(compressed)
        dense = None if against is None else read(against, container, strict=strict)
        measure = None
        if dense is not None and inputs:
            from btcompress.calibration import on_inputs

            measure = on_inputs(opened, dense, [_sample_inputs(each, scale_of(scale), lstm) for each in inputs])
        result = reporting.report(
            opened,
            against=dense,
            bytes_after=compressed.stat().st_size,
            yardsticks=yardsticks,
            on_inputs=measure,
        )
    show_result(result, json=json)


def _sample_inputs(text: str, scale: float, lstm: str | None) -> SampleInputs:
    """What ``[LAYER=]FILE`` says; a file whose own name has that form is one."""
    from btcompress.calibration import SampleInputs

    layer, is_named, data = text.partition("=")
    if not is_named or os.path.lexists(text):
        return SampleInputs(text, lstm, scale)
    return SampleInputs(data, layer, scale)


def show_result(result: CompressionReport, *written: Path, json: bool) -> None:
    """Show a report as one JSON object, or as tables with the files that were written below them."""
    from btcompress import display

    with display.having_written(*written):
        if json:
            display.show_json(result.to_dict())
            return
        display.show_report(result)
        for file in written:
            display.show_written(file)
