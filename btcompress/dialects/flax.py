"""Flax's cells, of ``linen`` and ``nnx``: a kernel for each gate, ``ii`` to ``io`` and ``hi`` to ``ho``, or fused ones.

Kernels are multiplied from the right, so they are transposed. What computes what, ``flax/linen/recurrent.py`` says:
``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` (whose reset gate acts after the recurrent kernel, as torch's) and
``SimpleCell``; fused kernels are those of ``flax/nnx/nn/recurrent.py``, with gates i,f,g,o and r,z,n.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial

from torch import Tensor

from btcompress.dialects.arranging import Direction, as_layers, in_order, stack, turned
from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.shapes import GATES, Cell

_KEY = re.compile(
    r"(?P<prefix>(?:.*[./])?)(?P<dense>dense_[ih]|[ih][ifgorzn]|if_|[ih]h|[ih])[./](?P<part>kernel|bias)(?:[./]value)?",
    re.DOTALL,
)
#: Names of kernels of a minimal gated unit, and of a convolutional LSTM.
_MINIMAL = frozenset({"if", "in", "hf", "hn"})
_CONVOLUTIONAL = frozenset({"ih", "hh"})
_FUSED = frozenset({"dense_i", "dense_h"})
_BY_GATES: dict[int, Cell] = {len(names): cell for cell, names in GATES.items()}
_CELLS: dict[frozenset[str], Cell] = {
    frozenset(f"{side}{gate}" for side in "ih" for gate in GATES["lstm"]): "lstm",
    frozenset(f"{side}{gate}" for side in "ih" for gate in GATES["gru"]): "gru",
    frozenset({"i", "h"}): "rnn",
}
#: Dense layers that inputs go through, and those that hidden states go through.
_INPUTS = frozenset({"i", "dense_i", *(f"i{gate}" for names in GATES.values() for gate in names if gate != "h")})
_RECURRENT = frozenset({"h", "dense_h", *(f"h{gate}" for names in GATES.values() for gate in names if gate != "h")})
_MATRIX_AXES = 2

#: The tensors of a cell by the name of their dense layer, such as ``"ii"``, and ``"kernel"`` or ``"bias"``.
_Parts = Mapping[tuple[str, str], Tensor]


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    cells: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for key in tensors:
        if key.endswith(("kernel", "bias", "value")) and (match := _KEY.fullmatch(key)):
            cells[match["prefix"]][match["dense"].rstrip("_"), match["part"]] = key
    names = set()
    for prefix, own in cells.items():
        name = re.sub(r"[./]+", ".", prefix).strip(".")
        found = _layer(name, tuple(own.values()), {part: tensors[key] for part, key in own.items()})
        if found is not None and name not in names:
            names.add(name)
            yield found


DIALECT = Dialect("Flax", _find)


def _layer(name: str, keys: tuple[str, ...], parts: _Parts) -> Found | None:
    """The layer that a cell's tensors are; None if they are none."""
    kernels = {dense: tensor for (dense, part), tensor in parts.items() if part == "kernel"}
    present = frozenset(kernels)
    axes = {tensor.dim() for tensor in kernels.values()}
    if present == _CONVOLUTIONAL and min(axes) > _MATRIX_AXES:
        return Refused(name, keys, "a convolutional LSTM of Flax, whose kernels are no matrices")
    if present not in (_MINIMAL, _FUSED, *_CELLS) or not all(each.is_floating_point() for each in parts.values()):
        return None
    if axes == {_MATRIX_AXES + 1} and present not in (_FUSED, frozenset({"i", "h"})):
        reason = "its kernels are those of several cells, stacked by vmap or scan; save the parameters of each apart"
        return Refused(name, keys, f"a cell of Flax, and {reason}")
    if axes != {_MATRIX_AXES}:
        return None
    if present == _MINIMAL:
        return Refused(name, keys, "a minimal gated unit of Flax (MGUCell), which torch does not have")
    cell = _fused_cell(kernels) if present == _FUSED else _CELLS[present]
    if cell is None or not _fits(parts, len(GATES[cell]) if present == _FUSED else 1):
        return None
    return Converted(name, keys, partial(_make, parts, cell, is_fused=present == _FUSED))


def _fused_cell(kernels: Mapping[str, Tensor]) -> Cell | None:
    hidden, columns = kernels["dense_h"].shape
    return _BY_GATES.get(columns // hidden) if hidden and columns % hidden == 0 else None


def _fits(parts: _Parts, n_gates: int) -> bool:
    """Whether kernels are (I, G H) and (H, G H), and biases (G H), with G gates in each."""
    inputs, recurrent = (
        {tuple(tensor.shape) for (dense, part), tensor in parts.items() if part == "kernel" and dense in side}
        for side in (_INPUTS, _RECURRENT)
    )
    if len(inputs) != 1 or len(recurrent) != 1:
        return False
    (in_size, columns), (hidden, width) = *inputs, *recurrent
    biases = {tuple(tensor.shape) for (_, part), tensor in parts.items() if part == "bias"}
    return in_size > 0 and hidden > 0 and columns == width == n_gates * hidden and biases <= {(width,)}


def _make(parts: _Parts, cell: Cell, *, is_fused: bool) -> dict[str, Tensor]:
    """The tensors of torch's class; gates without a bias where others have one get zeros."""
    sides = []
    for side in (_INPUTS, _RECURRENT):
        own = {(dense[-1], part): tensor for (dense, part), tensor in parts.items() if dense in side}
        if is_fused or cell == "rnn":
            kernel, bias = own["ih"[side is _RECURRENT], "kernel"], own.get(("ih"[side is _RECURRENT], "bias"))
            weight = in_order(turned(kernel), "".join(GATES[cell]), cell)
        else:
            weight = stack({gate: turned(own[gate, "kernel"]) for gate in GATES[cell]}, cell)
            bias = None
            if any(part == "bias" for _, part in own):
                zeros = weight.new_zeros(weight.shape[0] // len(GATES[cell]))
                bias = stack({gate: own.get((gate, "bias"), zeros) for gate in GATES[cell]}, cell)
        sides.append((weight, bias))
    (weight_ih, bias_ih), (weight_hh, bias_hh) = sides
    return as_layers([Direction(weight_ih, weight_hh, bias_ih, bias_hh)])
