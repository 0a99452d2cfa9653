"""TensorFlow 1: ``rnn/basic_lstm_cell/kernel`` of inputs and hidden state together, from the left; ``bias``.

Gates are stacked ``i, j, f, o`` in an LSTM and ``r, u`` in a GRU. An LSTM adds ``forget_bias`` to its forget gate as
it runs, which is in no file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from btcompress.dialects.arranging import Direction, as_cell, as_layers, in_order, raised, stack, turned
from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.shapes import Cell
from btcompress.text import listed

#: What is added to the forget gate by ``BasicLSTMCell`` and ``LSTMCell`` unless they are told otherwise.
_FORGET_BIAS = 1.0
_CELL = re.compile(r"(?P<kind>[a-z_]*(?:lstm|gru|rnn)_(?:fused_)?cell)(?:_[0-9]+)?")
#: Cells that add to their forget gate, all LSTMs, and the GRU whose reset gate acts as torch's does.
_FORGETFUL = ("basic_lstm_cell", "lstm_cell", "lstm_fused_cell")
_LSTMS = (*_FORGETFUL, "cudnn_compatible_lstm_cell")
_GRU = "cudnn_compatible_gru_cell"
#: Of each cell the tensor that its sizes follow from, and how many gates this is for.
_FIRST = {**dict.fromkeys((*_LSTMS, "basic_rnn_cell"), "kernel"), _GRU: "gates/kernel"}
_GATES = {**dict.fromkeys(_LSTMS, 4), "basic_rnn_cell": 1, _GRU: 2}
_COPY = re.compile(r":[0-9]+")
#: What the first versions called them.
_OLD = {"weights": "kernel", "biases": "bias"}
_PEEPHOLES = ("w_f_diag", "w_i_diag", "w_o_diag", "wci", "wcf", "wco")
_SIDES = ("fw", "bw")


@dataclass(frozen=True, slots=True)
class _Cell:
    """The tensors of one cell.

    Attributes:
        path: of the cell.
        kind: its name without a number.
        keys: by what follows the path, without the number of a copy.
    """

    path: tuple[str, ...]
    kind: str
    keys: Mapping[str, str]

    @property
    def side(self) -> str | None:
        """``"fw"`` or ``"bw"`` of one that is half of a bidirectional layer."""
        return self.path[-2] if len(self.path) > 1 and self.path[-2] in _SIDES else None

    @property
    def home(self) -> tuple[str, ...]:
        """The path of the layer."""
        return self.path[:-2] if self.side else self.path[:-1]


def find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    """The recurrent layers of a state dict that are written so; see :class:`btcompress.dialects.Dialect`."""
    cells = _cells(tensors)
    homes: dict[tuple[str, ...], list[_Cell]] = defaultdict(list)
    for cell in cells:
        homes[cell.home].append(cell)
    for home, own in homes.items():
        if sorted(str(each.side) for each in own) == ["bw", "fw"]:
            yield _found(home, sorted(own, key=lambda each: str(each.side), reverse=True), tensors)
        else:
            for cell in own:
                yield _found(cell.path if len(own) > 1 else cell.home, [cell], tensors)


def _cells(tensors: Mapping[str, Tensor]) -> list[_Cell]:
    found: dict[tuple[tuple[str, ...], str], dict[str, str]] = defaultdict(dict)
    for key in tensors:
        parts = _COPY.sub("", key).split("/")
        for n in range(len(parts) - 1, 0, -1):
            match = _CELL.fullmatch(parts[n - 1])
            if match:
                name = "/".join(_OLD.get(part, part) for part in parts[n:])
                found[tuple(parts[:n]), match["kind"]][name] = key
                break
    return [
        _Cell(path, kind, keys)
        for (path, kind), keys in found.items()
        if "recurrent_kernel" not in keys and ("kernel" in keys or "gates/kernel" in keys)
    ]


def _found(home: tuple[str, ...], cells: Sequence[_Cell], tensors: Mapping[str, Tensor]) -> Found:
    name = ".".join(home or cells[0].path)
    every = [(cell.kind, {each: tensors[key] for each, key in _own(cell).items()}) for cell in cells]
    keys = tuple(key for cell in cells for key in _own(cell).values())
    faults = [fault for kind, own in every if (fault := _fault(kind, own)) is not None]
    if not faults and len({(kind, own[_FIRST[kind]].shape) for kind, own in every}) > 1:
        faults = ["its two directions have other sizes, which torch's cannot have"]
    if faults:
        return Refused(name, keys, faults[0])
    notices: tuple[str, ...] = ()
    if cells[0].kind in _FORGETFUL:
        notices = (
            f"{name}: {_FORGET_BIAS:g} is added to the biases of its forget gate, the forget_bias that TensorFlow "
            "adds as it runs unless told otherwise; no file says it, nor whether states are clipped, which none are.",
        )
    if len(cells) == 1 and "bw" in cells[0].path[:-1]:
        notices = (*notices, f"{name}: it runs over its inputs from the last to the first, so give it these so.")
    return Converted(name, keys, partial(_made, every, is_cell=not home), None, notices)


def _own(cell: _Cell) -> dict[str, str]:
    """The cell's own tensors: what optimizers keep for each lies below it."""
    own = {"kernel", "bias", "projection/kernel", "projection/bias", *_PEEPHOLES}
    projections = [f"candidate/{part}_projection" for part in ("input", "hidden")]
    own |= {f"{part}/{name}" for part in ("gates", "candidate", *projections) for name in ("kernel", "bias")}
    return {name: key for name, key in cell.keys.items() if name in own}


def _fault(kind: str, own: Mapping[str, Tensor]) -> str | None:
    """Why a cell cannot be brought over, as the end of a sentence; None where it can."""
    if kind == "gru_cell" and {"gates/kernel", "candidate/kernel"} <= set(own):
        return (
            "a GRUCell of TensorFlow 1: its reset gate acts before the product with the recurrent matrix, torch's "
            "after it, so that no weights make one the other. Train a CudnnCompatibleGRUCell, whose does as torch's"
        )
    if kind not in _FIRST:
        return f"a {kind[:80]}, which computes something else than torch's layers"
    peepholes = [name for name in _PEEPHOLES if name in own]
    if peepholes:
        return (
            f"an LSTM with peepholes ({listed(peepholes)}), which torch's does not have. Train it without "
            "(use_peepholes=False)"
        )
    shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in own.items())
    first = own.get(_FIRST[kind])
    if first is None or any(not each.is_floating_point() or each.dtype != first.dtype for each in own.values()):
        return f"not all of its tensors are there, in one dtype of floating-point numbers: {shapes}"
    if first.dim() > 2:
        return f"a convolutional layer, its kernel has shape {tuple(first.shape)}, and only matrices are factorized"
    expected = _shapes(kind, own)
    if expected is None or {name: tuple(each.shape) for name, each in own.items()} != expected:
        return f"its tensors do not fit one another: {shapes}"
    return None


def _shapes(kind: str, own: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]] | None:
    """The shapes that a cell's tensors must have, by the first of them; None where that is not one's."""
    first = own[_FIRST[kind]]
    if first.dim() != 2 or not first.numel():
        return None
    rows, columns = first.shape
    hidden, rest = divmod(columns, _GATES[kind])
    projection = own.get("projection/kernel")
    state = projection.shape[1] if projection is not None and projection.dim() == 2 else hidden
    n_inputs = rows - state
    if rest or n_inputs < 1 or not state:
        return None
    if kind == _GRU:
        return {
            "gates/kernel": (rows, columns),
            "gates/bias": (columns,),
            "candidate/input_projection/kernel": (n_inputs, hidden),
            "candidate/input_projection/bias": (hidden,),
            "candidate/hidden_projection/kernel": (hidden, hidden),
            "candidate/hidden_projection/bias": (hidden,),
        }
    expected: dict[str, tuple[int, ...]] = {"kernel": (rows, columns)}
    if "bias" in own:
        expected["bias"] = (columns,)
    if projection is not None and kind in _LSTMS:
        expected["projection/kernel"] = (hidden, state)
    return expected


def _made(every: Sequence[tuple[str, Mapping[str, Tensor]]], *, is_cell: bool) -> dict[str, Tensor]:
    directions = [_gru(own) if kind == _GRU else _other(kind, own) for kind, own in every]
    has_class = "projection/kernel" not in every[0][1]  # torch has no single step with a projection
    if is_cell and has_class:
        return as_cell(directions[0])
    return as_layers(directions, bidirectional=len(directions) == 2)


def _other(kind: str, own: Mapping[str, Tensor]) -> Direction:
    cell: Cell = "lstm" if kind in _LSTMS else "rnn"
    order = "igfo" if cell == "lstm" else "h"
    kernel, bias, projection = own["kernel"], own.get("bias"), own.get("projection/kernel")
    state = kernel.shape[1] // len(order) if projection is None else projection.shape[1]
    inputs, recurrent = kernel.split([kernel.shape[0] - state, state])
    weight_ih, weight_hh = (in_order(turned(each), order, cell) for each in (inputs, recurrent))
    if cell == "lstm" and kind in _FORGETFUL:
        zeros = kernel.new_zeros(kernel.shape[1])
        bias = raised(zeros if bias is None else in_order(bias, order, cell), "f", _FORGET_BIAS, cell)
    elif bias is not None:
        bias = in_order(bias, order, cell)
    return Direction(weight_ih, weight_hh, bias, None, None if projection is None else turned(projection))


def _gru(own: Mapping[str, Tensor]) -> Direction:
    gates, bias = own["gates/kernel"], own["gates/bias"]
    hidden = gates.shape[1] // _GATES[_GRU]
    weights, biases = [], []
    for part, rows in zip(("input", "hidden"), gates.split([gates.shape[0] - hidden, hidden]), strict=True):
        r, z = turned(rows).chunk(2)
        weights.append(stack({"r": r, "z": z, "n": turned(own[f"candidate/{part}_projection/kernel"])}, "gru"))
        own_bias = bias if part == "input" else bias.new_zeros(2 * hidden)
        r, z = own_bias.chunk(2)
        biases.append(stack({"r": r, "z": z, "n": own[f"candidate/{part}_projection/bias"]}, "gru"))
    return Direction(*weights, *biases)


DIALECT = Dialect("TensorFlow 1", find)
