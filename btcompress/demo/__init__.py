"""The demonstration: clips made from bundled digits, and a model to compress that watches them."""

from btcompress.demo.video.clips import CLASS_NAMES, Clips, make_clips
from btcompress.demo.pictures import Curve
from btcompress.demo.sizes import FULL, SMALL, DemoSize
from btcompress.demo.story import DemoFiles, DemoProgress, DemoResult, run_demo

__all__ = [
    "CLASS_NAMES",
    "FULL",
    "SMALL",
    "Clips",
    "Curve",
    "DemoFiles",
    "DemoProgress",
    "DemoResult",
    "DemoSize",
    "make_clips",
    "run_demo",
]
