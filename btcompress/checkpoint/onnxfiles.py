"""``.onnx`` files: their constants as tensors, and their recurrent nodes as layers.

A graph is data here: nothing of it is run but the steps that cut and order constants (``onnxconstants.py``).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from hashlib import sha256
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from btcompress.checkpoint.foreign import Foreign
from btcompress.checkpoint.onnxconstants import ONNX_DOMAINS, Constants, Place, Scope, constant_at, places_of
from btcompress.checkpoint.onnxgraphs import constants_of, graphs_of, initializers_of, needed, nodes_of_functions
from btcompress.checkpoint.onnxtensors import Data, UnheldError, text_of
from btcompress.checkpoint.tensors import byte_chunks, plain_tensor
from btcompress.dialects import Converted, Found, Refused
from btcompress.dialects.onnxnodes import DIALECT, RecurrentNode, layer_of
from btcompress.errors import CheckpointError
from btcompress.memory import require
from btcompress.text import listed

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto

_LSTM_INPUTS = {"W": 1, "R": 2, "B": 3, "P": 7}
_INPUTS = {"LSTM": _LSTM_INPUTS, "GRU": {"W": 1, "R": 2, "B": 3}, "RNN": {"W": 1, "R": 2, "B": 3}}
#: Recurrent operators that are others, and what they are.
_OTHERS = {
    "DynamicQuantizeLSTM": "a quantized LSTM (DynamicQuantizeLSTM). Use the float model from before quantization",
    "AttnLSTM": "an LSTM with attention within (AttnLSTM), which torch's does not have",
}
_OPERATORS = (*_INPUTS, *_OTHERS)
#: Bytes for each of the file: the file, what onnx makes of it, and the tensors.
_COPIES = 3
_INLINE = "onnx.inliner.inline_local_functions"
_MOST_SHOWN = 8


def read_file(path: Path) -> Foreign:
    """Read the constants and the recurrent layers of a model.

    Initializers have their own names, and so have ``Constant`` nodes that hold more than one floating-point number.
    What only the weights of converted layers are made of is left out, and nodes of the same weights are one layer.

    Raises:
        CheckpointError: the file is damaged, keeps data elsewhere than beside it, or onnx is not installed.
        MemoryLimitError: it needs more memory than there is.
    """
    if find_spec("onnx") is None:
        raise CheckpointError(
            f"{path} is an ONNX model, and to read one takes onnx, which is not installed here. "
            "Run pip install 'btcompress[onnx]'."
        )
    n_bytes = path.stat().st_size
    require(_COPIES * n_bytes, f"Reading {path}", "Free memory, or give the checkpoint that it was exported from.")
    return _Reading(_parsed(path), path).done()


def _parsed(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (DecodeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} begins like an ONNX model but is truncated or damaged ({error}). Download or save it again."
        ) from error
    if not (model.HasField("graph") and model.opset_import):
        raise CheckpointError(f"{path} begins like an ONNX model but holds no graph. Download or save it again.")
    return model


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A recurrent node.

    Attributes:
        node: as the file has it.
        scope: of its graph.
        inputs: the places of its constants, by ``"W"``, ``"R"``, ``"B"`` and ``"P"``.
        weights: their values; none where they are not looked at.
        found: the layer that it is, not yet named.
    """

    node: NodeProto
    scope: Scope
    inputs: Mapping[str, Place]
    weights: Mapping[str, Tensor]
    found: Found

    @property
    def leaves(self) -> list[Place]:
        """The places of the constants that its weights are made of."""
        every = (place for start in self.inputs.values() for place in places_of(start))
        return [place for place in dict.fromkeys(every) if constant_at(place) is not None]

    @property
    def given(self) -> dict[Place, list[Place]]:
        """By its outputs what else it is given."""
        constants = _inputs(self.node).values()
        others = [self.scope.place(name) for n, name in enumerate(self.node.input) if name and n not in constants]
        return {(self.scope, name): others for name in self.node.output if name}

    def layer(self, name: str) -> tuple[Found, dict[str, Tensor]]:
        """The layer under a name, and its weights as tensors below that."""
        keys = {part: f"{name}.{part}" for part in self.weights}
        tensors = {keys[part]: tensor for part, tensor in self.weights.items()}
        return layer_of(RecurrentNode(name, self.node.op_type, _attributes(self.node), keys), tensors), tensors


class _Reading:
    """What is found in one model.

    Args:
        model: the model.
        path: its file.
    """

    def __init__(self, model: ModelProto, path: Path) -> None:
        self._model = model
        self._graphs = list(graphs_of(model.graph))
        self._initializers = dict.fromkeys(initializers_of(self._graphs))
        self._places = list(dict.fromkeys((*self._initializers, *constants_of(self._graphs))))
        self._data = Data(path, [each for place in self._places if (each := constant_at(place)) is not None])
        opset = max((each.version for each in model.opset_import if each.domain in ONNX_DOMAINS), default=1)
        self._constants = Constants(self._data.tensor, opset, self._data.n_bytes, str(path))

    def done(self) -> Foreign:
        """All of it."""
        nodes = [
            self._node(node, scope)
            for graph, scope in self._graphs
            for node in graph.node
            if node.op_type in _OPERATORS
        ]
        converted = [node for node in nodes if isinstance(node.found, Converted)]
        given = {place: others for node in converted for place, others in node.given.items()}
        spent = {place for node in converted for place in node.leaves} - needed(self._graphs, given)
        others, notices = self._others(spent)
        layers = _Layers(self._places, {place: name for place, (name, _) in others.items()})
        for node in nodes:
            layers.add(node)
        tensors: dict[str, Tensor] = {}
        for place in (*self._places, None):
            tensors |= layers.weights.get(place, {})
            if place in others:
                tensors |= [others[place]]
        return Foreign(
            tensors,
            tuple((DIALECT, each) for each in (*layers.found, *self._in_functions())),
            (*notices, *layers.notices()),
            self._data.files,
        )

    def _node(self, node: NodeProto, scope: Scope) -> _Node:
        """A recurrent node with the values that it is given."""
        names = {part: node.input[n] for part, n in _inputs(node).items()}
        inputs = {part: scope.place(name) for part, name in names.items()}
        reason = _OTHERS.get(node.op_type)
        if reason is None and node.domain not in ONNX_DOMAINS:
            reason = f"an {node.op_type} of {node.domain}, which may be any; export the model with ONNX's own operators"
        if reason is None and not {"W", "R"} <= inputs.keys():
            reason = "it is given no weights; export the model again"
        if reason is None:
            try:
                weights = {part: self._constants.value(place) for part, place in inputs.items()}
            except UnheldError as why:
                reason = f"its weights cannot be told from the file: {why}"
            else:
                found = layer_of(
                    RecurrentNode("", node.op_type, _attributes(node), {part: part for part in weights}), weights
                )
                return _Node(node, scope, inputs, weights, found)
        return _Node(node, scope, inputs, {}, Refused("", (), reason))

    def _others(self, spent: Collection[Place]) -> tuple[dict[Place, tuple[str, Tensor]], list[str]]:
        """The constants that are kept, each with its name, and what was left out."""
        kept: dict[Place, tuple[str, Tensor]] = {}
        taken: set[str] = set()
        numbers = _Numbers()
        left_out: list[str] = []
        for place in self._places:
            if place in spent:
                continue
            try:
                tensor = self._constants.value(place)
            except UnheldError as why:
                left_out.append(str(why))
                continue
            if place in self._initializers or (tensor.is_floating_point() and tensor.numel() > 1):
                name = text_of(place[1]) or "constant"
                name = numbers.unique(name, taken.__contains__) if name in taken else name
                taken.add(name)
                kept[place] = name, plain_tensor(name, tensor)
        left_out += [
            f"{text_of(each.values.name)} is sparse" for graph, _ in self._graphs for each in graph.sparse_initializer
        ]
        return kept, [f"Left out, as torch has no such tensors: {listed(left_out, _MOST_SHOWN)}."] if left_out else []

    def _in_functions(self) -> Iterator[Refused]:
        for function, node in nodes_of_functions(self._model):
            if node.op_type in _OPERATORS:
                name = f"{text_of(function)}.{text_of(node.name) or node.op_type.lower()}"
                yield Refused(name, (), f"it lies in a function; {_INLINE} puts it into the graph")


class _Numbers:
    """Makes names of their own of such as repeat, by numbers, none of which is tried twice."""

    def __init__(self) -> None:
        self._next: dict[str, Iterator[int]] = {}

    def unique(self, name: str, is_taken: Callable[[str], bool]) -> str:
        """The name with the first number that makes it one that is not taken."""
        numbers = self._next.setdefault(name, count(1))
        return next(each for n in numbers if not is_taken(each := f"{name}_{n}"))


@dataclass(slots=True)
class _Layers:
    """Layers as they are found, each under a name of its own, below which no other tensor lies.

    Attributes:
        places: of all constants, in the order of the file.
        others: the names of those that are kept.
        found: the layers.
        weights: their tensors, by the place of the first constant that they are made of.
    """

    places: InitVar[Sequence[Place]]
    others: Mapping[Place, str]
    found: list[Found] = field(default_factory=list)
    weights: dict[Place | None, dict[str, Tensor]] = field(default_factory=dict)
    _order: dict[Place, int] = field(init=False)
    _keys: list[str] = field(init=False)
    _taken: set[str] = field(default_factory=set)
    _numbers: _Numbers = field(default_factory=_Numbers)
    _digests: dict[int, bytes] = field(default_factory=dict)
    _first: dict[tuple[object, ...], str] = field(default_factory=dict)
    _same: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self, places: Sequence[Place]) -> None:
        self._order = {place: position for position, place in enumerate(places)}
        self._keys = sorted(self.others.values())

    def add(self, node: _Node) -> None:
        """Take one more; a node of the same weights as another is none of its own."""
        name = self._name(node.node)
        leaves = node.leaves
        if isinstance(node.found, Refused):
            keys = tuple(self.others[place] for place in leaves if place in self.others)
            self.found.append(Refused(name, keys, node.found.reason))
        elif (first := self._first.setdefault(self._identity(node), name)) != name:
            self._same.setdefault(first, []).append(name)
        else:
            layer, tensors = node.layer(name)
            self.found.append(layer)
            place = min(leaves, key=self._order.__getitem__, default=None)
            self.weights.setdefault(place, {}).update(tensors)

    def notices(self) -> Iterator[str]:
        """Which nodes are one layer."""
        for first, others in self._same.items():
            yield f"{first}: one layer with {listed(others, _MOST_SHOWN)} of the graph, which has the same weights."

    def _identity(self, node: _Node) -> tuple[object, ...]:
        """What nodes have in common that are one layer."""
        digests = tuple(
            (part, tensor.dtype, tuple(tensor.shape), self._digest(tensor)) for part, tensor in node.weights.items()
        )
        attributes = sorted((name, str(value)) for name, value in _attributes(node.node).items())
        return node.node.op_type, digests, tuple(attributes)

    def _digest(self, tensor: Tensor) -> bytes:
        """Of its bytes; worked out once for a tensor that several nodes have."""
        if id(tensor) not in self._digests:
            digest = sha256()
            for chunk in byte_chunks(tensor):
                digest.update(chunk.numpy().data)
            self._digests[id(tensor)] = digest.digest()
        return self._digests[id(tensor)]

    def _name(self, node: NodeProto) -> str:
        """The path of the module that a node was exported from, as exporters name nodes, with dots."""
        parts = [part for part in re.split(r"[/.]+", text_of(node.name)) if part] or [node.op_type.lower()]
        number = re.fullmatch(rf"{node.op_type}(_[0-9]+)?", parts[-1])
        short = [*parts[:-2], parts[-2] + (number[1] or "")] if number and len(parts) > 1 else parts
        name = next((each for each in map(".".join, (short, parts)) if not self._is_taken(each)), None)
        name = name or self._numbers.unique(".".join(parts), self._is_taken)
        self._taken.add(name)
        return name

    def _is_taken(self, name: str) -> bool:
        position = bisect_left(self._keys, f"{name}.")
        return name in self._taken or (position < len(self._keys) and self._keys[position].startswith(f"{name}."))


def _inputs(node: NodeProto) -> dict[str, int]:
    """The positions of its constants among its inputs; a name that is empty stands for none."""
    positions = _INPUTS.get(node.op_type, _LSTM_INPUTS)
    return {part: n for part, n in positions.items() if n < len(node.input) and node.input[n]}


def _attributes(node: NodeProto) -> dict[str, object]:
    """Its attributes that are numbers or texts, or lists of such."""
    return {text_of(each.name): value for each in node.attribute if (value := _value(each)) is not None}


def _value(attribute: AttributeProto) -> object:
    from onnx import AttributeProto

    readers: dict[int, Callable[[AttributeProto], object]] = {
        AttributeProto.INT: lambda each: each.i,
        AttributeProto.FLOAT: lambda each: each.f,
        AttributeProto.STRING: lambda each: each.s.decode(errors="replace"),
        AttributeProto.STRINGS: lambda each: [text.decode(errors="replace") for text in each.strings],
    }
    read = readers.get(attribute.type)
    return None if read is None else read(attribute)
