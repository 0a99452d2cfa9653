"""Reading checkpoints, with a spinner where it takes long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btcompress.compression import Opened
    from btcompress.recipe import FactorizeStep


def opened(model: Path, step: FactorizeStep) -> Opened:
    """Read what is to be factorized, and show meanwhile that it is being read."""
    from btcompress import display
    from btcompress.compression import Opened

    with display.working(f"reading {model}"):
        return Opened.of(model, step)
