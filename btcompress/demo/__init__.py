"""The demonstration: clips made from bundled digits, and a model to compress that watches them."""

from btcompress.demo.clips import CLASS_NAMES, Clips, make_clips

__all__ = ["CLASS_NAMES", "Clips", "make_clips"]
