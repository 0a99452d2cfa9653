"""Graphs that compute matrix products in 8-bit integers, as ONNX Runtime's own quantizer makes them."""

from __future__ import annotations

import shutil
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
#: Rows of a matrix from which on its columns have scales of their own, which then take little beside it.
_LEAST_ROWS = 64


def quantize(source: Path, target: Path, nodes: Sequence[str] | None = None) -> None:
    """Weights of matrix products become 8-bit integers, inputs do at each run; within a ``Scan`` as well.

    Each column of a matrix of many rows has a scale of its own, which is more exact; those of others share one, as so
    many scales would take more bytes than they are worth.

    Args:
        source: the graph.
        target: the file to write.
        nodes: names of the only ones whose products are computed so; None for all.
    """
    import onnx_ir as ir

    tall, others = list[str](), list[str]()
    for node in ir.load(source).graph.all_nodes():
        if node.op_type in _ROWS and node.name and (nodes is None or node.name in nodes):
            weight = node.inputs[1]
            if weight is not None and weight.const_value is not None:
                sizes = weight.const_value.shape.numpy()
                is_tall = sizes[_ROWS[node.op_type]] >= _LEAST_ROWS
                # ONNX Runtime multiplies by a stack of matrices with one scale alone.
                (tall if is_tall and (len(sizes) == 2 or node.op_type == "LSTM") else others).append(node.name)
    for chosen, per_channel in ((tall, True), (others, False)):
        if chosen:
            _quantize(source, target, chosen, per_channel=per_channel)
            source = target
    if source != target:
        shutil.copyfile(source, target)


#: Where an operator's matrix has its rows, as inputs meet them.
_ROWS = {"MatMul": -2, "LSTM": -1}


def _quantize(source: Path, target: Path, nodes: list[str], *, per_channel: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with without_logs():
        quantize_dynamic(
            source,
            target,
            nodes_to_quantize=nodes,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
            extra_options={"EnableSubgraph": True},
        )


def has_integers(path: Path) -> bool:
    """Whether a graph computes any product in integers, within a ``Scan`` or outside."""
    import onnx_ir as ir

    return any(node.op_type in _PRODUCTS for node in ir.load(path).graph.all_nodes())
