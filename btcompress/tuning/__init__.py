"""Which way to run each block-term layer of a model is the fastest on this machine: measured, pinned, and kept."""

from btcompress.tuning.pins import Pin, pin
from btcompress.tuning.tuning import MeasuredWays, Tuning, tune

__all__ = ["MeasuredWays", "Pin", "Tuning", "pin", "tune"]
