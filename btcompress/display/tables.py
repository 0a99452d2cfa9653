"""What all tables and lists share: columns, and how names are written."""

from __future__ import annotations

from collections.abc import Sequence

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


def _more_text(count: int) -> str:
    return f"and {count:,} more (--json shows all)."
