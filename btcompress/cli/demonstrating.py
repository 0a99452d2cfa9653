"""The command that demonstrates what compressing a model does, on data that it draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from btcompress.cli.environment import variable
from btcompress.demo.names import TaskName
from btcompress.errors import OutputError
from btcompress.seeds import MAX_SEED


def demo(
    task: Annotated[
        TaskName,
        typer.Option(
            help="What is learned: which motion a clip of video shows; to describe pictures; to draw images in steps."
        ),
    ] = "video",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for data, checkpoints and pictures; made if it is not there. Default: btcompress-demo-TASK.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(min=0, max=MAX_SEED, envvar=variable("seed"), help="Seed of the data and of the trainings."),
    ] = 0,
    rivals: Annotated[
        bool,
        typer.Option(
            "--rivals",
            help="Train what there is beside block terms too, at as many weights: tensor train, low rank, fewer hidden "
            "units, rounded; takes several times as long.",
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="With the larger inputs, 24,576 to 57,600; takes gigabytes of disk and far longer."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace files of these names, as an earlier demonstration left them.")
    ] = False,
) -> None:
    """Train a dense model on made-up data, compress it, train it on, and show what came of it (about two minutes)."""
    from btcompress import display
    from btcompress.demo import FULL, SMALL, run_demo

    folder = output or Path(f"btcompress-demo-{task}")
    with _made(folder), display.demo_progress() as on_progress:
        result = run_demo(
            folder,
            (FULL if full else SMALL)[task],
            seed=seed,
            force=force,
            with_rivals=rivals,
            on_progress=on_progress,
        )
    with display.having_written(folder):
        if display.is_quiet():
            display.show_written(folder)
        else:
            display.show_demo(result)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Have a folder; one that was not there goes again where nothing came into it."""
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}). Choose another folder.") from error
    try:
        yield
    finally:
        if not was_there:
            with suppress(OSError):
                folder.rmdir()
