"""Names in few columns: folded in the middle, so that both ends stay, as long as they can still be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from rich.cells import cell_len, chop_cells, set_cell_size

#: How much of what is kept of a name is from its end: the first of these with which all names look different.
_SHARES = (Fraction(1, 2), Fraction(2, 3), Fraction(1, 3), Fraction(5, 6))


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most so many columns, as far as no word is longer; those after the first are indented."""
    return _filled(text, width, lambda word, _: word)


def folded(word: str, width: int, gap: str, share: Fraction = _SHARES[0]) -> str:
    """The word where it has at most so many columns; else its two ends, with ``gap`` between them.

    Args:
        word: without spaces.
        width: columns.
        gap: what stands for what is left out.
        share: how much of what stays is from the end.
    """
    if cell_len(word) <= width:
        return word
    kept = width - len(gap)
    end = int(kept * share)
    return f"{set_cell_size(word, kept - end).rstrip()}{gap}{set_cell_size(word[::-1], end)[::-1].lstrip()}"


class Names:
    """The names of a table's rows, and how they are written in fewer columns than they have.

    Args:
        names: all of them; words behind spaces may follow, or stand before them.
        gap: what stands for what is left out.
    """

    def __init__(self, names: Sequence[str], gap: str) -> None:
        self._names, self._gap = set(names), gap
        self._whole, self._share = False, _SHARES[0]

    def fit(self, least: int, most: int) -> int:
        """The fewest columns from ``least`` on in which names that differ look different.

        If those are more than ``most``, names are broken into lines from now on, and ``least`` are enough.
        """
        for width in range(least, max(least, most) + 1):
            for self._share in _SHARES:
                if len({tuple(self.lines(name, width)) for name in self._names}) == len(self._names):
                    return width
        self._whole = True
        return least

    def lines(self, name: str, width: int) -> list[str]:
        """A name as it is written in so many columns."""
        if self._whole and cell_len(name) > width:
            return chop_cells(name, width)
        return _filled(name, width, lambda word, room: folded(word, room, self._gap, self._share))


def _filled(text: str, width: int, fold: Callable[[str, int], str]) -> list[str]:
    """Words in lines; ``fold`` shortens one that is longer than the columns left beside the indent."""
    indent = len(text) - len(text.lstrip(" "))
    lines, line = [], " " * indent
    for word in text.split():
        if line.strip() and cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = " " * (indent + 2)
        space = " " if line.strip() else ""
        line += space + fold(word, max(width - cell_len(line) - len(space), 1))
    return [*lines, line]
