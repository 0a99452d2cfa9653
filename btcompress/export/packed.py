"""Numbers in few bits as they lie in an ONNX graph, and the operators that make floats of them.

A group stands for ``scale * (code - zero / 2)`` (:mod:`btcompress.packing`). ``DequantizeLinear`` has whole zero
points, so that half ones are taken off after it. ONNX Runtime evaluates it at each run, and multiplies by what comes of
it in 8-bit integers where it can; products, casts and the like of constants it forms once, as a session is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from btcompress.export.graphs import Nodes
from btcompress.export.request import Dequantize
from btcompress.packing import Packed, pack_bits, rows_and_columns

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

#: From this opset on, ONNX has integers of four bits, and scales of blocks.
_OPSET = 21


def dequantized(nodes: Nodes, name: str, packed: Packed, dequantize: Dequantize) -> ir.Value:
    """The values of a packed tensor in float32, in its shape.

    Args:
        nodes: of the graph.
        name: of the tensor; its codes, scales and zeros are named as in a result file.
        packed: the integers.
        dequantize: when they become floats.
    """
    import onnx_ir as ir

    columns = rows_and_columns(packed.shape)[1]
    scales = nodes.op(
        "Cast", nodes.initializer(f"{name}.scales", ir.tensor(packed.scales.numpy())), to=int(ir.DataType.FLOAT)
    )
    zeros = _unpacked(nodes, f"{name}.zeros", packed.zeros, packed.integers.bits + 1)
    offsets = nodes.op("Mul", nodes.op("Mul", zeros, scales), nodes.number(0.5))
    codes = _codes(nodes, name, packed)
    if dequantize == "run":
        nodes.needs_opset(_OPSET)
        if codes.dtype == ir.DataType.FLOAT:
            codes = nodes.op("Cast", codes, to=int(ir.DataType.UINT8))
        block = min(packed.integers.group, columns)
        scaled = nodes.op("DequantizeLinear", codes, scales, axis=1, block_size=block)
    else:
        if codes.dtype != ir.DataType.FLOAT:
            codes = nodes.op("Cast", codes, to=int(ir.DataType.FLOAT))
        scaled = nodes.op("Mul", codes, _spread(nodes, scales, packed))
    values = nodes.op("Sub", scaled, _spread(nodes, offsets, packed))
    return _from_rows(nodes, values, packed.shape)


def _codes(nodes: Nodes, name: str, packed: Packed) -> ir.Value:
    """The codes, shape ``(rows, columns)``: of a type of ONNX's where it has one of so many bits, else unpacked."""
    import ml_dtypes
    import onnx_ir as ir

    types = {4: ml_dtypes.uint4, 8: "uint8"}
    kind = types.get(packed.integers.bits)
    if kind is None:
        return _unpacked(nodes, f"{name}.codes", packed.codes, packed.integers.bits)
    if packed.integers.bits == 4:
        nodes.needs_opset(_OPSET)
    return nodes.initializer(f"{name}.codes", ir.tensor(packed.codes.numpy().astype(kind)))


def _unpacked(nodes: Nodes, name: str, numbers: Tensor, width: int) -> ir.Value:
    """Whole numbers of so many bits, which lie in the graph without gaps, as float32 in their shape."""
    import numpy as np
    import onnx_ir as ir

    def constant(values: Any) -> ir.Value:  # noqa: ANN401 - what numpy makes an array of
        return nodes.initializer(f"{name}.{len(values)}", ir.tensor(values))

    packed = nodes.initializer(name, ir.tensor(pack_bits(numbers, width).numpy()))
    places = nodes.initializer("bits.places", ir.tensor(np.arange(8, dtype=np.uint8)))
    one = nodes.initializer("bits.one", ir.tensor(np.ones(1, dtype=np.uint8)))
    worth = nodes.initializer(f"bits.worth{width}", ir.tensor((2.0 ** np.arange(width, dtype=np.float32))[:, None]))
    shifted = nodes.op("BitShift", nodes.op("Unsqueeze", packed, nodes.integers(1)), places, direction="RIGHT")
    bits = nodes.op("Reshape", nodes.op("BitwiseAnd", shifted, one), nodes.integers(-1))
    used = nodes.op("Slice", bits, nodes.integers(0), nodes.integers(numbers.numel() * width), nodes.integers(0))
    each = nodes.op("Cast", nodes.op("Reshape", used, nodes.integers(-1, width)), to=int(ir.DataType.FLOAT))
    return nodes.op("Reshape", nodes.op("MatMul", each, worth), nodes.integers(*numbers.shape))


def _spread(nodes: Nodes, of_groups: ir.Value, packed: Packed) -> ir.Value:
    """What each group has, shape ``(rows, groups)``, for each of its columns."""
    rows, columns = rows_and_columns(packed.shape)
    n_groups, group = packed.integers.n_groups(columns), min(packed.integers.group, columns)
    each = nodes.op(
        "Expand", nodes.op("Unsqueeze", of_groups, nodes.integers(2)), nodes.integers(rows, n_groups, group)
    )
    spread = nodes.op("Reshape", each, nodes.integers(rows, n_groups * group))
    if n_groups * group == columns:
        return spread
    return nodes.op("Slice", spread, nodes.integers(0), nodes.integers(columns), nodes.integers(1))


def _from_rows(nodes: Nodes, rows: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """As :func:`btcompress.packing.from_rows`."""
    if len(shape) <= 2:
        return nodes.op("Reshape", rows, nodes.integers(*shape))
    apart = nodes.op("Reshape", rows, nodes.integers(shape[0], shape[-1], *shape[1:-1]))
    return nodes.op("Transpose", apart, perm=[0, *range(2, len(shape)), 1])
