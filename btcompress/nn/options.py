"""Shape options as keyword arguments, the same for every module."""

from __future__ import annotations

from typing import TypedDict

from btcompress.modes import Modes
from btcompress.shapes import Gates


class ShapeOptions(TypedDict, total=False):
    """The fields of :class:`btcompress.modes.ShapeRequest`, which says what each means."""

    cp_rank: int
    tucker_rank: int | Modes
    in_modes: Modes | None
    out_modes: Modes | None
    order: int | None
    input_shape: Modes | None
    gates: Gates
