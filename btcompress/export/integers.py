"""Graphs that compute matrix products in 8-bit integers, as ONNX Runtime's own quantizer makes them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from btcompress.errors import BTCompressError
from btcompress.export.quiet import without_logs


def require_quantizer() -> None:
    """Refuse to go on without ONNX Runtime.

    Raises:
        BTCompressError: it is not installed.
    """
    if find_spec("onnxruntime") is None:
        raise BTCompressError(
            "computing in integers needs onnxruntime, which is not installed here. Run pip install 'btcompress[onnx]'."
        )


#: Operators that the quantizer writes for products.
_PRODUCTS = ("MatMulInteger", "DynamicQuantizeMatMul")
#: Most of the bytes of the file with floats that the one with integers is to take.
_SHARE = 0.3


def quantize(source: Path, target: Path, nodes: Sequence[str] | None = None) -> None:
    """Weights of matrix products become 8-bit integers, inputs do at each run; within a ``Scan`` as well.

    Each column of a matrix has a scale of its own where the file stays below 30 % of the one with floats, which is more
    exact, or where only some nodes are chosen; else they share one.

    Args:
        source: the graph.
        target: the file to write.
        nodes: names of the only ones whose products are computed so; None for all.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for per_channel in (True, False):
        with without_logs():
            quantize_dynamic(
                source,
                target,
                nodes_to_quantize=None if nodes is None else list(nodes),
                weight_type=QuantType.QInt8,
                per_channel=per_channel,
                extra_options={"EnableSubgraph": True},
            )
        if nodes is not None or target.stat().st_size <= _SHARE * source.stat().st_size:
            return


def has_integers(path: Path) -> bool:
    """Whether a graph computes any product in integers, within a ``Scan`` or outside."""
    import onnx_ir as ir

    return any(node.op_type in _PRODUCTS for node in ir.load(path).graph.all_nodes())
