"""Products with the matrices of an LSTM as nodes: by factors, or by a dense matrix formed of them in the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.contraction.layout import Multiplication, Permutation, plan_layout
from btcompress.contraction.letters import operand_letters
from btcompress.export.graphs import Nodes
from btcompress.export.operands import Operand, einsum
from btcompress.export.packed import Dequantizer
from btcompress.export.weights import StoredTensor, Weight
from btcompress.nn.ways import is_low_rank
from btcompress.shapes import BlockTermShape

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A matrix ``W``, shape ``(out, in)``, on its way into a graph.

    Attributes:
        nodes: of the graph.
        weight: the matrix.
        dequantizer: makes floats of packed numbers; None where there are none in the graph.
        rows: its rows in another order, int64; None for as they are.
        int8: whether a quantizer is to make integers of the constants: it knows them as second factors of products,
            once they are formed.
    """

    nodes: Nodes
    weight: Weight
    dequantizer: Dequantizer | None
    rows: Tensor | None = None
    int8: bool = False

    @property
    def is_low_rank(self) -> bool:
        """Whether it is a plain product of two factors."""
        return self.weight.shape is not None and is_low_rank(self.weight.shape)

    def low_rank(self) -> tuple[Operand, Operand]:
        """``(R, out)`` and ``(R, in)``: the product of the first, transposed, with the second is the matrix.

        Only of a matrix of low rank.
        """
        (part,) = self._parts()
        right, left = (Operand.rows_of(tensor, self.dequantizer) for tensor in self.weight.parts[0][:2])
        rows, fixed = part.kept_rows(), self.nodes.root
        if self.rows is not None:
            rows = self.rows if rows is None else rows[self.rows]
        return left.taken(fixed, rows, 1), right.taken(fixed, part.kept_columns(), 1)

    def dense(self) -> Operand:
        """``(out, in)``, formed in the graph where it has factors, or here for a quantizer."""
        fixed = self.nodes.root
        if self.int8 and self.weight.shape is not None:
            here = torch.cat([part.to(torch.float64).to_dense() for part in self._parts()]).float()
            return Operand(self.weight.name, here, self.weight.size).taken(fixed, self.rows, 0)
        if self.is_low_rank:
            left, right = self.low_rank()
            return self._formed(fixed.op("MatMul", left.permuted(fixed, 1, 0).value(fixed), right.value(fixed)))
        if self.weight.shape is None:
            return self._operand(self.weight.parts[0][0]).taken(fixed, self.rows, 0)
        parts = [
            self._dense_part(part, own).value(fixed) for part, own in zip(self._parts(), self.weight.parts, strict=True)
        ]
        formed = parts[0] if len(parts) == 1 else fixed.op("Concat", *parts, axis=0)
        return self._formed(formed).taken(fixed, self.rows, 0)

    def product(self, x: ir.Value, *, by_factors: bool) -> ir.Value:
        """``x W^T``, shape ``(..., in)`` to ``(..., out)``.

        Args:
            x: what is multiplied.
            by_factors: multiply by the factors, where there are some.
        """
        nodes, fixed = self.nodes, self.nodes.root
        if not by_factors or self.weight.shape is None:
            return nodes.op("MatMul", x, self.dense().permuted(fixed, 1, 0).value(fixed))
        if self.is_low_rank:
            left, right = self.low_rank()
            low = nodes.op("MatMul", x, right.permuted(fixed, 1, 0).value(fixed))
            return nodes.op("MatMul", low, left.value(fixed))
        out_size, in_size = self.weight.size
        flat = nodes.op("Reshape", x, nodes.integers(-1, in_size))
        parts = [self._chain(part, own, flat) for part, own in zip(self._parts(), self.weight.parts, strict=True)]
        z = parts[0] if len(parts) == 1 else nodes.op("Concat", *parts, axis=1)
        if self.rows is not None:
            z = nodes.op("Gather", z, nodes.index(self.rows), axis=1)
        # The last axis alone is another one.
        before = nodes.op("Slice", nodes.op("Shape", x), nodes.integers(0), nodes.integers(-1), nodes.integers(0))
        return nodes.op("Reshape", z, nodes.op("Concat", before, nodes.integers(out_size), axis=0))

    def _formed(self, value: ir.Value) -> Operand:
        return Operand(self.weight.name, value, self.weight.size)

    def _operand(self, tensor: StoredTensor) -> Operand:
        return Operand.of(tensor, self.dequantizer)

    def _parts(self) -> list[BlockTerm]:
        shape = self.weight.shape
        if shape is None:
            return []
        n = len(shape.part.tensor_shapes)
        tensors = ([tensor.values for tensor in own] for own in self.weight.parts)
        return [BlockTerm.of(shape.part, own[:n], own[n:]) for own in tensors]

    def _operands(self, shape: BlockTermShape, tensors: tuple[StoredTensor, ...]) -> list[Operand]:
        """Cores and factors; cores that are no parameters are the identity."""
        found = [self._operand(tensor) for tensor in tensors[: len(shape.tensor_shapes)]]
        if shape.core == "full":
            return found
        fixed, sizes = self.nodes.root, (1, shape.ranks[0], shape.ranks[0])
        if self.int8:
            return [Operand(f"{self.weight.name}.cores", torch.eye(sizes[1]).reshape(sizes), sizes), *found]
        zeros = fixed.op("ConstantOfShape", fixed.integers(*sizes[1:]))
        eye = fixed.op("Unsqueeze", fixed.op("EyeLike", zeros), fixed.integers(0))
        return [Operand(f"{self.weight.name}.cores", eye, sizes), *found]

    def _dense_part(self, part: BlockTerm, tensors: tuple[StoredTensor, ...]) -> Operand:
        shape = part.shape
        terms = operand_letters(shape.order)
        rows, columns = ("".join(term[axis] for term in terms[1:]) for axis in (2, 1))
        equation = f"{','.join(terms)}->{rows}{columns}"
        sizes = (shape.padded_out, shape.padded_in)
        fixed = self.nodes.root
        formed = einsum(fixed, equation, self._operands(shape, tensors), sizes)
        return formed.taken(fixed, part.kept_rows(), 0).taken(fixed, part.kept_columns(), 1)

    def _chain(self, part: BlockTerm, tensors: tuple[StoredTensor, ...], rows: ir.Value) -> ir.Value:
        """Rows ``(n, in)`` through the products that :mod:`btcompress.contraction` plans, to ``(n, out)``."""
        nodes, shape = self.nodes, part.shape
        if shape.column_order:
            rows = nodes.op("Gather", rows, nodes.index(part.orders[-1]), axis=1)
        if shape.padded_in != shape.in_size:
            rows = nodes.op("Pad", rows, nodes.integers(0, 0, 0, shape.padded_in - shape.in_size))
        operands = self._operands(shape, tensors)
        layout = plan_layout(shape.n_blocks, shape.in_modes, shape.out_modes, shape.ranks)
        running = rows
        for step in layout.steps:
            own = [operands[n] for n in step.operands]
            # As integers, what comes of several takes a quarter of the bytes: it may have so many more numbers.
            most = 4 * sum(math.prod(operand.shape) for operand in own) if self.int8 else 0
            met = einsum(nodes.root, step.equation, own, step.right, most=most)
            running = self._step(step, running, met)
        if layout.last is not None:
            running = self._permuted(running, layout.last)
        result = nodes.op("Reshape", running, nodes.integers(-1, layout.steps[-1].n_result))
        kept = part.kept_rows()
        return result if kept is None else nodes.op("Gather", result, nodes.index(kept), axis=1)

    def _step(self, step: Multiplication, running: ir.Value, met: Operand) -> ir.Value:
        """One product, as :func:`btcompress.contraction.running.follow` takes it."""
        nodes, order = self.nodes, step.order
        if step.copied is not None:
            running = self._permuted(running, step.copied)
        if step.new_first:
            order = (*order[:-2], order[-1], order[-2])
        left = self._permuted(running, Permutation(step.sizes, order))
        if step.by_block and len(order) > len(met.shape):
            met = met.reshaped(nodes.root, met.shape[0], 1, *met.shape[1:])
        if not step.new_first:
            return nodes.op("MatMul", left, met.value(nodes.root))
        if not self.int8:
            return nodes.op("MatMul", met.value(nodes.root), left)
        axes = [*range(len(order) - 2), len(order) - 1, len(order) - 2]
        left = nodes.op("Transpose", left, perm=axes)
        met = met.permuted(nodes.root, *range(len(met.shape) - 2), len(met.shape) - 1, len(met.shape) - 2)
        return nodes.op("Transpose", nodes.op("MatMul", left, met.value(nodes.root)), perm=axes)

    def _permuted(self, given: ir.Value, permutation: Permutation) -> ir.Value:
        nodes = self.nodes
        apart = nodes.op("Reshape", given, nodes.integers(*permutation.sizes))
        order = list(permutation.order)
        return apart if order == sorted(order) else nodes.op("Transpose", apart, perm=order)
