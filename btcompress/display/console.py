"""What all tables share: the console, columns, and how numbers and forms are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from btcompress.finetune import StateFile

#: Columns of output that goes to a file or a pipe.
_PIPED_WIDTH = 120


def make_console() -> Console:
    """The console for results, on stdout."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False, soft_wrap=False)


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_error(text: str) -> None:
    """Print one red line on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"Error: {text}", style="red"))


def show_interrupted(state: StateFile) -> None:
    """Print one line on stderr: what an interrupted training left, and how to go on."""
    kept = f"The last complete state is kept in {state.path}: the same command with --resume goes on from there."
    text = kept if state.exists() else "There was no complete state yet, so nothing is kept."
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"Interrupted. {text}"))


def show_written(path: object) -> None:
    """Say on stdout where the result lies."""
    make_console().print(Text(f"Wrote {path}"), soft_wrap=True)


def form_text(
    name: str,
    size: tuple[int, int],
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    gates: str,
    core: str,
    orders: Collection[str] = (),
) -> Text:
    """The first cell of a matrix's row: what it is, and in what form; ``orders`` are the sides that have one."""
    each = "4 gates, each " if gates == "separate" else ""
    modes = " by ".join(",".join(map(str, sizes)) for sizes in (out_modes, in_modes))
    if core == "identity":
        low_rank = len(in_modes) == 2 and (in_modes[1], out_modes[0]) == (1, 1)
        modes = "low rank" if low_rank else f"{modes} without a core"
    ordered = " and ".join({"row_order": "rows", "column_order": "columns"}[side] for side in orders)
    return Text(f"{name}\n  {size[0]} x {size[1]}\n  as {each}{modes}" + f"\n  {ordered} in order" * bool(ordered))


def rank_text(ranks: Sequence[int]) -> str:
    """One rank if all are equal, else all of them."""
    return str(ranks[0]) if len(set(ranks)) == 1 else ",".join(map(str, ranks))


def show_list(console: Console, title: str, texts: Sequence[str]) -> None:
    """Print each text behind the title."""
    for text in texts:
        console.print(Text.assemble((f"{title}: ", "bold"), text), soft_wrap=False)


def make_table(headers: Sequence[str], left: int) -> Table:
    """A plain table whose first ``left`` columns are text and the rest numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for position, header in enumerate(headers):
        text = position < left
        table.add_column(header, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table


def ratio_text(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}x" if value >= 1000 else f"{value:.3g}x" if value >= 10 else f"{value:.2f}x"
