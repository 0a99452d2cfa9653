"""Graphs that compute matrix products in 8-bit integers, as ONNX Runtime's own quantizer makes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from btcompress.errors import BTCompressError

#: Operators that the quantizer writes for products.
_PRODUCTS = ("MatMulInteger", "DynamicQuantizeMatMul")


def require_quantizer() -> None:
    """Refuse to go on without ONNX Runtime.

    Raises:
        BTCompressError: it is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise BTCompressError(
            "computing in integers needs onnxruntime, which is not installed here. Run pip install 'btcompress[onnx]'."
        )


def quantize(source: Path, target: Path, nodes: Sequence[str] | None = None) -> None:
    """Weights of matrix products become 8-bit integers, inputs do at each run; within a ``Scan`` as well.

    Args:
        source: the graph.
        target: the file to write.
        nodes: names of the only ones that do; None for all.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            source,
            target,
            nodes_to_quantize=None if nodes is None else list(nodes),
            weight_type=QuantType.QInt8,
            extra_options={"EnableSubgraph": True},
        )


def has_integers(path: Path) -> bool:
    """Whether a graph computes any product in integers, within a ``Scan`` or outside."""
    import onnx_ir as ir

    return any(node.op_type in _PRODUCTS for node in ir.load(path).graph.all_nodes())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that it logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
