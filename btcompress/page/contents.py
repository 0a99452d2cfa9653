"""What a page is made of: frozen values, which the template lays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from btcompress.reporting.values import Table

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing and what it shows.

    Attributes:
        svg: the drawing, safe to be put into a page.
        caption: what it shows, in words.
    """

    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Tabulated:
    """A table and what it shows.

    Attributes:
        caption: what it shows, in words.
        table: the numbers.
        n_left_out: rows beyond those of the table.
    """

    caption: str
    table: Table
    n_left_out: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """A number to be seen first.

    Attributes:
        value: as it is written.
        words: what it is.
    """

    value: str
    words: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        anchor: to link to.
        title: the heading.
        texts: paragraphs.
        points: a list of sentences, each behind what it is, which may be empty.
        pictures: drawings.
        tables: numbers.
        listings: what is to be copied or read as it is, each behind what it is.
        hint: what to give to see more; empty where all is there.
    """

    anchor: str
    title: str
    texts: tuple[str, ...] = ()
    points: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Tabulated, ...] = ()
    listings: tuple[tuple[str, str], ...] = ()
    hint: str = ""
