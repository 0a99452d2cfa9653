"""The demonstration: clips, learning curves, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from btcompress.display.console import make_console, show_line
from btcompress.display.report import show_report
from btcompress.display.tables import NumberTable, show_table

if TYPE_CHECKING:
    from btcompress.demo import Clips, Curve, DemoResult

#: Columns that a frame of a clip takes in a terminal.
_FRAME_COLUMNS = 12


def show_demo(result: DemoResult) -> None:
    """Print what the demonstration did and measured."""
    console = make_console()
    drawn_with_blocks = not console.options.ascii_only
    if console.is_terminal and drawn_with_blocks:
        _show_clips(console, result.examples)
    for what, path in (
        ("clips, drawn", result.files.clips),
        ("dense LSTM, trained on such clips", result.files.dense),
        ("factorized", result.files.factorized),
        ("fine-tuned", result.files.tuned),
        ("learning curves, drawn", result.files.curves),
    ):
        show_line(f"{what}: {path}")
    console.print()
    show_report(result.report)
    console.print()
    _show_curves(console, result.curves)
    console.print()
    table = NumberTable([f"accuracy on {result.n_test:,} test clips", ""])
    table.add_row("dense", f"{result.dense_accuracy:.1%}")
    table.add_row("factorized, not trained any further", f"{result.factorized_accuracy:.1%}")
    table.add_row("factorized, then fine-tuned", f"{result.tuned_accuracy:.1%}")
    show_table(console, table)


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
    """Frames side by side, two pixels to a character; nothing where what draws them is missing, as there is a file."""
    try:
        from PIL import Image
        from rich_pixels import Pixels
    except ImportError:
        return

    height, width, _ = clips.frame_shape
    rows = 2 * max(1, round(_FRAME_COLUMNS * height / width / 2))
    for frames, label in zip(clips.x, clips.y, strict=True):
        console.print(Text(clips.class_names[label]))
        small = [Image.fromarray(frame.reshape(clips.frame_shape)).resize((_FRAME_COLUMNS, rows)) for frame in frames]
        strip = Image.new("RGB", ((_FRAME_COLUMNS + 1) * len(small), rows))
        for place, frame in enumerate(small):
            strip.paste(frame, (place * (_FRAME_COLUMNS + 1), 0))
        console.print(Pixels.from_image(strip))
