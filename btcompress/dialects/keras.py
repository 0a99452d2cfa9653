"""Keras: ``lstm/lstm_cell/kernel``, ``recurrent_kernel``, ``bias``, which inputs are multiplied by from the left.

Gates are stacked ``i, f, c, o`` in an LSTM and ``z, r, h`` in a GRU. The layers that ran on cuDNN alone have two biases
for each gate, and lie in memory as cuDNN had them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from btcompress.dialects.arranging import Direction, as_cell, as_layers, in_order, stack, turned
from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.dialects.kerasconfig import ModelConfig, Told
from btcompress.shapes import Cell
from btcompress.text import listed

_OWN = ("kernel", "recurrent_kernel", "bias")
_CELL = re.compile(r"cell|.*_cell(?:_[0-9]+)?")
_SIDE = re.compile(r"(?P<side>forward|backward)_.+")
#: The recurrent matrix of a gate as Keras 1 called it.
_FIRST = re.compile(r".*_U_[iz]")
#: Names with dots, as some write Keras's into other files: told by a cell that is named after its layer.
_DOTTED = re.compile(
    r"(?:.*\.)?(?:forward_|backward_)?(?P<kind>lstm|gru|simple_rnn)(?:_[0-9]+)?\.(?P=kind)_cell(?:_[0-9]+)?\.(?:kernel"
    r"|recurrent_kernel|bias)",
    re.DOTALL,
)
_COPY = re.compile(r":[0-9]+")

_ORDERS: dict[Cell, str] = {"lstm": "ifgo", "gru": "zrn", "rnn": "h"}
_BY_GATES: dict[int, Cell] = {len(order): cell for cell, order in _ORDERS.items()}
_CLASSES: dict[str, Cell] = {
    **dict.fromkeys(("LSTM", "CuDNNLSTM", "LSTMCell"), "lstm"),
    **dict.fromkeys(("GRU", "CuDNNGRU", "GRUCell"), "gru"),
    **dict.fromkeys(("SimpleRNN", "SimpleRNNCell"), "rnn"),
}
#: Cells that make up one layer, each with weights and a name of its own.
_CELLS = "StackedRNNCells"
_BOTH = ["backward", "forward"]
_MOST_SHOWN = 8


class _MisfitError(Exception):
    """Why a layer cannot be brought over, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """The tensors of one direction of a layer.

    Attributes:
        path: what stands before their names.
        keys: by name, without the number of a copy.
    """

    path: tuple[str, ...]
    keys: Mapping[str, str]

    @property
    def layer(self) -> tuple[str, ...]:
        """The path without the cell that is within a layer."""
        return self.path[:-1] if len(self.path) > 1 and _CELL.fullmatch(self.path[-1]) else self.path

    @property
    def side(self) -> str | None:
        """``"forward"`` or ``"backward"`` of one that may be half of a bidirectional layer."""
        match = _SIDE.fullmatch(self.layer[-1])
        return match["side"] if match else None

    @property
    def is_cell(self) -> bool:
        """Whether no layer is around the cell."""
        return len(self.path) == 1 and _CELL.fullmatch(self.path[0]) is not None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer: what it is called, its one or two directions, what the file says of it, and what lies beside it."""

    name: str
    directions: tuple[_Weights, ...]
    told: tuple[Told, ...]
    siblings: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """All of its tensors."""
        return tuple(key for each in self.directions for key in each.keys.values())


def find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    """The recurrent layers of a state dict that are written so; see :class:`btcompress.dialects.Dialect`."""
    yield from recurrent_in(tensors)


def recurrent_in(tensors: Mapping[str, Tensor], config: ModelConfig | None = None, version: str = "") -> list[Found]:
    """The recurrent layers.

    Args:
        tensors: by path, with slashes, or with dots where a cell is named after its layer.
        config: what is said of them; None where nothing is.
        version: of the Keras that wrote the file, where it says so.
    """
    found: list[Found] = [*_of_keras_1(tensors)]
    assumed: list[str] = []
    for layer in _layers(tensors, config):
        try:
            found.append(_converted(layer, tensors))
            if _is_assumed(layer, tensors):
                assumed.append(layer.name)
        except _MisfitError as why:
            found.append(Refused(layer.name, layer.keys, str(why)))
    for n, each in enumerate(found):
        if isinstance(each, Converted) and each.name in assumed[:1]:
            found[n] = replace(each, notices=(*each.notices, _assumed(assumed, version)))
    return found


def others_in(tensors: Mapping[str, Tensor], config: ModelConfig | None = None) -> Iterator[Converted]:
    """Dense and embedding layers in torch's names, ``weight`` and ``bias``; of a file that Keras wrote.

    Args:
        tensors: by path, with slashes.
        config: what is said of them; None where nothing is.
    """
    for path, keys in _by_path(tensors).items():
        own = {name: tensors[key] for name, key in keys.items()}
        classes = {each.class_name for each in _said(config, path[-1])}
        name = _joined(path)
        if set(own) == {"embeddings"} and own["embeddings"].dim() == 2 and classes <= {"Embedding"}:
            yield Converted(name, tuple(keys.values()), partial(dict, weight=own["embeddings"]))
        elif set(own) in ({"kernel"}, {"kernel", "bias"}) and own["kernel"].dim() == 2 and classes <= {"Dense"}:
            bias = own.get("bias")
            if bias is None or bias.shape == own["kernel"].shape[1:]:
                yield Converted(name, tuple(keys.values()), partial(_dense, own["kernel"], bias))


def _of_keras_1(tensors: Mapping[str, Tensor]) -> Iterator[Refused]:
    """Layers that the first version wrote, one matrix for each gate: what they apply to gates is in no weight."""
    for path, keys in _by_path(tensors).items():
        if any(_FIRST.fullmatch(name) for name in keys):
            yield Refused(
                _joined(path),
                tuple(keys.values()),
                "written by Keras 1, which applied hard_sigmoid to gates unless told otherwise, and in a GRU the reset "
                "gate before the product with the recurrent matrix; torch's do neither. Load it with Keras 2, see what "
                "it applies, and save it again",
            )


def _dense(kernel: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {"weight": turned(kernel), **({} if bias is None else {"bias": bias})}


def _by_path(tensors: Mapping[str, Tensor]) -> dict[tuple[str, ...], dict[str, str]]:
    """Keys by the path before their last name, and by that."""
    found: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for key in tensors:
        mark = "." if _DOTTED.fullmatch(key) else "/"
        path, known, name = key.rpartition(mark)
        if known:
            found[tuple(path.split(mark))][_COPY.sub("", name)] = key
    return found


def _layers(tensors: Mapping[str, Tensor], config: ModelConfig | None) -> Iterator[_Layer]:
    by_path = _by_path(tensors)
    weights = [_Weights(path, keys) for path, keys in by_path.items() if {"kernel", "recurrent_kernel"} <= set(keys)]
    sides: dict[tuple[str, ...], list[_Weights]] = defaultdict(list)
    for each in weights:
        if each.side is not None:
            sides[each.layer[:-1]].append(each)
    pairs = {home: own for home, own in sides.items() if sorted(str(each.side) for each in own) == _BOTH}
    paired = [each for own in pairs.values() for each in own]
    homes = [
        *((each.layer, (each,)) for each in weights if each not in paired),
        *(
            (home or own[0].layer, tuple(sorted(own, key=lambda each: str(each.side), reverse=True)))
            for home, own in pairs.items()
        ),
    ]
    named: dict[str, list[tuple[_Weights, ...]]] = defaultdict(list)
    for home, directions in homes:
        named[_joined(home)].append(directions)
    for name, several in named.items():
        for directions in several:
            # Cells of one layer share what is around them.
            own_name = name if len(several) == 1 else _joined(directions[0].path)
            told = tuple(found for each in directions for found in _told(each, config))
            below = {
                "/".join(path[len(each.path) :])
                for each in directions
                for path in by_path
                if path[: len(each.path)] == each.path and len(path) > len(each.path)
            }
            beside = sorted({each for own in directions for each in own.keys if each not in _OWN})
            yield _Layer(own_name, directions, told, (*beside, *sorted(below)))


def _told(weights: _Weights, config: ModelConfig | None) -> tuple[Told, ...]:
    """What is said of a layer, by the innermost name that something is said of, with all that is around it."""
    every = [each for each in map(partial(_said, config), reversed(weights.layer)) if each]
    cells = _said(config, weights.path[-1])
    if cells and (not every or any(each.class_name == _CELLS for each in every[0])):
        every = [cells, *every]
    around = {name: found for said in every for each in said for name, found in each.around.items()}
    return tuple(replace(each, around=around) for each in every[0]) if every else ()


def _said(config: ModelConfig | None, name: str) -> tuple[Told, ...]:
    return () if config is None else config.layers.get(name, ())


def _joined(path: Sequence[str]) -> str:
    """The name of a path: with dots, and where a part comes twice one after the other, once."""
    parts = [part for n, part in enumerate(path) if not n or path[n - 1] != part]
    return ".".join(parts)


def _tensors(weights: _Weights, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[key] for name, key in weights.keys.items()}


def _is_cudnn(own: Mapping[str, Tensor]) -> bool:
    """Whether tensors lie as cuDNN had them: two biases for each row, one after the other."""
    return "bias" in own and own["bias"].dim() == 1 and own["bias"].shape[0] == 2 * own["kernel"].shape[1]


def _is_assumed(layer: _Layer, tensors: Mapping[str, Tensor]) -> bool:
    """Whether nothing says what a layer applies: what ran on cuDNN has no choice, and plain RNNs are told of anyway."""
    every = [_tensors(each, tensors) for each in layer.directions]
    return not layer.told and not all(_is_cudnn(own) or _cell_of(own) == "rnn" for own in every)


def _converted(layer: _Layer, tensors: Mapping[str, Tensor]) -> Converted:
    """The layer in torch's order.

    Raises:
        _MisfitError: it computes something else than torch's, or its tensors do not fit one another.
    """
    if layer.siblings:
        raise _MisfitError(
            f"beside its weights are {listed(layer.siblings, _MOST_SHOWN)}, so that it computes something else than "
            "torch's"
        )
    every = [_tensors(each, tensors) for each in layer.directions]
    cells = {_cell_of(own) for own in every}
    if len(cells) != 1 or len({own["kernel"].shape for own in every}) != 1:
        raise _MisfitError("its two directions have other sizes, which torch's cannot have")
    (cell,) = cells
    nonlinearities = {_applied(each, cell) for each in layer.told} or {None}
    if len(nonlinearities) > 1:
        raise _MisfitError("the file says different things of layers of this name: give each a name of its own")
    has_reset = all("bias" in own for own in every) or any(each.config.get("reset_after") for each in layer.told)
    notices = list(_notices(layer))
    if cell == "gru" and not has_reset:
        if layer.told:
            raise _MisfitError(_RESET_BEFORE)
        notices.append(f"{layer.name}: a GRU without biases, taken to have reset_after=True, as no weight says it.")
    make = partial(_made, every, cell, is_cell=layer.directions[0].is_cell and len(every) == 1)
    (nonlinearity,) = nonlinearities
    return Converted(
        layer.name,
        layer.keys,
        make,
        "relu" if nonlinearity == "relu" else "tanh" if nonlinearity == "tanh" else None,
        tuple(notices),
    )


_RESET_BEFORE = (
    "a GRU with reset_after=False: its reset gate acts before the product with the recurrent matrix, torch's after it, "
    "so that no weights make one the other. Train it with reset_after=True"
)


def _cell_of(own: Mapping[str, Tensor]) -> Cell:
    """What a direction computes, by the sizes of its tensors.

    Raises:
        _MisfitError: they do not fit one another.
    """
    kernel, recurrent, bias = own["kernel"], own["recurrent_kernel"], own.get("bias")
    if kernel.dim() > 2:
        raise _MisfitError(
            f"a convolutional layer, its kernels have shape {tuple(kernel.shape)}, and only matrices are factorized"
        )
    shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in own.items())
    misfit = _MisfitError(f"its tensors do not fit one another: {shapes}")
    if kernel.dim() != 2 or recurrent.dim() != 2 or not kernel.numel() or not recurrent.numel():
        raise misfit
    hidden, columns = recurrent.shape
    n_gates, rest = divmod(columns, hidden)
    if rest or n_gates not in _BY_GATES or kernel.shape[1] != columns:
        raise misfit
    if any(each.dtype != kernel.dtype or not each.is_floating_point() for each in own.values()):
        raise _MisfitError("its tensors have several dtypes, or none of floating-point numbers: save it unquantized")
    cell = _BY_GATES[n_gates]
    if bias is not None:
        if cell == "gru" and tuple(bias.shape) == (columns,):
            raise _MisfitError(_RESET_BEFORE)
        if tuple(bias.shape) not in _bias_shapes(cell, columns):
            raise misfit
    return cell


def _bias_shapes(cell: Cell, columns: int) -> tuple[tuple[int, ...], ...]:
    """The shapes that biases may have; twice as many as rows are those of cuDNN."""
    return {"lstm": ((columns,), (2 * columns,)), "gru": ((2, columns), (2 * columns,)), "rnn": ((columns,),)}[cell]


def _applied(told: Told, cell: Cell) -> str | None:
    """What a plain RNN applies; None for others.

    Raises:
        _MisfitError: the layer is of another class, or applies what torch's does not.
    """
    if told.class_name not in _CLASSES:
        raise _MisfitError(f"of the class {told.class_name[:200]}, which may compute something else than torch's")
    if _CLASSES[told.class_name] != cell:
        raise _MisfitError(f"a {told.class_name} as the file says, whose tensors have other sizes")
    activation = told.applied("activation", "tanh")
    if cell == "rnn":
        if activation not in ("tanh", "relu"):
            raise _MisfitError(f"it applies {activation[:80]}, where torch's RNN applies tanh or relu")
        return activation
    recurrent = told.applied("recurrent_activation", "sigmoid")
    if (activation, recurrent) != ("tanh", "sigmoid"):
        odd = f"recurrent_activation {recurrent[:80]}" if activation == "tanh" else f"activation {activation[:80]}"
        raise _MisfitError(
            f"its {odd} is not what torch's {cell.upper()} applies (tanh, and sigmoid to gates), so that nothing here "
            "could compute it. Train it on with these in Keras, and save it again"
        )
    if cell == "gru" and told.config.get("reset_after") is False:
        raise _MisfitError(_RESET_BEFORE)
    return None


def _notices(layer: _Layer) -> Iterator[str]:
    """What a user has to do differently in torch.

    Raises:
        _MisfitError: a bidirectional layer runs the other way round.
    """
    for told in layer.told[:1]:
        merged = told.around.get("Bidirectional", {}).get("merge_mode", "concat")
        backwards = bool({**told.around.get("RNN", {}), **told.config}.get("go_backwards"))
        if len(layer.directions) == 2:
            if backwards:
                raise _MisfitError("its forward layer has go_backwards=True, which torch's cannot have")
            if merged != "concat":
                yield (
                    f"{layer.name}: torch's layer gives both directions beside each other; combine them in your "
                    f"network, as merge_mode={str(merged)[:20]} did."
                )
        elif backwards:
            yield f"{layer.name}: go_backwards=True, so give torch's layer its inputs from the last to the first."


def _assumed(names: Sequence[str], version: str) -> str:
    text = f"{listed(names, _MOST_SHOWN)}: the file does not say what is applied; tanh is taken, and sigmoid to gates."
    numbers = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < (2, 3):
        text += (
            f" Keras {version[:20]} wrote it: before 2.3 Keras applied hard_sigmoid to gates unless told otherwise, "
            "which is another function. Given the same file, later versions apply sigmoid."
        )
    return text


def _made(every: Sequence[Mapping[str, Tensor]], cell: Cell, *, is_cell: bool) -> dict[str, Tensor]:
    directions = [_direction(own, cell) for own in every]
    return as_cell(directions[0]) if is_cell else as_layers(directions, bidirectional=len(directions) == 2)


def _direction(own: Mapping[str, Tensor], cell: Cell) -> Direction:
    kernel, recurrent, bias = own["kernel"], own["recurrent_kernel"], own.get("bias")
    hidden, order = recurrent.shape[0], _ORDERS[cell]
    if bias is not None and _is_cudnn(own):
        # cuDNN's matrices of each gate lie in memory as torch's do; only the shapes say otherwise.
        pieces = [dict(zip(order, each.split(hidden, dim=1), strict=True)) for each in (kernel, recurrent)]
        weights = [
            stack({gate: each.reshape(hidden, -1) for gate, each in own_pieces.items()}, cell) for own_pieces in pieces
        ]
        biases: Sequence[Tensor | None] = [in_order(each, order, cell) for each in bias.chunk(2)]
    else:
        weights = [in_order(turned(each), order, cell) for each in (kernel, recurrent)]
        both = (None, None) if bias is None else tuple(bias) if bias.dim() == 2 else (bias, None)
        biases = [None if each is None else in_order(each, order, cell) for each in both]
    return Direction(*weights, *biases)


DIALECT = Dialect("Keras", find)
