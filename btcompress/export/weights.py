"""The matrices and biases of a recurrent layer with how they are stored, from a result or from a module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.checkpoint.compressed import part_names
from btcompress.checkpoint.precisions import Stored
from btcompress.export.cells import OnnxCell, cell_of
from btcompress.export.modules import kind_of
from btcompress.nn.weight import BTWeight
from btcompress.shapes import MatrixShape, Nonlinearity


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor and how it is stored.

    Attributes:
        name: in the result, or in the module.
        values: the tensor.
        stored: its integers, or the floats its numbers are stored as; None where it is stored as it is.
    """

    name: str
    values: Tensor
    stored: Stored | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A matrix of a recurrent layer.

    Attributes:
        name: of the matrix, such as ``weight_ih_l0``, below whatever prefix.
        shape: in block-term form; None for a dense matrix.
        parts: for each block-term form its tensors: cores if stored, then factors, then orders; the matrix alone where
            it is dense.
    """

    name: str
    shape: MatrixShape | None
    parts: tuple[tuple[StoredTensor, ...], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.shape is not None:
            return self.shape.out_size, self.shape.in_size
        rows, columns = self.parts[0][0].values.shape
        return rows, columns


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """One direction of a layer.

    Attributes:
        suffix: ``"l0"``, ``"l0_reverse"`` and so on.
        w: ``W``.
        u: ``U``.
        p: ``P``, where there is a projection.
        biases: both, where there are some.
        cell: what is computed with them.
    """

    suffix: str
    w: Weight
    u: Weight
    p: Weight | None
    biases: tuple[StoredTensor, StoredTensor] | None
    cell: OnnxCell


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """All of an LSTM, a GRU or a plain RNN; a cell is one of a single layer.

    Attributes:
        name: of the layer; empty at the top.
        input_size: ``I``.
        hidden_size: ``H``.
        output_size: of hidden states: ``H``, or the projected size.
        layers: the directions of each layer, forward before reverse.
    """

    name: str
    input_size: int
    hidden_size: int
    output_size: int
    layers: tuple[tuple[Direction, ...], ...]

    @property
    def cell(self) -> OnnxCell:
        """What it computes at each step."""
        return self.layers[0][0].cell

    @property
    def n_directions(self) -> int:
        """Directions of each layer."""
        return len(self.layers[0])

    def layer(self, number: int) -> Weights:
        """Those of one layer alone."""
        input_size = self.layers[number][0].w.size[1]
        return replace(self, input_size=input_size, layers=(self.layers[number],))

    def tensors(self) -> Iterator[StoredTensor]:
        """All of them."""
        for direction in itertools.chain.from_iterable(self.layers):
            for weight in (direction.w, direction.u, direction.p):
                if weight is not None:
                    yield from itertools.chain.from_iterable(weight.parts)
            yield from direction.biases or ()

    @classmethod
    def of_result(cls, compressed: CompressedCheckpoint, entry: RecurrentEntry) -> Weights:
        """Those of a recurrent layer or cell of a result."""
        cell = cell_of(entry.type, entry.nonlinearity)

        def tensor(name: str) -> StoredTensor:
            return StoredTensor(name, compressed.tensors[name], compressed.stored.get(name))

        def weight(key: str) -> Weight:
            if key not in compressed.matrices:
                return Weight(key, None, ((tensor(key),),))
            shape = compressed.matrices[key].shape
            return Weight(key, shape, tuple(tuple(map(tensor, names)) for names in part_names(key, shape)))

        def direction(suffix: str) -> Direction:
            w, u, p, b_w, b_u = (f"{entry.prefix}{name}{suffix}" for name in _NAMES)
            return Direction(
                suffix.removeprefix("_") or "l0",
                weight(w),
                weight(u),
                weight(p) if entry.proj_size else None,
                (tensor(b_w), tensor(b_u)) if entry.bias else None,
                cell,
            )

        output_size = entry.proj_size or entry.hidden_size
        directions = [direction(suffix) for suffix in entry.suffixes]
        n_directions = 1 + entry.bidirectional
        return cls(entry.name, entry.input_size, entry.hidden_size, output_size, _layers(directions, n_directions))

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> Weights:
        """Those of a recurrent layer or cell, dense or with block terms, under this name in its network."""
        prefix = f"{name}." if name else ""
        cell, is_cell = kind_of(module)
        nonlinearity: Nonlinearity = getattr(module, "nonlinearity", "tanh")
        onnx_cell, has_projection = cell_of(cell, nonlinearity), bool(getattr(module, "proj_size", 0))

        def direction(suffix: str) -> Direction:
            w, u, p, b_w, b_u = (f"{each}{suffix}" for each in _NAMES)
            return Direction(
                suffix.removeprefix("_") or "l0",
                weight_of(prefix + w, getattr(module, w)),
                weight_of(prefix + u, getattr(module, u)),
                weight_of(prefix + p, getattr(module, p)) if has_projection else None,
                biases_of(prefix, module, (b_w, b_u)) if module.bias else None,
                onnx_cell,
            )

        ends = ("", "_reverse") if getattr(module, "bidirectional", False) else ("",)
        n_layers: int = getattr(module, "num_layers", 1)
        suffixes = [""] if is_cell else [f"_l{layer}{end}" for layer in range(n_layers) for end in ends]
        directions = [direction(suffix) for suffix in suffixes]
        rows, outputs = directions[0].u.size
        hidden_size = rows // len(onnx_cell.gates)
        return cls(name, directions[0].w.size[1], hidden_size, outputs, _layers(directions, len(ends)))


_NAMES = ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")


def weight_of(name: str, weight: Tensor | BTWeight) -> Weight:
    """A matrix of a module, dense or in block-term form."""
    if isinstance(weight, Tensor):
        return Weight(name, None, ((StoredTensor(name, weight.detach()),),))
    names = part_names(name, weight.shape)
    parts = (
        tuple(
            StoredTensor(*pair) for pair in zip(own, (*(t.detach() for t in part.tensors), *part.orders), strict=True)
        )
        for own, part in zip(names, weight.parts, strict=True)
    )
    return Weight(name, weight.shape, tuple(parts))


def biases_of(prefix: str, module: nn.Module, names: tuple[str, str]) -> tuple[StoredTensor, StoredTensor]:
    """Two vectors of a module."""
    first, second = (StoredTensor(prefix + name, module.get_parameter(name).detach()) for name in names)
    return first, second


def _layers(directions: Sequence[Direction], n: int) -> tuple[tuple[Direction, ...], ...]:
    return tuple(tuple(directions[k : k + n]) for k in range(0, len(directions), n))
