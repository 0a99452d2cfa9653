"""How fast the LSTMs of a file run, beside the dense ones, on this machine."""

from btcompress.benching.measuring import OnBench, bench

__all__ = ["OnBench", "bench"]
