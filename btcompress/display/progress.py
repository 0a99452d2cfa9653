"""Progress on stderr: a bar once the work takes longer than a second, and plain lines where stderr is no terminal.

Where all is to be told, each part of the work has a line as well once it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from btcompress.display.console import can_animate, line_text, make_error_console, name_text
from btcompress.display.verbosity import is_quiet, seconds_text, tell, tell_above

if TYPE_CHECKING:
    from btcompress.benching import OnBench
    from btcompress.demo import DemoProgress
    from btcompress.factorization import OnProgress
    from btcompress.finetune import Epoch
    from btcompress.plan import OnPricing
    from btcompress.results import CalibrationProgress, FitProgress, PricingProgress, StepProgress
    from btcompress.timings import BenchProgress

#: Seconds that work may take before a bar is shown.
_PATIENCE = 1.0
#: Seconds before the first plain line, at least before one on another stage, and before one on the same.
_FIRST_LINE, _NEXT_STAGE, _NEXT_LINE = 5.0, 5.0, 30.0
#: Seconds and share of the work from which on what is left is told: less says little.
_LEAST_SECONDS, _LEAST_SHARE = 1.0, 0.01

#: Columns of what is being done, at least; of the bar; and of the bar on terminals of fewer than so many columns.
_WHAT_WIDTH, _BAR_WIDTH, _SHORT_BAR_WIDTH, _ROOM = 11, 20, 8, 140

_now = time.monotonic


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr beside ``what`` is being done, shown once that takes longer than a second."""
    console = make_error_console()
    status = console.status(Text(name_text(what)), spinner="line" if console.options.ascii_only else "dots")
    timer = Timer(_PATIENCE, status.start)
    timer.daemon = True
    animated, began = can_animate(console) and not is_quiet(), _now()
    if animated:
        tell_above(console)
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if animated:
            timer.join()
            status.stop()
            tell_above(None)
    tell(f"{what} took {seconds_text(_now() - began)}")


@contextmanager
def fit_progress() -> Iterator[OnProgress]:
    """Progress over all fits of a factorization."""
    with _shown() as update:

        def on_progress(state: FitProgress) -> None:
            done = state.index + state.sweep.index / state.sweep.limit
            which = f"{name_text(state.name)} ({state.index + 1} of {state.count})"
            update("fitting", done / state.count, which, f"error {state.sweep.error:.4f}")

        yield on_progress


@contextmanager
def pricing_progress() -> Iterator[OnPricing]:
    """Progress over all matrices of a plan."""
    with _shown() as update:

        def on_progress(state: PricingProgress) -> None:
            which = f"{name_text(state.name)} ({state.index + 1} of {state.count})"
            update("pricing", (state.index + state.share) / state.count, which)

        yield on_progress


@contextmanager
def job_progress() -> Iterator[Callable[[object], None]]:
    """Progress over what a job does one after the other: a bar or lines for each, and a line for a recipe's step."""
    from btcompress.finetune import Epoch
    from btcompress.results import CalibrationProgress, FitProgress, PricingProgress, StepProgress

    ways: dict[type, Callable[[], AbstractContextManager[Callable[[Any], None]]]] = {
        FitProgress: fit_progress,
        PricingProgress: pricing_progress,
        CalibrationProgress: calibration_progress,
        Epoch: finetune_progress,
    }
    shown: dict[type, Callable[[Any], None]] = {}
    with ExitStack() as stack:

        def on_progress(state: object) -> None:
            if type(state) not in shown:
                shown.clear()
                stack.close()
            if isinstance(state, StepProgress):
                _tell_step(state)
            elif type(state) not in shown:
                shown[type(state)] = stack.enter_context(ways[type(state)]())
            for tell in shown.values():
                tell(state)

        yield on_progress


def _tell_step(state: StepProgress) -> None:
    words = {"begun": "begins, to write", "done": "is done:", "kept": "was done before:"}[state.state]
    if is_quiet():
        return
    text = f"step {state.index + 1} of {state.count}, {state.kind}, {words} {state.output}"
    make_error_console().print(Text(line_text(text)), soft_wrap=True)


@contextmanager
def bench_progress() -> Iterator[OnBench]:
    """Progress over all cases of a bench."""
    with _shown() as update:

        def on_progress(state: BenchProgress) -> None:
            sizes = f"{state.mode}, batch {state.batch:,}, {state.steps:,} steps ({state.index + 1} of {state.count})"
            update(f"measuring {state.lstm}".strip(), (state.index + state.share) / state.count, sizes)

        yield on_progress


@contextmanager
def demo_progress() -> Iterator[Callable[[DemoProgress], None]]:
    """Progress over each stage of the demonstration."""
    with ExitStack() as stack:
        shown: dict[str, _Update] = {}

        def on_progress(state: DemoProgress) -> None:
            if state.what not in shown:
                shown.clear()
                stack.close()
                # One for each: what is left of a stage is told by the seconds that it took, not by those before it.
                shown[state.what] = stack.enter_context(_shown(patience=0.0))
            update = shown[state.what]
            if state.epoch is not None:
                _update_training(update, state.what, state.epoch)
            elif state.part is not None:
                _update_calibration(update, state.part)
            else:
                update(state.what, 0.0)

        yield on_progress


@contextmanager
def finetune_progress() -> Iterator[Callable[[Epoch], None]]:
    """Progress over the epochs of a fine-tuning."""
    with _shown() as update:
        yield lambda epoch: _update_training(update, "fine-tuning", epoch)


@contextmanager
def calibration_progress() -> Iterator[Callable[[CalibrationProgress], None]]:
    """Progress over the stages of a calibration, and of the sampling before it."""
    with _shown() as update:
        yield lambda state: _update_calibration(update, state)


class _Update(Protocol):
    def __call__(
        self, stage: str, share: float, part: str = "", state: str = "", seconds_left: float | None = None
    ) -> None:
        """Say where the work stands.

        Args:
            stage: what is being done; of another one a log tells at once.
            share: how much of all is done, 0 to 1.
            part: to which part of the work.
            state: more to show.
            seconds_left: until all is done; estimated from the share where left out.
        """


def _update_calibration(update: _Update, state: CalibrationProgress) -> None:
    stage = f"{state.what} ({state.index + 1} of {state.count})"
    update(stage, (state.index + state.share) / state.count, "", state.state, state.seconds_left)


def _update_training(update: _Update, what: str, epoch: Epoch) -> None:
    state = (
        f"loss {epoch.loss:.4f}, metric {epoch.metric:.4f}, lr {epoch.learning_rate:.1e}, "
        f"{epoch.sequences_per_second:,.0f} sequences/s"
    )
    left = epoch.seconds * (epoch.epochs - epoch.epoch)
    update(what, epoch.epoch / epoch.epochs, f"epoch {epoch.epoch} of {epoch.epochs}", state, left)


@contextmanager
def _shown(patience: float = _PATIENCE) -> Iterator[_Update]:
    """A bar on stderr once the work takes longer than ``patience``; lines now and then where it is no terminal."""
    console, began = make_error_console(), _now()
    shown = _Bar(console, patience) if can_animate(console) else _Lines(console)
    parts = _Parts()

    def update(stage: str, share: float, part: str = "", state: str = "", seconds_left: float | None = None) -> None:
        if is_quiet():
            return
        seconds = _now() - began
        if seconds_left is None and seconds >= _LEAST_SECONDS and share >= _LEAST_SHARE:
            seconds_left = seconds / share * (1 - share)
        parts.show(seconds, f"{stage} {part}".rstrip(), state)
        shown.show(seconds, stage, share, [each for each in (part, state, _left_text(seconds_left, share)) if each])

    try:
        yield update
    finally:
        parts.stop()
        shown.stop()


class _Parts:
    """A line for each part of the work once it is done, where all is to be told: how it ended, and when."""

    def __init__(self) -> None:
        self._part, self._state, self._seconds = "", "", 0.0

    def show(self, seconds: float, part: str, state: str) -> None:
        """Note where a part stands after so many seconds of work, and tell of the one before it."""
        if part != self._part:
            self.stop()
        self._part, self._state, self._seconds = part, state, seconds

    def stop(self) -> None:
        """Tell of the last part."""
        if self._part:
            tell(", ".join(filter(None, (self._part, self._state, f"after {seconds_text(self._seconds)}"))))


class _Bar:
    """A bar that is gone once the work is done."""

    def __init__(self, console: Console, patience: float) -> None:
        what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=_WHAT_WIDTH))
        # The one that goes on on another line where there is no room, so that no other is cut.
        state = TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=False, overflow="fold"))
        bar = BarColumn(_BAR_WIDTH if console.width >= _ROOM else _SHORT_BAR_WIDTH)
        self._progress = Progress(what, bar, state, TimeElapsedColumn(), console=console, transient=True)
        self._console, self._patience = console, patience
        self._tasks: list[TaskID] = []

    def show(self, seconds: float, stage: str, share: float, state: list[str]) -> None:
        """Move the bar, once so many seconds of work are enough to show one."""
        if not self._tasks:
            if seconds < self._patience:
                return
            self._progress.start()
            tell_above(self._console)
            self._tasks.append(self._progress.add_task("", total=1.0, state=""))
        self._progress.update(self._tasks[0], completed=share, state=", ".join(state), description=name_text(stage))

    def stop(self) -> None:
        """Take the bar away."""
        if self._tasks:
            tell_above(None)
            self._progress.stop()


class _Lines:
    """Plain lines for a log: none for short work, one where the stage changes, and else one every so often."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due, self._due_for_other, self._last = _FIRST_LINE, _FIRST_LINE, ""

    def show(self, seconds: float, stage: str, share: float, state: list[str]) -> None:
        """Print a line if one is due after so many seconds of work."""
        if seconds < (self._due if stage == self._last else self._due_for_other):
            return
        self._due, self._due_for_other, self._last = seconds + _NEXT_LINE, seconds + _NEXT_STAGE, stage
        text = ", ".join([f"{name_text(stage)}: {share:.0%} done", *state])
        self._console.print(Text(line_text(text)), soft_wrap=True)

    def stop(self) -> None:
        """Nothing: lines stay."""


def _left_text(seconds: float | None, share: float) -> str:
    if seconds is None or share >= 1:
        return ""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit} left"
    return f"about {seconds:.0f} s left"
