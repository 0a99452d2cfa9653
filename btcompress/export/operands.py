"""Constant operands of products: arranged here where they are floats, and in the graph where they are packed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btcompress.export.graphs import Nodes
from btcompress.export.packed import Dequantizer
from btcompress.export.weights import StoredTensor
from btcompress.packing import Packed, rows_and_columns, to_rows

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
    def of(cls, tensor: StoredTensor, dequantizer: Dequantizer | None) -> Operand:
        """A tensor as it is stored.

        Args:
            tensor: what it is.
            dequantizer: makes floats of packed numbers in the graph; None where they are to be floats there.
        """
        shape = tuple(tensor.values.shape)
        if isinstance(tensor.stored, Packed) and dequantizer is not None:
            return cls(tensor.name, dequantizer.values(tensor.name, tensor.stored), shape)
        return cls(tensor.name, _numbers(tensor), shape)

    @classmethod
    def rows_of(cls, tensor: StoredTensor, dequantizer: Dequantizer | None) -> Operand:
        """The same as the rows that :func:`btcompress.packing.to_rows` makes of it."""
        shape = rows_and_columns(tensor.values.shape)
        if isinstance(tensor.stored, Packed) and dequantizer is not None:
            return cls(tensor.name, dequantizer.rows(tensor.name, tensor.stored), shape)
        return cls(tensor.name, to_rows(_numbers(tensor)), shape)

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


def _numbers(tensor: StoredTensor) -> Tensor:
    """A tensor in the floats that it is stored as."""
    return tensor.values.cpu().to(tensor.stored if isinstance(tensor.stored, torch.dtype) else tensor.values.dtype)


def einsum(nodes: Nodes, equation: str, operands: Sequence[Operand], shape: Sequence[int], *, most: int = 0) -> Operand:
    """What an equation says of operands, in a shape; formed in the graph where there is more than one.

    An operand alone takes no more numbers than before; several may make many more, which no file should hold.

    Args:
        nodes: of the graph.
        equation: as :func:`torch.einsum` takes it.
        operands: in its order.
        shape: of what comes of it.
        most: numbers that several may make here already.
    """
    name, sizes = operands[-1].name, tuple(shape)
    here = [operand.content for operand in operands if isinstance(operand.content, Tensor)]
    if len(here) == len(operands) and (len(operands) == 1 or math.prod(sizes) <= most):
        contents = here if len(here) == 1 else [content.float() for content in here]
        return Operand(name, torch.einsum(equation, *contents).reshape(sizes), sizes)
    formed = nodes.op("Einsum", *(operand.value(nodes) for operand in operands), equation=equation)
    return Operand(name, nodes.op("Reshape", formed, nodes.integers(*sizes)), sizes)
