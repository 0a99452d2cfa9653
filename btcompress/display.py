"""Everything that is shown: tables and words on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint
    from btcompress.demo import Clips, Curve, DemoProgress, DemoResult
    from btcompress.factorization import OnProgress
    from btcompress.finetune import Epoch, StateFolder
    from btcompress.plan import Plan
    from btcompress.results import CompressionReport, FineTuneReport, FitProgress, MatrixReport, ModelReport
    from btcompress.shapes import MatrixShape

#: Columns of output that goes to a file or a pipe.
_PIPED_WIDTH = 120
#: Seconds that work may take before a bar is shown.
_PATIENCE = 1.0
#: Columns that a frame of a clip takes in a terminal.
_FRAME_COLUMNS = 12


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False, soft_wrap=False)


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_error(text: str) -> None:
    """Print one red line on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"Error: {text}", style="red"))


def show_interrupted(state: StateFolder) -> None:
    """Print one line on stderr: what an interrupted training left, and how to go on."""
    kept = f"The last complete state is kept in {state.folder}: the same command with --resume goes on from there."
    text = kept if state.exists() else "There was no complete state yet, so nothing is kept."
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"Interrupted. {text}"))


def show_written(path: object) -> None:
    """Say on stdout where the result lies."""
    _console().print(Text(f"Wrote {path}"), soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr beside ``what`` is being done, shown once that takes longer than a second."""
    console = Console(stderr=True)
    status = console.status(Text(what))
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


def _training_state(epoch: Epoch) -> str:
    left = round(epoch.seconds * (epoch.epochs - epoch.epoch))
    return (
        f"loss {epoch.loss:.4f}, metric {epoch.metric:.4f}, lr {epoch.learning_rate:.1e}, "
        f"{epoch.sequences_per_second:,.0f} sequences/s, at most {left} s left"
    )


@contextmanager
def _patient_bar(patience: float = _PATIENCE) -> Iterator[Callable[[str, float, float, str], None]]:
    """A bar on stderr, shown once the work takes longer than ``patience``: what, done, of how much, where it stands."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    began = time.monotonic()
    tasks: list[TaskID] = []

    def update(what: str, done: float, total: float, state: str) -> None:
        if not tasks:
            if time.monotonic() - began < patience:
                return
            progress.start()
            tasks.append(progress.add_task("", total=total, state=""))
        progress.update(tasks[0], completed=done, total=total, state=state, description=escape(what))

    try:
        yield update
    finally:
        if tasks:
            progress.stop()


def show_demo(result: DemoResult) -> None:
    """Print what the demonstration did and measured."""
    console = _console()
    if console.is_terminal:
        _show_clips(console, result.examples)
    for what, path in (
        ("clips, drawn", result.files.clips),
        ("dense LSTM, trained on such clips", result.files.dense),
        ("factorized", result.files.factorized),
        ("fine-tuned", result.files.tuned),
        ("learning curves, drawn", result.files.curves),
    ):
        console.print(Text(f"{what}: {path}"), soft_wrap=True)
    console.print()
    show_report(result.report)
    console.print()
    _show_curves(console, result.curves)
    console.print()
    table = _table([f"accuracy on {result.n_test:,} test clips", ""], left=1)
    table.add_row("dense", f"{result.dense_accuracy:.1%}")
    table.add_row("factorized, not trained any further", f"{result.factorized_accuracy:.1%}")
    table.add_row("factorized, then fine-tuned", f"{result.tuned_accuracy:.1%}")
    console.print(table)


def _show_curves(console: Console, curves: Sequence[Curve]) -> None:
    """Accuracy on the clips held back against epochs, drawn in characters."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(min(console.width, 80), 18)
    for curve, marker in zip(curves, "ox+*", strict=False):
        plotext.plot(range(len(curve.accuracies)), [100 * value for value in curve.accuracies], marker=marker)
    plotext.ylim(0, 100)
    plotext.yticks(range(0, 101, 20))
    plotext.xticks(range(max(len(curve.accuracies) for curve in curves)))
    plotext.xlabel("epochs")
    console.print(Text("accuracy on clips held back, %"), style="bold")
    console.print(Text(plotext.uncolorize(plotext.build())))
    for curve, marker in zip(curves, "ox+*", strict=False):
        console.print(Text(f"  {marker} {curve.name}"))


def _show_clips(console: Console, clips: Clips) -> None:
    """Frames side by side, two pixels to a character."""
    from PIL import Image
    from rich_pixels import Pixels

    height, width, _ = clips.frame_shape
    rows = 2 * max(1, round(_FRAME_COLUMNS * height / width / 2))
    for frames, label in zip(clips.x, clips.y, strict=True):
        console.print(Text(clips.class_names[label]))
        small = [Image.fromarray(frame.reshape(clips.frame_shape)).resize((_FRAME_COLUMNS, rows)) for frame in frames]
        strip = Image.new("RGB", ((_FRAME_COLUMNS + 1) * len(small), rows))
        for place, frame in enumerate(small):
            strip.paste(frame, (place * (_FRAME_COLUMNS + 1), 0))
        console.print(Pixels.from_image(strip))


def show_report(report: CompressionReport) -> None:
    """Print a report: a row for each matrix, the whole model, then what to know and to do."""
    console = _console()
    if report.matrices:
        console.print(_matrix_table(report.matrices))
    _show_model(console, report.model)
    if report.finetuned:
        console.print(_training_table(report.finetuned))
    _show_list(console, "Left dense", [f"{left.name}: {left.reason}." for left in report.left_dense])
    _show_list(console, "Note", report.notices)
    _show_list(console, "Advice", report.advice)


def show_inventory(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print what a checkpoint holds: its LSTMs, what looks alike, and what each matrix would cost."""
    console = _console()
    source = checkpoint.source
    console.print(
        Text(
            f"{source.name}: {len(checkpoint.tensors)} tensors, {source.n_params:,} parameters, {_size(source.n_bytes)}"
        ),
        soft_wrap=True,
    )
    table = _table(["LSTM", "inputs", "hidden", "layers", "directions", "projection", "biases"], left=1)
    for lstm in plan.lstms:
        table.add_row(
            Text(f"{lstm.name or '(top)'}{' (cell)' if lstm.kind == 'cell' else ''}"),
            *(f"{number:,}" for number in (lstm.input_size, lstm.hidden_size, lstm.num_layers)),
            "2" if lstm.bidirectional else "1",
            f"{lstm.proj_size:,}" if lstm.proj_size else "none",
            "yes" if lstm.bias else "no",
        )
    if plan.lstms:
        console.print(table)
    else:
        console.print("No LSTM found.")
    _show_list(console, "No LSTM", [f"{other.name or '(top)'}: {other.reason}." for other in plan.others])
    show_plan(checkpoint, plan)


def show_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print the shape that each matrix gets, and what that costs."""
    console = _console()
    table = _table(["matrix", "N", "R", "before", "after", "ratio"], left=1)
    for planned in plan.matrices:
        shape, part = planned.shape, planned.shape.part
        table.add_row(
            *_form(planned.name, (shape.out_size, shape.in_size), part.out_modes, part.in_modes, shape.gates),
            str(part.n_blocks),
            _ranks(part.ranks),
            f"{shape.dense_params:,}",
            f"{shape.n_params:,}",
            _ratio(shape.ratio),
        )
    if plan.matrices:
        console.print(table)
    _show_list(console, "Stays dense", [f"{left.name}: {left.reason}." for left in plan.left_dense])
    _show_list(console, "Note", (*checkpoint.notices, *plan.notices))


def show_inventory_json(checkpoint: Checkpoint, plan: Plan) -> None:
    """Print what :func:`show_inventory` shows as one JSON object."""
    source = checkpoint.source
    value = {
        "name": source.name,
        "params": source.n_params,
        "bytes": source.n_bytes,
        "lstms": [
            {
                "name": lstm.name,
                "kind": lstm.kind,
                "input_size": lstm.input_size,
                "hidden_size": lstm.hidden_size,
                "num_layers": lstm.num_layers,
                "bidirectional": lstm.bidirectional,
                "proj_size": lstm.proj_size,
                "bias": lstm.bias,
            }
            for lstm in plan.lstms
        ],
        "others": [{"name": other.name, "kind": other.kind, "reason": other.reason} for other in plan.others],
        "matrices": [_planned_json(planned.name, planned.shape) for planned in plan.matrices],
        "left_dense": [{"name": left.name, "reason": left.reason} for left in plan.left_dense],
        "notices": [*checkpoint.notices, *plan.notices],
    }
    show_json(value)


def _planned_json(name: str, shape: MatrixShape) -> dict[str, Any]:
    return {
        "name": name,
        "shape": [shape.out_size, shape.in_size],
        "in_modes": list(shape.part.in_modes),
        "out_modes": list(shape.part.out_modes),
        "gates": shape.gates,
        "cp_rank": shape.part.n_blocks,
        "tucker_ranks": list(shape.part.ranks),
        "params_before": shape.dense_params,
        "params_after": shape.n_params,
        "weights_ratio": shape.ratio,
    }


def _matrix_table(matrices: Sequence[MatrixReport]) -> Table:
    headers = ["matrix", "N", "R", "before", "after", "ratio", "weight\nerror", "SVD at\nequal size"]
    table = _table(headers, left=1)
    for row in matrices:
        table.add_row(
            *_form(row.name, row.shape, row.out_modes, row.in_modes, row.gates),
            str(row.cp_rank),
            _ranks(row.tucker_ranks),
            f"{row.params_before:,}",
            f"{row.params_after:,}",
            _ratio(row.weights_ratio),
            f"{row.weight_error:.3f}",
            f"{row.svd_error:.3f} (rank {row.svd_rank})" if row.svd_rank else "none so small",
        )
    return table


def _form(
    name: str, shape: tuple[int, int], out_modes: Sequence[int], in_modes: Sequence[int], gates: str
) -> Iterator[Text]:
    """The first cell of a matrix's row: what it is, and in what form."""
    each = "4 gates, each " if gates == "separate" else ""
    modes = (",".join(map(str, sizes)) for sizes in (out_modes, in_modes))
    yield Text(f"{name}\n  {shape[0]} x {shape[1]}\n  as {each}{' by '.join(modes)}")


def _ranks(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else ",".join(map(str, ranks))


def _show_model(console: Console, model: ModelReport) -> None:
    table = _table(["whole model", "before", "after", "ratio"], left=1)
    table.add_row("parameters", f"{model.params_before:,}", f"{model.params_after:,}", _ratio(model.ratio))
    table.add_row(
        "bytes",
        _size(model.bytes_before),
        _size(model.bytes_after),
        _ratio(model.bytes_before / max(model.bytes_after, 1)),
    )
    console.print(table)


def _training_table(trainings: Sequence[FineTuneReport]) -> Table:
    table = _table(["on sequences held back", "dense", "before", "fine-tuned", "epochs", "sequences"], left=1)
    for row in trainings:
        table.add_row(
            f"{row.metric} ({'higher' if row.higher_is_better else 'lower'} is better)",
            "not measured" if row.dense is None else f"{row.dense:.4f}",
            f"{row.before:.4f}",
            f"{row.after:.4f}",
            f"{row.epochs}",
            f"{row.n_held:,}",
        )
    return table


def _show_list(console: Console, title: str, texts: Sequence[str]) -> None:
    for text in texts:
        console.print(Text.assemble((f"{title}: ", "bold"), text), soft_wrap=False)


def _table(headers: Sequence[str], left: int) -> Table:
    """A plain table whose first ``left`` columns are text and the rest numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for position, header in enumerate(headers):
        text = position < left
        table.add_column(header, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def _ratio(value: float) -> str:
    return f"{value:,.0f}x" if value >= 1000 else f"{value:.3g}x" if value >= 10 else f"{value:.2f}x"


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
