"""The command that shows what a compression gained and lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.options import JSON, Container, Scale, Strict, scale_of
from btcompress.errors import BTCompressError

if TYPE_CHECKING:
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
        str | None,
        typer.Option(
            metavar="FILE|MODULE:FACTORY",
            help="With --against: sequences of an LSTM's inputs, as finetune takes them, to measure activation errors.",
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

    if against is None and (yardsticks or inputs is not None):
        option = "--yardsticks compares" if yardsticks else "--inputs measures"
        raise BTCompressError(f"{option} with the dense matrices. Give the dense checkpoint with --against MODEL.")
    if inputs is None and (lstm is not None or scale != "1"):
        raise BTCompressError("--scale and --lstm say how to take inputs, but there are none. Give --inputs FILE.")
    with display.working(f"measuring {compressed}"):
        opened = models.load(compressed)
        dense = None if against is None else read(against, container, strict=strict)
        measure = None
        if dense is not None and inputs is not None:
            from btcompress.calibration import SampleInputs, on_inputs

            measure = on_inputs(opened, dense, (SampleInputs(inputs, lstm, scale_of(scale)),))
        result = reporting.report(
            opened,
            against=dense,
            bytes_after=compressed.stat().st_size,
            yardsticks=yardsticks,
            on_inputs=measure,
        )
    show_result(result, json=json)


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
