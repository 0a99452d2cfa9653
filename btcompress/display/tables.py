"""What all tables and lists share: columns, how names are written, and how a number that is worse looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from btcompress.display.console import line_text, name_text, table_width
from btcompress.display.names import Names, wrapped
from btcompress.wording import MARK, Worse, legend

if TYPE_CHECKING:
    from btcompress.reporting.values import Table

#: Texts of a kind, and rows of a table, that are printed; whoever wants all of very many reads JSON.
_MOST_TEXTS, _MOST_ROWS = 20, 500
#: Columns below which names are not folded, and columns between two of a table.
_NAME_WIDTH, _GAP = 20, 2
#: Columns beyond which sentences are hard to read.
_PROSE_WIDTH = 120
#: How a number that is worse than its yardstick looks.
_WORSE = "red"
#: How the titles of some lists look.
_TITLES = {"Warning": "bold yellow"}


class NumberTable:
    """A plain table of names and numbers, which fits a terminal of 60 columns as well: no number is ever cut.

    Where it is too wide, names are folded in the middle as long as they can still be told apart, and the columns of
    numbers stand below one another, in parts that each begin with the names.

    Args:
        first: header of the names.
        parts: headers of the columns of numbers; those of one part stay side by side where there is room for that.
        worse: a sentence that says what marked numbers are worse than.
    """

    def __init__(self, first: str, *parts: Sequence[str], worse: str = "") -> None:
        self._first, self._worse = first, worse
        self._headers = [header.split("\n") for part in parts for header in part]
        columns = iter(range(len(self._headers)))
        self._parts = [[next(columns) for _ in part] for part in parts]
        self._rows: list[tuple[list[str], tuple[str, ...]]] = []
        self._n_rows = 0

    @classmethod
    def of(cls, table: Table) -> NumberTable:
        """A table of a report: its texts in one column, names that rows share above them, other texts below names."""
        shown = cls(table.texts[-1 if table.grouped else 0], *table.parts, worse=table.worse)
        for name, rows in table.groups():
            if table.grouped:
                shown.add_row(name, *[""] * len(rows[0].numbers))
            for row in rows:
                first, *lines = row.narrow or row.texts[-1:]
                shown.add_row([f"{'  ' * (row.level + table.grouped)}{first}", *lines], *row.numbers)
        return shown

    @property
    def n_left_out(self) -> int:
        """Rows beyond those that are printed."""
        return self._n_rows - len(self._rows)

    @property
    def legend(self) -> str:
        """What the mark means, where any number has it."""
        return legend((number for _, numbers in self._rows for number in numbers), self._worse)

    def add_row(self, first: str | Sequence[str], *numbers: str) -> None:
        """Add a row.

        Args:
            first: a name, or several lines, of which the first one is a name.
            numbers: a cell for each other column.
        """
        self._n_rows += 1
        if len(self._rows) < _MOST_ROWS:
            name, *lines = [first] if isinstance(first, str) else first
            self._rows.append(([name_text(name), *map(line_text, lines)], numbers))

    def lines(self, room: int, fold: str = "…") -> Iterator[Text]:
        """The table in lines of at most ``room`` columns, as far as no number is wider; ``fold`` is put into names."""
        marked = [any(isinstance(row[1][column], Worse) for row in self._rows) for column in range(len(self._headers))]
        widths = [
            max(map(len, [*header, *(row[1][column] for row in self._rows)])) + marked[column]
            for column, header in enumerate(self._headers)
        ]
        beside_numbers = [first for first, numbers in self._rows if any(numbers)]
        natural = max(map(cell_len, [self._first, *(line for first in beside_numbers for line in first)]))
        names = Names([first[0] for first in beside_numbers], fold)
        least = max(self._least_width(), min(natural, _NAME_WIDTH))
        least = min(natural, names.fit(least, min(natural, room - _GAP - max(widths, default=0))))
        for number, columns in enumerate(_pieces(self._parts, widths, room - least)):
            if number:
                yield Text()
            of_columns = [widths[n] for n in columns]
            width = max(least, min(natural, room - _span(columns, widths)))
            yield from self._header(columns, widths, marked, width)
            for (name, *details), cells in self._rows:
                shown = [cells[n] for n in columns]
                if any(shown) or not any(cells):
                    # What has no numbers at all stands above those that have, and may go as far as it likes.
                    first, *more = names.lines(name, width if any(cells) else room)
                    yield _line(Text(first), [_cell(cells[n], marked[n]) for n in columns], of_columns, width)
                    if not number:
                        more += [line for detail in details for line in wrapped(detail, width)]
                    yield from map(Text, more)

    def _least_width(self) -> int:
        """Columns that the header of the names needs, and what stands below names, of which no word is broken."""
        words = [len(word) for first, _ in self._rows for line in first[1:] for word in line.split()]
        return max([len(word) for word in self._first.split()] + [4 + word for word in words], default=0)

    def _header(
        self, columns: Sequence[int], widths: Sequence[int], marked: Sequence[bool], width: int
    ) -> Iterator[Text]:
        headers = [wrapped(self._first, width), *([*self._headers[n]] for n in columns)]
        height = max(map(len, headers))
        for first, *cells in zip(*([""] * (height - len(header)) + header for header in headers), strict=True):
            texts = [Text(cell + " " * marked[n], "bold") for n, cell in zip(columns, cells, strict=True)]
            yield _line(Text(first, "bold"), texts, [widths[n] for n in columns], width)


def show_table(console: Console, table: NumberTable) -> None:
    """Print a table, below a very long one how many more rows there are, and what a mark in it means."""
    for line in table.lines(table_width(console), "..." if console.options.ascii_only else "…"):
        console.print(line, soft_wrap=True)
    if table.n_left_out:
        console.print(Text(_more_text(table.n_left_out)))
    if table.legend:
        console.print(Text(table.legend, _WORSE))


def show_tables(console: Console, tables: Iterable[NumberTable]) -> None:
    """Print tables with an empty line between two of them, as there is one between the pieces of one."""
    for number, table in enumerate(tables):
        if number:
            console.print()
        show_table(console, table)


def show_lists(console: Console, lists: Mapping[str, Sequence[str]]) -> None:
    """Print an empty line and, behind its title, each text; of very many of a title how many more there are."""
    if any(lists.values()):
        console.print()
    for title, texts in lists.items():
        more = len(texts) - _MOST_TEXTS
        for text in [*texts[:_MOST_TEXTS], *[_more_text(more)] * (more > 0)]:
            show_sentence(console, text, title)


def show_sentence(console: Console, text: str, title: str = "") -> None:
    """Print a sentence, perhaps behind a title; lines after the first are indented."""
    before = f"{title}: " if title else ""
    lines = [Text(line) for line in wrapped(before + line_text(text), min(console.width, _PROSE_WIDTH))]
    lines[0].stylize(_TITLES.get(title, "bold"), 0, len(before))
    for line in lines:
        console.print(line)


def _pieces(parts: Sequence[list[int]], widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns of each part together, next to those before them where there is room; too wide ones in several."""
    pieces: list[list[int]] = []
    for part in parts:
        if pieces and _span([*pieces[-1], *part], widths) <= room:
            pieces[-1] = pieces[-1] + part
        else:
            pieces += _split(part, widths, room)
    return pieces


def _split(part: Sequence[int], widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns in as few pieces as there is room for, none wider than it must be for that."""
    widest = max(_span([column], widths) for column in part)
    found = _filled(part, widths, room)
    for narrower in range(min(room, _span(part, widths)) - 1, widest - 1, -1):
        if len(tried := _filled(part, widths, narrower)) > len(found):
            break
        found = tried
    return found


def _filled(part: Sequence[int], widths: Sequence[int], room: int) -> list[list[int]]:
    pieces: list[list[int]] = []
    for column in part:
        if pieces and _span([*pieces[-1], column], widths) <= room:
            pieces[-1].append(column)
        else:
            pieces.append([column])
    return pieces


def _span(columns: Sequence[int], widths: Sequence[int]) -> int:
    """Columns of the terminal that these of a table take, with the gaps before them."""
    return sum(_GAP + widths[column] for column in columns)


def _cell(number: str, marked: bool) -> Text:
    """A number as it is shown, in a column in which any number has the mark or none has."""
    if isinstance(number, Worse):
        return Text(f"{number}{MARK}", _WORSE)
    return Text(f"{number} " if marked else number)


def _line(first: Text, cells: Sequence[Text], widths: Sequence[int], width: int) -> Text:
    """A name, and numbers that end below one another."""
    line, end = first, width
    for cell, cells_wide in zip(cells, widths, strict=True):
        end += _GAP + cells_wide
        line = line + " " * (end - cell.cell_len - line.cell_len) + cell if cell.plain.strip() else line
    line.rstrip()
    return line


def _more_text(count: int) -> str:
    return f"and {count:,} more (--json shows all)."
