"""The command that shows what a compression gained and lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btcompress.cli.documents import Documents
from btcompress.cli.options import INPUTS, JSON, OUTPUT, Container, Force, LSTMOption, Scale, Strict, given_inputs
from btcompress.cli.outcome import show_outcome
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
        list[str] | None,
        typer.Option(
            metavar="[LAYER=]FILE",
            help="With --against: sample inputs, as --calibration takes them, to measure what the errors do on them. "
            "Repeatable.",
            show_default=False,
            rich_help_panel=INPUTS,
        ),
    ] = None,
    scale: Scale = "1",
    lstm: LSTMOption = None,
    container: Container = None,
    strict: Strict = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the report as one page to look at, with drawings; - for standard output.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the report as Markdown, for pull requests and model cards; - for standard output.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    json: JSON = False,
) -> None:
    """Show what a compression gained and lost."""
    from btcompress import display, models, reporting
    from btcompress.checkpoint import read

    if against is None and (yardsticks or inputs):
        option = "--yardsticks compares" if yardsticks else "--inputs measures"
        raise BTCompressError(f"{option} with the dense matrices. Give the dense checkpoint with --against MODEL.")
    given = given_inputs("--inputs", inputs, scale, lstm)
    documents = Documents(html, markdown, force=force)
    documents.check([compressed, *([] if against is None else [against])], given, json=json)
    with display.working(f"measuring {compressed}"):
        opened = models.load(compressed)
        dense = None if against is None else read(against, container, strict=strict)
        documents.check([] if dense is None else dense.files, json=json)
        measure = None
        if dense is not None and given:
            from btcompress.calibration import on_inputs

            measure = on_inputs(opened, dense, given)
        result = reporting.report(
            opened,
            against=dense,
            bytes_after=compressed.stat().st_size,
            yardsticks=yardsticks,
            on_inputs=measure,
        )
        made = documents.made(result, compressed.name, opened, dense)
    written, shown = documents.write(made)
    if shown is None:
        show_result(result, *written, json=json)
        return
    with display.having_written(*written):
        display.show_document(shown)


def show_result(result: CompressionReport, *written: Path, json: bool) -> None:
    """Show a report as one JSON object, or as tables with the files that were written below them."""
    from btcompress import display

    tables, as_json = partial(display.show_report, result), lambda: display.show_json(result.to_dict())
    show_outcome(tables, as_json, *written, json=json)
