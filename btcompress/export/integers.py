"""Graphs that compute matrix products in 8-bit integers, as ONNX Runtime's own quantizer makes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from btcompress.errors import BTCompressError


def require_quantizer() -> None:
    """Refuse to go on without ONNX Runtime.

    Raises:
        BTCompressError: it is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise BTCompressError(
            "computing in integers needs onnxruntime, which is not installed here. Run pip install 'btcompress[onnx]'."
        )


#: Most of the bytes of the file with floats that the one with integers is to take.
_SHARE = 0.3


def quantize(source: Path, target: Path) -> None:
    """Weights of matrix products become 8-bit integers, inputs do at each run; within a ``Scan`` as well.

    Each column of a matrix has a scale of its own where the file stays below 30 % of the one with floats, which is more
    exact; else they share one.

    Args:
        source: the graph.
        target: the file to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for per_channel in (True, False):
        with _quiet():
            quantize_dynamic(
                source,
                target,
                weight_type=QuantType.QInt8,
                per_channel=per_channel,
                extra_options={"EnableSubgraph": True},
            )
        if target.stat().st_size <= _SHARE * source.stat().st_size:
            return


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that it logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
