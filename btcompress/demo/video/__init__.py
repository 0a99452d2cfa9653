"""The task on video: clips of moving digits, and the dense model that watches them."""

from btcompress.demo.video.clips import CLASS_NAMES, Clips, make_clips
from btcompress.demo.video.task import FULL, SMALL, Video

__all__ = ["CLASS_NAMES", "FULL", "SMALL", "Clips", "Video", "make_clips"]
