"""MXNet's and Gluon's layers and cells: ``lstm0_l0_i2h_weight``, ``r1_h2h_bias``, ``lstm0_h2r_weight``.

Gates are stacked as torch's are, r,z,o of a GRU being r,z,n, whose reset gate acts after the recurrent matrix: all as
cuDNN has them. ``unpack_weights`` of MXNet's older cells gives each gate its own, such as ``lstm_l0_i2h_f_weight``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial

from torch import Tensor

from btcompress.dialects.arranging import Direction, as_layers, stack
from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.shapes import GATES, Cell

_KEY = re.compile(
    r"(?P<prefix>(?:.*[._])?)(?P<part>i2h|h2h|h2r)_(?:(?P<gate>[ifcorz])_)?(?P<kind>weight|bias)", re.DOTALL
)
#: The end of a prefix that says a direction and a layer.
_PLACE = re.compile(r"(?:^|(?<=[._]))(?P<direction>[lr])(?P<layer>0|[1-9][0-9]{0,5})_\Z")
_FUSED = "_parameters"
_FUSED_WORDS = ("lstm", "gru", "rnn")

_BY_GATES: dict[int, Cell] = {len(names): cell for cell, names in GATES.items()}
#: torch's letters of gates that have each their own tensors, by MXNet's.
_SEPARATE: dict[frozenset[str], tuple[Cell, dict[str, str]]] = {
    frozenset("ifco"): ("lstm", {"i": "i", "f": "f", "c": "g", "o": "o"}),
    frozenset("rzo"): ("gru", {"r": "r", "z": "z", "o": "n"}),
}
_NAMES = {
    ("i2h", "weight"): "weight_ih",
    ("h2h", "weight"): "weight_hh",
    ("i2h", "bias"): "bias_ih",
    ("h2h", "bias"): "bias_hh",
    ("h2r", "weight"): "weight_hr",
}
_MATRIX_AXES = 2
_AXES = {"weig": _MATRIX_AXES, "bias": 1}

_Position = tuple[int, str]
#: The tensors of a direction of a layer by torch's names, each by MXNet's letter of its gate, or ``""`` for all.
_Own = dict[str, dict[str, Tensor]]


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    keys: dict[str, list[str]] = defaultdict(list)
    layers: dict[str, dict[_Position, _Own]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    names = set()
    for key, tensor in tensors.items():
        if key.endswith(("weight", "bias")) and (match := _KEY.fullmatch(key)):
            part = _NAMES.get((match["part"], match["kind"]))
            if part is not None:
                place = _PLACE.search(match["prefix"])
                prefix = match["prefix"][: place.start()] if place else match["prefix"]
                position = (int(place["layer"]), place["direction"]) if place else (0, "l")
                keys[prefix].append(key)
                layers[prefix][position][part][match["gate"] or ""] = tensor
        elif key.endswith(_FUSED) and tensor.dim() == 1 and _is_recurrent(key.removesuffix(_FUSED)):
            yield Refused(
                key.removesuffix(_FUSED),
                (key,),
                "a fused RNN of MXNet, whose one vector of parameters does not say what lies where. Unpack it "
                "(unpack_weights of its cell), or save the model from Gluon",
            )
    for prefix, own in layers.items():
        name = prefix.rstrip("._")
        found = _layer(name, tuple(keys[prefix]), own)
        if found is not None and name not in names:
            names.add(name)
            yield found


DIALECT = Dialect("MXNet", _find)


def _is_recurrent(name: str) -> bool:
    """Whether the last part of a name has a word for a recurrent layer."""
    last = re.split(r"[._]", name)[-1].lower()
    return any(word in last for word in _FUSED_WORDS)


def _layer(name: str, keys: tuple[str, ...], own: Mapping[_Position, _Own]) -> Found | None:
    """The layers and directions below one prefix; None if they are no recurrent layer's."""
    every = [tensor for parts in own.values() for gates in parts.values() for tensor in gates.values()]
    if not all(tensor.is_floating_point() and tensor.numel() for tensor in every):
        return None
    if any(tensor.dim() > _MATRIX_AXES for tensor in every):
        return Refused(name, keys, "a convolutional recurrent cell of MXNet, whose weights are no matrices")
    if not all(
        each.dim() == _AXES[part[:4]] for parts in own.values() for part in parts for each in parts[part].values()
    ):
        return None
    bidirectional = any(direction == "r" for _, direction in own)
    places = [(layer, each) for layer in range(len(own)) for each in ("lr" if bidirectional else "l")][: len(own)]
    if set(places) != set(own):
        return None
    cells = {_cell(own[place]) for place in places}
    cell = next(iter(cells))
    if len(cells) > 1 or cell is None or not all(_fits(own[place], cell) for place in places):
        return None
    sizes = [_sizes(own[place], cell) for place in places]
    width = (1 + bidirectional) * sizes[0][1]
    alike = all(
        size[1:] == sizes[0][1:] and size[0] == (sizes[0][0] if layer == 0 else width)
        for (layer, _), size in zip(places, sizes, strict=True)
    )
    if not alike:
        return Refused(name, keys, "its layers are of several sizes, which torch's layers are not; save each apart")
    return Converted(name, keys, partial(_make, [own[place] for place in places], cell, bidirectional=bidirectional))


def _sizes(own: _Own, cell: Cell) -> tuple[int, int, int]:
    """Inputs, numbers of the state that goes back, and hidden units."""
    inputs, state = next(iter(own["weight_ih"].values())), next(iter(own["weight_hh"].values()))
    return inputs.shape[1], state.shape[1], state.shape[0] // (len(GATES[cell]) if "" in own["weight_hh"] else 1)


def _cell(own: _Own) -> Cell | None:
    """What has so many rows for each hidden unit, or these gates."""
    if not {"weight_ih", "weight_hh"} <= own.keys():
        return None
    gates = frozenset(own["weight_hh"])
    if gates != {""}:
        return _SEPARATE[gates][0] if gates in _SEPARATE else None
    rows, state = own["weight_hh"][""].shape
    hidden = own["weight_hr"][""].shape[1] if "weight_hr" in own and "" in own["weight_hr"] else state
    return _BY_GATES.get(rows // hidden) if rows % hidden == 0 else None


def _fits(own: _Own, cell: Cell) -> bool:
    """Whether all tensors have the sizes that follow from the recurrent matrix, and gates of their own where it has."""
    gates = own["weight_hh"].keys()
    in_size, state, hidden = _sizes(own, cell)
    rows = hidden * (len(GATES[cell]) if "" in gates else 1)
    shapes = {"weight_ih": (rows, in_size), "weight_hh": (rows, state), "bias_ih": (rows,), "bias_hh": (rows,)}
    if "weight_hr" in own:
        projection = own["weight_hr"].get("")
        if cell != "lstm" or projection is None or tuple(projection.shape) != (state, hidden):
            return False
    elif state != hidden:
        return False
    return all(
        own[part].keys() == gates and all(tuple(tensor.shape) == shape for tensor in own[part].values())
        for part, shape in shapes.items()
        if part in own
    )


def _make(directions: list[_Own], cell: Cell, *, bidirectional: bool) -> dict[str, Tensor]:
    made = []
    for own in directions:
        letters = _SEPARATE[frozenset(own["weight_hh"])][1] if "" not in own["weight_hh"] else {}
        parts = {
            part: gates[""] if "" in gates else stack({letters[gate]: each for gate, each in gates.items()}, cell)
            for part, gates in own.items()
        }
        made.append(Direction(**parts))
    return as_layers(made, bidirectional=bidirectional)
