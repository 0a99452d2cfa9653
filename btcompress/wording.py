"""How forms, precisions, ranks, ratios and agreements are written, wherever they are shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btcompress.results import Agreement

#: Metrics from here on are written with an exponent.
_LONG = 1e6


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
    form, ordered = _form(out_modes, in_modes, gates, core), _ordered(orders)
    lines = [name, f"  {size[0]} x {size[1]}", f"  as {form}"]
    return [*lines, f"  {ordered}"] if ordered else lines


def form_text(
    out_modes: Sequence[int], in_modes: Sequence[int], gates: str, core: str, orders: Collection[str] = ()
) -> str:
    """The same form on one line; arguments as those of :func:`form_lines`."""
    form, ordered = _form(out_modes, in_modes, gates, core), _ordered(orders)
    return f"{form}, {ordered}" if ordered else form


def _form(out_modes: Sequence[int], in_modes: Sequence[int], gates: str, core: str) -> str:
    if core == "none":
        return "dense"
    each = "4 gates, each " if gates == "separate" else ""
    modes = " by ".join(",".join(map(str, sizes)) for sizes in (out_modes, in_modes))
    if core == "identity":
        low_rank = len(in_modes) == 2 and (in_modes[1], out_modes[0]) == (1, 1)
        modes = "low rank" if low_rank else f"{modes} without a core"
    return each + modes


def _ordered(orders: Collection[str]) -> str:
    sides = " and ".join({"row_order": "rows", "column_order": "columns"}[side] for side in orders)
    return f"{sides} in order" if sides else ""


def agreements(of_columns: Sequence[Agreement | None]) -> Iterator[tuple[str, list[str]]]:
    """A row of decisions on steps and one of those at the ends, as far as any of the columns has them."""
    for name, count, what in (("steps", "n_steps", "steps"), ("ends", "n_ends", "sequence ends")):
        shares = [None if each is None else getattr(each, name) for each in of_columns]
        if any(share is not None for share in shares):
            n = max(getattr(each, count) for each in of_columns if each is not None)
            cells = ["not measured" if share is None else f"{share:.1%}" for share in shares]
            yield f"decides as the dense one, of {n:,} {what}", cells


def error_of(lstm: str) -> str:
    """What a row of hidden-state errors begins with."""
    return f"hidden-state error{f' of {lstm}' if lstm else ''}"


def rank_text(ranks: Sequence[int]) -> str:
    """One rank if all are equal, else all of them."""
    return str(ranks[0]) if len(set(ranks)) == 1 else ",".join(map(str, ranks))


def ratio_text(value: float) -> str:
    """A ratio in three digits."""
    return f"{value:,.0f}x" if value >= 1000 else f"{value:.3g}x" if value >= 10 else f"{value:.2f}x"


def precision_words(precision: str, columns: int) -> str:
    """A precision as it is shown: one of whole rows by that name."""
    return ", ".join(_words(each, columns) for each in precision.split(", "))


def _words(precision: str, columns: int) -> str:
    kind, slash, group = precision.partition("/")
    return f"{kind} by rows" if slash and int(group) >= columns else precision


def metric_text(value: float) -> str:
    """The value of a metric."""
    return f"{value:.4f}" if abs(value) < _LONG else f"{value:.3g}"
