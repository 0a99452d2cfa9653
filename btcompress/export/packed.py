"""Numbers in few bits as they lie in an ONNX graph, and the operators that make floats of them.

A group stands for ``scale * (code - zero / 2)`` (:mod:`btcompress.packing`). What operators make of constants alone,
ONNX Runtime forms once, as a session is made; but ``DequantizeLinear`` it evaluates at each run, and multiplies by what
comes of it in 8-bit integers where it can. It has whole zero points too, so that half ones are taken off after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btcompress.export.graphs import Nodes
from btcompress.export.request import Dequantize
from btcompress.export.weights import StoredTensor
from btcompress.packing import Packed, pack_bits

if TYPE_CHECKING:
    import onnx_ir as ir

#: From this opset on, ONNX has integers of four bits, and scales of blocks.
_OPSET = 21

#: Bits of codes that ONNX has a type for.
_TYPED = (4, 8)


class Dequantizer:
    """Makes floats of packed tensors in a graph.

    Bits that lie without gaps take many operators to spread out, so those of all tensors lie one after another.

    Args:
        nodes: of the graph.
        tensors: that may be asked for; those that are not packed do not matter.
        when: they become floats.
    """

    def __init__(self, nodes: Nodes, tensors: Iterable[StoredTensor], when: Dequantize) -> None:
        self._nodes = nodes.root
        self._when = when
        self._found: dict[str, ir.Value] = {}
        packed = {tensor.name: tensor.stored for tensor in tensors if isinstance(tensor.stored, Packed)}
        self._zeros = _Bits(
            self._nodes,
            "zeros",
            {name: (each.zeros, each.integers.bits + 1) for name, each in packed.items()},
            unit=0.5,
        )
        self._codes = _Bits(
            self._nodes,
            "codes",
            {
                name: (each.codes, each.integers.bits)
                for name, each in packed.items()
                if each.integers.bits not in _TYPED
            },
        )

    def rows(self, name: str, packed: Packed) -> ir.Value:
        """The values of a packed tensor in float32, as the rows that :func:`btcompress.packing.to_rows` makes of it.

        Args:
            name: of the tensor.
            packed: its integers.
        """
        if name not in self._found:
            values = self._at_run(name, packed) if self._when == "run" else self._at_load(name, packed)
            self._found[name] = self._narrowed(values, packed.dtype)
        return self._found[name]

    def values(self, name: str, packed: Packed) -> ir.Value:
        """The same in the tensor's shape."""
        nodes, shape, rows = self._nodes, packed.shape, self.rows(name, packed)
        if len(shape) <= 2:
            return rows if len(shape) == 2 else nodes.op("Reshape", rows, nodes.integers(*shape))
        apart = nodes.op("Reshape", rows, nodes.integers(shape[0], shape[-1], *shape[1:-1]))
        return nodes.op("Transpose", apart, perm=[0, *range(2, len(shape)), 1])

    def _at_load(self, name: str, packed: Packed) -> ir.Value:
        import onnx_ir as ir

        nodes, (rows, columns), group = self._nodes, packed.codes.shape, _group(packed)
        n_groups = packed.integers.n_groups(columns)
        # Where all groups are whole, each is multiplied by its own without being written out.
        is_even = n_groups * group == columns
        sizes = (rows, n_groups, group) if is_even else (rows, columns)
        of_groups = (rows, n_groups, 1)
        scales = nodes.initializer(f"{name}.scales", ir.tensor(packed.scales.reshape(of_groups).numpy()))
        scales, zeros = nodes.op("Cast", scales, to=int(ir.DataType.FLOAT)), self._zeros.floats(name, of_groups)
        if not is_even:
            scales, zeros = (self._spread(each, rows, columns, group) for each in (scales, zeros))
        if packed.integers.bits in _TYPED:
            codes = nodes.op("Cast", self._typed(name, packed, sizes), to=int(ir.DataType.FLOAT))
        else:
            codes = self._codes.floats(name, sizes)
        values = nodes.op("Mul", nodes.op("Sub", codes, zeros), scales)
        return nodes.op("Reshape", values, nodes.integers(rows, columns)) if is_even else values

    def _at_run(self, name: str, packed: Packed) -> ir.Value:
        import onnx_ir as ir

        nodes, (rows, columns), group = self._nodes, packed.codes.shape, _group(packed)
        nodes.needs_opset(_OPSET)
        scales = nodes.initializer(f"{name}.scales", ir.tensor(packed.scales.numpy()))
        scales = nodes.op("Cast", scales, to=int(ir.DataType.FLOAT))
        if packed.integers.bits in _TYPED:
            codes = self._typed(name, packed, (rows, columns))
        else:
            codes = nodes.op("Cast", self._codes.floats(name, (rows, columns)), to=int(ir.DataType.UINT8))
        scaled = nodes.op("DequantizeLinear", codes, scales, axis=1, block_size=group)
        offsets = nodes.op("Mul", self._zeros.floats(name, packed.scales.shape), scales)
        offsets = nodes.op("Unsqueeze", offsets, nodes.integers(2))
        return nodes.op("Sub", scaled, self._spread(offsets, rows, columns, group))

    def _narrowed(self, values: ir.Value, dtype: torch.dtype) -> ir.Value:
        """Values as a tensor of this dtype has them."""
        import onnx_ir as ir

        narrow = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}.get(dtype)
        if narrow is None:
            return values
        return self._nodes.op("Cast", self._nodes.op("Cast", values, to=int(narrow)), to=int(ir.DataType.FLOAT))

    def _typed(self, name: str, packed: Packed, sizes: tuple[int, ...]) -> ir.Value:
        import ml_dtypes
        import onnx_ir as ir

        codes = packed.codes.reshape(sizes).numpy()
        if packed.integers.bits == 4:
            self._nodes.needs_opset(_OPSET)
            codes = codes.astype(ml_dtypes.uint4)
        return self._nodes.initializer(f"{name}.codes", ir.tensor(codes))

    def _spread(self, of_groups: ir.Value, rows: int, columns: int, group: int) -> ir.Value:
        """What each group has, shape ``(rows, groups, 1)``, for each of its columns."""
        nodes, n_groups = self._nodes, -(-columns // group)
        each = nodes.op("Expand", of_groups, nodes.integers(rows, n_groups, group))
        spread = nodes.op("Reshape", each, nodes.integers(rows, n_groups * group))
        if n_groups * group == columns:
            return spread
        return nodes.op("Slice", spread, nodes.integers(0), nodes.integers(columns), nodes.integers(1))


class _Bits:
    """Whole numbers of tensors, those of one width one after another without gaps.

    Args:
        nodes: of the graph.
        name: of the constants.
        numbers: and their bits, by the names of tensors.
        unit: what a number 1 stands for.
    """

    def __init__(self, nodes: Nodes, name: str, numbers: Mapping[str, tuple[Tensor, int]], unit: float = 1.0) -> None:
        self._nodes, self._name, self._numbers, self._unit = nodes, name, numbers, unit
        self._unpacked: dict[int, ir.Value] = {}

    def _of_width(self, width: int) -> dict[str, Tensor]:
        return {name: numbers.flatten() for name, (numbers, own) in self._numbers.items() if own == width}

    def floats(self, name: str, sizes: Sequence[int]) -> ir.Value:
        """The numbers of one tensor as float32, in a shape."""
        nodes, (numbers, width) = self._nodes, self._numbers[name]
        if width not in self._unpacked:
            self._unpacked[width] = self._spread_out(width)
        before = itertools.takewhile(lambda pair: pair[0] != name, self._of_width(width).items())
        start = sum(own.numel() for _, own in before)
        own = nodes.op("Slice", self._unpacked[width], nodes.integers(start), nodes.integers(start + numbers.numel()))
        return nodes.op("Reshape", own, nodes.integers(*sizes))

    def _spread_out(self, width: int) -> ir.Value:
        """All numbers of a width as float32, ``(n,)``."""
        import onnx_ir as ir

        nodes, numbers = self._nodes, torch.cat(list(self._of_width(width).values()))

        def constant(name: str, tensor: Tensor) -> ir.Value:
            return nodes.initializer(name, ir.tensor(tensor.numpy()))

        packed = constant(f"{self._name}.{width}", pack_bits(numbers, width))
        places = constant("bits.places", torch.arange(8, dtype=torch.uint8))
        shifted = nodes.op("BitShift", nodes.op("Unsqueeze", packed, nodes.integers(1)), places, direction="RIGHT")
        bits = nodes.op("BitwiseAnd", shifted, constant("bits.lowest", torch.ones(1, dtype=torch.uint8)))
        bits = nodes.op("Reshape", bits, nodes.integers(-1))
        used = nodes.op("Slice", bits, nodes.integers(0), nodes.integers(numbers.numel() * width))
        each = nodes.op("Cast", nodes.op("Reshape", used, nodes.integers(-1, width)), to=int(ir.DataType.FLOAT))
        worth = constant(f"{self._name}.{width}.worth", self._unit * 2.0 ** torch.arange(width))
        return nodes.op("MatMul", each, worth)


def _group(packed: Packed) -> int:
    """Columns of a group; a row may have fewer than a group can have."""
    return min(packed.integers.group, packed.codes.shape[1])
