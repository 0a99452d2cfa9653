"""The block-term form: how columns and rows are folded into modes, and what the blocks hold, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from looks import COLOURS, DARK, LARGE, SMALL, bare, tint
from matplotlib.patches import Polygon, Rectangle

from btcompress import BlockTermShape
from btcompress.demo.pictures import figure
from btcompress.shapes import GATES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The published case (Ye et al. 2018): frames of 57,600 numbers, four gates of 256 hidden units.
PUBLISHED = BlockTermShape((8, 20, 20, 18), (16, 4, 4, 4), (4, 4, 4, 4), 2)

#: How far along its side the column and the row lie that are followed through the figure.
_COLUMN, _ROW = 0.642, 0.43
#: What is drawn of a folded side: the width and height of a bar, and how far below it the next one lies.
_WIDTH, _BAR, _STEP = 34.0, 2.4, 5.0
#: In squares: between two factors, and between two blocks.
_GAP, _BLOCK_GAP = 3.5, 6.0


def draw_block_terms(shape: BlockTermShape = PUBLISHED) -> Figure:
    """Draw the form of a matrix, every number of its cores and factors as a small square.

    Args:
        shape: the form; of order 4, as a core is drawn as a matrix of ``R_1 R_2`` rows.
    """
    drawing = figure((8.4, 6.0))
    above, below = drawing.subplots(2, 1, height_ratios=(1.0, 2.0))
    indices = int(_COLUMN * shape.in_size), int(_ROW * shape.out_size)
    column, row = (
        tuple(map(int, np.unravel_index(index, modes)))
        for index, modes in zip(indices, (shape.in_modes, shape.out_modes), strict=True)
    )
    bare(above, (0, 100), (-4, shape.order * _STEP + 4))
    title = f"1. Fold: $W$ has {shape.out_size:,} rows and {shape.in_size:,} columns, {shape.dense_params:,} numbers"
    above.text(0, shape.order * _STEP + 2.5, title, fontsize=LARGE)
    _fold(above, 0, f"column $i$ = {indices[0]:,}", "i", shape.in_modes, column)
    _fold(above, 53, f"row $j$ = {indices[1]:,}", "j", shape.out_modes, row)
    _name_gates(above, 53, shape)
    _sum(below, shape, column, row)
    return drawing


def _fold(axes: Any, left: float, name: str, letter: str, modes: Sequence[int], place: Sequence[int]) -> None:  # noqa: ANN401
    """One bar for each mode; each is what one part of the bar above it holds."""
    for k, (size, own) in enumerate(zip(modes, place, strict=True)):
        base, part = (len(modes) - 1 - k) * _STEP, _WIDTH / size
        for each in range(size):
            colour = COLOURS[k] if each == own else tint(COLOURS[k], 0.25)
            axes.add_patch(
                Rectangle((left + each * part, base), part, _BAR, facecolor=colour, edgecolor="white", lw=0.6)
            )
        text = f"${letter}_{k + 1}$ = {own} of 0 … {size - 1}"
        axes.text(left + _WIDTH + 1, base + _BAR / 2, text, va="center", fontsize=SMALL)
        if k + 1 < len(modes):
            below = base - _STEP + _BAR
            corners = [
                (left + own * part, base),
                (left + (own + 1) * part, base),
                (left + _WIDTH, below),
                (left, below),
            ]
            axes.add_patch(Polygon(corners, facecolor=tint(COLOURS[k], 0.15), edgecolor="none"))
    axes.text(left, -3.4, f"{name} becomes ({', '.join(map(str, place))})", fontsize=SMALL)


def _name_gates(axes: Any, left: float, shape: BlockTermShape) -> None:  # noqa: ANN401
    """The gates over the parts of ``j_1`` that are theirs."""
    names = GATES["lstm"]
    for n, name in enumerate(names):
        middle = left + _WIDTH * (n + 0.5) / len(names)
        axes.text(middle, (shape.order - 1) * _STEP + _BAR + 0.5, f"gate {name}", fontsize=7, ha="center", color=DARK)


def _sum(axes: Any, shape: BlockTermShape, column: Sequence[int], row: Sequence[int]) -> None:  # noqa: ANN401
    """All blocks, one below another: the core beside its factors, and in these what makes one entry of ``W``."""
    bottoms = [-end + _GAP for end in accumulate(rank + _GAP for rank in shape.ranks)]
    core = shape.ranks[0] * shape.ranks[1], shape.ranks[2] * shape.ranks[3]
    tall = max(-bottoms[-1], core[0] + _GAP)
    left, longest = core[1] + 27, max(shape.mode_sizes)
    bare(axes, (0, left + longest + 62), (-shape.n_blocks * (tall + _BLOCK_GAP) - 8, 9), equal=True)
    title = f"2. Sum {shape.n_blocks} blocks: a core, and for each mode $k$ a factor; each square is one number"
    axes.text(0, 5, title, fontsize=LARGE)
    for n in range(shape.n_blocks):
        if n:
            axes.text(
                core[1] / 2, -n * (tall + _BLOCK_GAP) + _BLOCK_GAP / 2, "+", fontsize=14, va="center", ha="center"
            )
        top = -n * (tall + _BLOCK_GAP)
        _numbers(axes, (0, top - core[0]), core, DARK)
        axes.text(core[1] + 1.5, top - core[0] / 2, f"$G[{n + 1}]$", fontsize=LARGE, va="center")
        axes.text(
            0, top - core[0] - 1.5, f"{'·'.join(map(str, shape.ranks))} = {prod(shape.ranks)}", fontsize=SMALL, va="top"
        )
        for k, (rank, size) in enumerate(zip(shape.ranks, shape.mode_sizes, strict=True)):
            base = top + bottoms[k]
            _numbers(axes, (left, base), (rank, size), COLOURS[k])
            place = left + column[k] * shape.out_modes[k] + row[k]
            axes.add_patch(
                Rectangle((place - 0.4, base - 0.8), 1.8, rank + 1.6, facecolor="none", edgecolor="black", lw=1.2)
            )
            middle = base + rank / 2
            axes.text(left - 2, middle, f"$A_{k + 1}[{n + 1}]$", fontsize=LARGE, va="center", ha="right")
            count = f"{shape.in_modes[k]}·{shape.out_modes[k]} x {rank} = {rank * size}"
            axes.text(left + longest + 3, middle, count, fontsize=SMALL, va="center")
    numbers = [prod(shape.ranks), *(rank * size for rank, size in zip(shape.ranks, shape.mode_sizes, strict=True))]
    lines = (
        "framed: what $(i_k, j_k)$ takes of each factor; with the cores it gives the entry of row $j$ and column $i$",
        f"{shape.n_blocks} x ({' + '.join(map(str, numbers))}) = {shape.n_params:,} squares; "
        f"$W$, drawn alike, takes {shape.dense_params / shape.n_params:,.0f} times the area",
    )
    bottom = -shape.n_blocks * (tall + _BLOCK_GAP) + _BLOCK_GAP - 5
    for line, text in enumerate(lines):
        axes.text(0, bottom - 5 * line, text, fontsize=SMALL, va="top")


def _numbers(axes: Any, corner: tuple[float, float], size: tuple[int, int], colour: str) -> None:  # noqa: ANN401
    """As many squares as there are numbers, in two shades by turns, ``size`` being their rows and columns."""
    shades = np.array([tint(colour, 0.55), tint(colour, 0.85)])
    squares = shades[np.add.outer(*map(np.arange, size)) % 2]
    (left, bottom), (rows, columns) = corner, size
    axes.pcolormesh(np.arange(columns + 1) + left, np.arange(rows + 1) + bottom, squares)
