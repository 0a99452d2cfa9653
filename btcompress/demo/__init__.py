"""The demonstration: clips made from bundled digits, and a model to compress that watches them."""

from btcompress.demo.clips import CLASS_NAMES, Clips, make_clips
from btcompress.demo.story import DemoEpoch, DemoResult, run_demo

__all__ = ["CLASS_NAMES", "Clips", "DemoEpoch", "DemoResult", "make_clips", "run_demo"]
