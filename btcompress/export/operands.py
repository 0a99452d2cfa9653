"""Constant operands of products: arranged here where they are floats, and in the graph where they are packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btcompress.export.graphs import Nodes
from btcompress.export.packed import dequantized
from btcompress.export.request import Dequantize
from btcompress.export.weights import StoredTensor
from btcompress.packing import Packed

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A constant on its way into a graph.

    Attributes:
        name: that it has in the graph as a constant.
        content: its numbers; or a value of the graph, where they are formed there.
        shape: of it.
    """

    name: str
    content: Tensor | ir.Value
    shape: tuple[int, ...]

    @classmethod
    def of(cls, nodes: Nodes, tensor: StoredTensor, dequantize: Dequantize | None) -> Operand:
        """A tensor as it is stored.

        Args:
            nodes: of the graph, where packed numbers become floats.
            tensor: what it is.
            dequantize: when these become floats; None for now, so that they are floats in the graph.
        """
        shape = tuple(tensor.values.shape)
        if isinstance(tensor.stored, Packed) and dequantize is not None:
            return cls(tensor.name, dequantized(nodes, tensor.name, tensor.stored, dequantize), shape)
        values = tensor.values
        if isinstance(tensor.stored, torch.dtype):
            values = values.to(tensor.stored)
        return cls(tensor.name, values.cpu(), shape)

    def permuted(self, nodes: Nodes, *axes: int) -> Operand:
        """Its axes in another order."""
        shape = tuple(self.shape[axis] for axis in axes)
        if isinstance(self.content, Tensor):
            return Operand(self.name, self.content.permute(axes), shape)
        return Operand(self.name, nodes.op("Transpose", self.content, perm=list(axes)), shape)

    def reshaped(self, nodes: Nodes, *sizes: int) -> Operand:
        """Its numbers in another shape."""
        if isinstance(self.content, Tensor):
            return Operand(self.name, self.content.reshape(sizes), sizes)
        return Operand(self.name, nodes.op("Reshape", self.content, nodes.integers(*sizes)), sizes)

    def taken(self, nodes: Nodes, index: Tensor | None, axis: int) -> Operand:
        """What an index says of one axis, in its order; all of it where there is no index."""
        if index is None:
            return self
        shape = (*self.shape[:axis], len(index), *self.shape[axis + 1 :])
        if isinstance(self.content, Tensor):
            return Operand(self.name, self.content.index_select(axis, index), shape)
        picked = nodes.op("Gather", self.content, nodes.index(index), axis=axis)
        return Operand(self.name, picked, shape)

    def value(self, nodes: Nodes) -> ir.Value:
        """It as a value of the graph, in float32."""
        return nodes.weight(self.name, self.content) if isinstance(self.content, Tensor) else self.content


def einsum(nodes: Nodes, equation: str, operands: Sequence[Operand], shape: Sequence[int]) -> Operand:
    """What an equation says of operands, in a shape; formed in the graph where there is more than one.

    An operand alone takes no more numbers than before; several may make many more, which no file should hold.
    """
    name, sizes = operands[0].name, tuple(shape)
    if len(operands) == 1 and isinstance(operands[0].content, Tensor):
        return Operand(name, torch.einsum(equation, operands[0].content).reshape(sizes), sizes)
    formed = nodes.op("Einsum", *(operand.value(nodes) for operand in operands), equation=equation)
    return Operand(name, nodes.op("Reshape", formed, nodes.integers(*sizes)), sizes)
