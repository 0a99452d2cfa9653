"""Draw the figures of docs/math.md anew.

    python docs/figures/draw.py [docs/pictures] [--measured docs/figures/measured.json]

What they show of a real checkpoint was measured by docs/figures/measure.py; all else is worked out here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from block_terms import draw_block_terms
from bytes_before_and_after import draw_bytes, published_bytes
from calibrating import draw_calibrating
from fitting import draw_fitting

from btcompress.demo.pictures import save_figure

HERE = Path(__file__).parent


def main() -> None:
    """Read the arguments and what was measured, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", default=HERE.parent / "pictures")
    parser.add_argument("--measured", type=Path, default=HERE / "measured.json")
    args = parser.parse_args()
    measured = json.loads(args.measured.read_text())
    name = measured["name"]
    figures = {
        "block_terms": draw_block_terms(),
        "fitting": draw_fitting(measured["fitting"], name),
        "calibrating": draw_calibrating(measured["calibrating"], name),
        "bytes": draw_bytes(
            {
                f"{name}: the whole file at an eighth of its bytes": measured["bytes"],
                "The LSTM of the published case: W in block terms, the rest as it was": published_bytes(),
            }
        ),
    }
    for file, drawing in figures.items():
        save_figure(drawing, args.pictures / f"{file}.png")


if __name__ == "__main__":
    main()
