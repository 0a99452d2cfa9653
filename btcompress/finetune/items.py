"""Items and batches of a user's Dataset: what they consist of, and which of them do not make one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from btcompress.errors import BTCompressError

#: Inputs, labels, and steps that count; a mapping may call the last ``length`` as well.
NAMES = ("x", "y", "lengths")
#: Initial states, of an LSTM both, else the first; only a mapping may hold them.
STATES = ("h0", "c0")
_MOST_SHOWN = 9


def parts_of(value: object) -> list[Any]:
    """Inputs, labels and lengths of an item or a batch; None for what a mapping leaves out."""
    if isinstance(value, Mapping):
        return [value.get("x"), value.get("y"), value.get("lengths", value.get("length"))]
    return list(value) if isinstance(value, tuple | list) else [value]


def states_of(value: object) -> list[Any]:
    """Initial ``h`` and ``c`` of an item or a batch; None for what it leaves out."""
    return [value.get(name) if isinstance(value, Mapping) else None for name in STATES]


def alike(name: str, rows: Sequence[int], items: Sequence[object]) -> list[Any]:
    """The items without what nobody asks for in them, found to make one batch.

    Args:
        name: of the data, for messages.
        rows: the positions of the items.
        items: what the Dataset gave there.

    Raises:
        BTCompressError: an item holds other than tensors, arrays and numbers, or differs from the first one in the
            shape or dtype of a part; the text names it.
    """
    needed = [_needed(item) for item in items]
    first = _described(needed[0])
    for row, item in zip(rows, needed, strict=True):
        described = _described(item)
        most = len(NAMES) + (len(STATES) if isinstance(item, Mapping) else 0)
        if not 1 <= len(described) <= most or None in described:
            kinds = [type(part).__name__ for part in parts_of(item)[:_MOST_SHOWN]]
            raise BTCompressError(
                f"{name}: item {row} is {type(item).__name__} of {', '.join(kinds)}, but x, (x, y), (x, y, length) or "
                "a mapping with these names, h0 and c0 is needed, of tensors, arrays or numbers."
            )
        if described != first:
            raise BTCompressError(
                f"{name}: item {row} is {', '.join(map(str, described))}, but item {rows[0]} is "
                f"{', '.join(map(str, first))}. Make all items alike: pad sequences to one number of steps, and give "
                "the length of each."
            )
    return needed


def some(rows: Sequence[int]) -> str:
    """The first of some positions, in words."""
    return ", ".join(map(str, rows[:_MOST_SHOWN])) + (" ..." if len(rows) > _MOST_SHOWN else "")


def _needed(item: object) -> object:
    if not isinstance(item, Mapping):
        return item
    return {name: item[name] for name in (*NAMES, "length", *STATES) if name in item}


def _described(item: object) -> list[str | None]:
    """Name, shape and dtype of each part of an item; None for what is neither a number nor numbers."""
    parts = (
        item.items() if isinstance(item, Mapping) else zip(NAMES + ("",) * _MOST_SHOWN, parts_of(item), strict=False)
    )
    return [_described_part(name, part) for name, part in parts]


def _described_part(name: str, part: object) -> str | None:
    if isinstance(part, Tensor):
        return f"{name} {part.dtype} {tuple(part.shape)}".replace("torch.", "")
    if isinstance(part, np.ndarray | np.generic):
        return f"{name} {part.dtype} {part.shape}" if part.dtype.kind in "fiub" else None
    return f"{name} {type(part).__name__}" if isinstance(part, bool | int | float) else None
