"""Progress on stderr, shown once the work takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from btcompress.display.console import make_error_console, name_text

if TYPE_CHECKING:
    from btcompress.demo import DemoProgress
    from btcompress.factorization import OnProgress
    from btcompress.finetune import Epoch
    from btcompress.plan import OnPricing
    from btcompress.results import CalibrationProgress, FitProgress, PricingProgress

#: Seconds that work may take before a bar is shown.
_PATIENCE = 1.0


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr beside ``what`` is being done, shown once that takes longer than a second."""
    console = make_error_console()
    status = console.status(Text(name_text(what)), spinner="line" if console.options.ascii_only else "dots")
    timer = Timer(_PATIENCE, status.start)
    timer.daemon = True
    if console.is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if console.is_terminal:
            timer.join()
            status.stop()


@contextmanager
def fit_progress() -> Iterator[OnProgress]:
    """A bar on stderr over all fits of a factorization."""
    with _patient_bar() as update:

        def on_progress(state: FitProgress) -> None:
            done = state.index + state.sweep.index / state.sweep.limit
            what = f"{state.name} ({state.index + 1} of {state.count})"
            update(what, done, state.count, f"error {state.sweep.error:.4f}")

        yield on_progress


@contextmanager
def pricing_progress() -> Iterator[OnPricing]:
    """A bar on stderr over all matrices of a plan."""
    with _patient_bar() as update:

        def on_progress(state: PricingProgress) -> None:
            update(
                f"pricing {state.name} ({state.index + 1} of {state.count})", state.index + state.share, state.count, ""
            )

        yield on_progress


@contextmanager
def demo_progress() -> Iterator[Callable[[DemoProgress], None]]:
    """A bar on stderr over each stage of the demonstration."""
    with _patient_bar(patience=0.0) as update:

        def on_progress(state: DemoProgress) -> None:
            if state.epoch is None:
                update(state.what, 0, 1, "")
            else:
                update(state.what, state.epoch.epoch, state.epoch.epochs, _training_state(state.epoch))

        yield on_progress


@contextmanager
def finetune_progress() -> Iterator[Callable[[Epoch], None]]:
    """A bar on stderr over the epochs of a fine-tuning."""
    with _patient_bar() as update:
        yield lambda epoch: update("fine-tuning", epoch.epoch, epoch.epochs, _training_state(epoch))


@contextmanager
def calibration_progress() -> Iterator[Callable[[CalibrationProgress], None]]:
    """A bar on stderr over the stages of a calibration."""
    with _patient_bar() as update:

        def on_progress(state: CalibrationProgress) -> None:
            left = "" if state.seconds_left is None else f"about {state.seconds_left:.0f} s left"
            update(state.what, state.index + state.share, state.count, ", ".join(filter(None, (state.state, left))))

        yield on_progress


def _training_state(epoch: Epoch) -> str:
    left = round(epoch.seconds * (epoch.epochs - epoch.epoch))
    return (
        f"loss {epoch.loss:.4f}, metric {epoch.metric:.4f}, lr {epoch.learning_rate:.1e}, "
        f"{epoch.sequences_per_second:,.0f} sequences/s, at most {left} s left"
    )


@contextmanager
def _patient_bar(patience: float = _PATIENCE) -> Iterator[Callable[[str, float, float, str], None]]:
    """A bar on stderr, shown once the work takes longer than ``patience``: what, done, of how much, where it stands."""
    what_column, state_column = (
        TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[state]}")
    )
    columns = (what_column, BarColumn(), state_column, TimeElapsedColumn())
    console = make_error_console()
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    began = time.monotonic()
    tasks: list[TaskID] = []

    def update(what: str, done: float, total: float, state: str) -> None:
        if not tasks:
            if time.monotonic() - began < patience:
                return
            progress.start()
            tasks.append(progress.add_task("", total=total, state=""))
        progress.update(tasks[0], completed=done, total=total, state=state, description=name_text(what))

    try:
        yield update
    finally:
        if tasks:
            progress.stop()
