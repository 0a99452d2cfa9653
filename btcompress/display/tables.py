"""What all tables and lists share: columns, and how names, numbers and forms are written."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from btcompress.display.console import line_text, name_text

#: Texts of a kind, and rows of a table, that are printed; whoever wants all of very many reads JSON.
_MOST_TEXTS, _MOST_ROWS = 20, 500
#: Columns below which names are not folded, and columns between two of a table.
_NAME_WIDTH, _GAP = 20, 2


class NumberTable:
    """A plain table of names and numbers, as wide as the numbers need: no terminal is too narrow to show them whole.

    Args:
        headers: of the columns; the first one has names, and what belongs to them on further lines.
    """

    def __init__(self, headers: Sequence[str]) -> None:
        self._table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        self._table.add_column(headers[0], overflow="fold")
        for header in headers[1:]:
            self._table.add_column(header, justify="right", no_wrap=True)
        self._widths = [max(map(len, header.split("\n"))) for header in headers]
        self._widths[0] = max(map(len, headers[0].split()), default=0)
        self._n_rows = 0

    @property
    def n_left_out(self) -> int:
        """Rows beyond those that are printed."""
        return max(self._n_rows - _MOST_ROWS, 0)

    def add_row(self, first: str | Sequence[str], *numbers: str) -> None:
        """Add a row.

        Args:
            first: a name, or several lines, of which the first one is a name.
            numbers: a cell for each other column.
        """
        self._n_rows += 1
        if self.n_left_out:
            return
        name, *lines = [first] if isinstance(first, str) else first
        cell = [name_text(name), *map(line_text, lines)]
        words = [len(word) for line in cell[1:] for word in line.split()]
        self._widths[0] = max(self._widths[0], min(len(cell[0]), _NAME_WIDTH), *(2 + word for word in words))
        for column, number in enumerate(numbers, start=1):
            self._widths[column] = max(self._widths[column], len(number))
        self._table.add_row(Text("\n".join(cell)), *map(Text, numbers))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, for rich; print it uncropped."""
        needed = sum(self._widths) + _GAP * (len(self._widths) - 1)
        self._table.columns[0].min_width = self._widths[0]
        yield from console.render(self._table, options.update(width=max(options.max_width, needed)))


def show_table(console: Console, table: NumberTable) -> None:
    """Print a table, and below a very long one how many more rows there are."""
    console.print(table, crop=False)
    if table.n_left_out:
        console.print(Text(_more_text(table.n_left_out)))


def show_list(console: Console, title: str, texts: Sequence[str]) -> None:
    """Print each text behind the title, and of very many how many more there are."""
    for text in texts[:_MOST_TEXTS]:
        console.print(Text.assemble((f"{title}: ", "bold"), line_text(text)))
    if (more := len(texts) - _MOST_TEXTS) > 0:
        console.print(Text.assemble((f"{title}: ", "bold"), _more_text(more)))


def form_lines(
    name: str,
    size: tuple[int, int],
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    gates: str,
    core: str,
    orders: Collection[str] = (),
) -> list[str]:
    """The first cell of a matrix's row: what it is, and in what form.

    Args:
        name: its key.
        size: rows and columns.
        out_modes: of its block terms.
        in_modes: likewise.
        gates: ``"fused"`` or ``"separate"``.
        core: ``"full"`` or ``"identity"``; ``"none"`` for a dense matrix.
        orders: the sides that have one.
    """
    each = "4 gates, each " if gates == "separate" else ""
    modes = " by ".join(",".join(map(str, sizes)) for sizes in (out_modes, in_modes))
    if core == "identity":
        low_rank = len(in_modes) == 2 and (in_modes[1], out_modes[0]) == (1, 1)
        modes = "low rank" if low_rank else f"{modes} without a core"
    ordered = " and ".join({"row_order": "rows", "column_order": "columns"}[side] for side in orders)
    if core == "none":
        modes = "dense"
    lines = [name, f"  {size[0]} x {size[1]}", f"  as {each}{modes}"]
    return [*lines, f"  {ordered} in order"] if ordered else lines


def error_of(lstm: str) -> str:
    """What a row of hidden-state errors begins with."""
    return f"hidden-state error{f' of {lstm}' if lstm else ''}"


def rank_text(ranks: Sequence[int]) -> str:
    """One rank if all are equal, else all of them."""
    return str(ranks[0]) if len(set(ranks)) == 1 else ",".join(map(str, ranks))


def ratio_text(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}x" if value >= 1000 else f"{value:.3g}x" if value >= 10 else f"{value:.2f}x"


def _more_text(count: int) -> str:
    return f"and {count:,} more (--json shows all)."
