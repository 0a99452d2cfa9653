"""A table of a report as a value, which a terminal, a page and Markdown each lay out in their way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from btcompress.wording import legend


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        texts: a cell for each column of text.
        numbers: a cell for each column of numbers; :class:`~btcompress.wording.Worse` where it is worse than what it
            is held against.
        level: how deep it is indented, where it tells more of a row above it.
        narrow: the texts where there is one column for all of them: a name, and lines below it. The last text alone
            where left out.
    """

    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    level: int = 0
    narrow: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, ...]:
        """A cell for each column."""
        return (*self.texts, *self.numbers)


@dataclass(frozen=True, slots=True)
class Table:
    r"""One table.

    Attributes:
        texts: headers of the columns of text; the cells of the first one are the names of rows.
        parts: headers of the columns of numbers, those together that belong together; ``"\n"`` stands for the space at
            which a narrow column breaks them.
        rows: from above.
        worse: a sentence that says what marked numbers are worse than.
        grouped: whether several rows share a name, which may stand above them in a row of its own.
    """

    texts: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...]
    rows: tuple[Row, ...]
    worse: str = ""
    grouped: bool = False

    @property
    def headers(self) -> tuple[str, ...]:
        """Of all columns, each on one line."""
        return (*self.texts, *(header.replace("\n", " ") for part in self.parts for header in part))

    @property
    def legend(self) -> str:
        """What the mark means, where any number has it."""
        return legend((number for row in self.rows for number in row.numbers), self.worse)

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        """The names, and the rows of each, which stand together."""
        found: list[tuple[str, list[Row]]] = []
        for row in self.rows:
            if not found or found[-1][0] != row.texts[0]:
                found.append((row.texts[0], []))
            found[-1][1].append(row)
        yield from found
