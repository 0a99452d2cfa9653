"""What names in ONNX graphs stand for, and what simple steps make of constants before a node gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast

from torch import Tensor

from btcompress.checkpoint.onnxtensors import DTYPES, UnheldError, array_of, from_array
from btcompress.memory import require

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

#: What a name stands for: a constant of the file, the output of a node, or None for what is given at run time.
Meaning: TypeAlias = "TensorProto | NodeProto | None"
#: A name, and the scope in which it has its meaning.
Place: TypeAlias = "tuple[Scope, str]"

#: Domains of operators that ONNX itself defines.
ONNX_DOMAINS = ("", "ai.onnx")

#: Operators that exporters put between weights and a layer. But for ``Gather``, each gives no more than it gets.
_STEPS = frozenset(
    {
        "Cast",
        "Concat",
        "DequantizeLinear",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
#: Versions from which on onnx defines an operator; what older ones have it computes as they do.
_DEFINED_FROM = {"DequantizeLinear": 19}
#: Attributes of a ``Constant`` that is no tensor but numbers.
_NUMBERS = frozenset({"value_float", "value_floats", "value_int", "value_ints"})
#: Bytes of the widest entry that a step makes of another, of one byte.
_WIDEST = 8
#: Steps one after another that are followed.
_MOST_STEPS = 64
#: Bytes that steps may make of each byte of the file: exporters cut weights into gates and put them together again.
_MOST_MADE = 256


@dataclass(slots=True, eq=False)
class Scope:
    """The names that hold in a graph: its own, and those of the graphs that it is within.

    Attributes:
        own: what each name of the graph itself stands for.
        parent: the scope of the graph that it is within.
    """

    own: dict[str, Meaning]
    parent: Scope | None = None

    @classmethod
    def of(cls, graph: GraphProto, parent: Scope | None = None) -> Scope:
        """The scope of a graph."""
        own: dict[str, Meaning] = {each.name: None for each in graph.input}
        own |= {each.name: each for each in graph.initializer}
        for node in graph.node:
            constant = tensor_of(node)
            for name in node.output:
                if name:
                    own.setdefault(name, node if constant is None else constant)  # in a sound graph it is there once
        return cls(own, parent)

    def place(self, name: str) -> Place:
        """Where a name that is used here has its meaning."""
        scope = self
        while name not in scope.own and scope.parent is not None:
            scope = scope.parent
        return scope, name


def node_at(place: Place) -> NodeProto | None:
    """The node that gives what a name stands for; None for constants, and for what is given at run time."""
    meaning = place[0].own.get(place[1])
    return cast("NodeProto", meaning) if hasattr(meaning, "op_type") else None


def constant_at(place: Place) -> TensorProto | None:
    """The constant that a name stands for; None if it stands for none."""
    meaning = place[0].own.get(place[1])
    return cast("TensorProto", meaning) if hasattr(meaning, "dims") else None


def inputs_of(place: Place) -> list[Place]:
    """What the node that gives a name is given itself; nothing for constants."""
    node = node_at(place)
    return [] if node is None else [place[0].place(name) for name in node.input if name]


def tensor_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a node that is a constant; None if it is no such, or has numbers in its attributes."""
    if node.op_type != "Constant" or node.domain not in ONNX_DOMAINS:
        return None
    return next((each.t for each in node.attribute if each.name == "value" and each.HasField("t")), None)


def places_of(place: Place) -> Iterator[Place]:
    """The places of all that a value is made of, its own the first."""
    seen, todo = set(), [place]
    while todo:
        each = todo.pop()
        if each not in seen:
            seen.add(each)
            yield each
            todo += reversed(inputs_of(each))


@dataclass(slots=True)
class Constants:
    """Works out what names stand for, and keeps it.

    Attributes:
        read: the values of a constant of the file.
        opset: the version of ONNX's operators that the graph is written in.
        n_bytes: of the file.
        label: what to call it in messages.
    """

    read: Callable[[TensorProto], Tensor]
    opset: int
    n_bytes: int
    label: str
    _known: dict[Place, Tensor] = field(default_factory=dict)
    _made: int = 0

    def value(self, place: Place, depth: int = 0) -> Tensor:
        """The tensor that a name stands for, where that is a constant or made of such by simple steps.

        Raises:
            UnheldError: it is none.
            MemoryLimitError: it needs more memory than there is.
        """
        if place in self._known:
            return self._known[place]
        constant, node = constant_at(place), node_at(place)
        if constant is not None:
            self._known[place] = self.read(constant)
        elif node is None:
            raise UnheldError(f"{place[1]} is no constant of the graph")
        elif depth >= _MOST_STEPS:
            raise UnheldError(f"{place[1]} is made by more than {_MOST_STEPS} steps")
        else:
            made = self._run(node, {each[1]: self.value(each, depth + 1) for each in _followed(node, place)})
            self._known |= {(place[0], name): tensor for name, tensor in made.items()}
        return self._known[place]

    def _run(self, node: NodeProto, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a node makes of constants, by the names of its outputs."""
        n_entries = sum(given[name].numel() for name in node.input if name)
        if node.op_type == "Gather":
            indices = [given[name].numel() for name in node.input[1:2] if name]
            n_entries *= max(1, *indices, 0)  # a row may be taken more than once
        self._made += n_entries * _WIDEST
        if self._made > _MOST_MADE * self.n_bytes:
            raise UnheldError(f"far more is made of constants than the file holds ({node.op_type})")
        require(n_entries * _WIDEST, f"{self.label}: what {node.op_type} makes of weights", "Free memory.")
        return _evaluated(node, given, self.opset)


def _followed(node: NodeProto, place: Place) -> list[Place]:
    """What a node is given, if it is a step that is followed."""
    is_step = node.op_type in _STEPS
    if node.op_type == "Constant":
        is_step = {each.name for each in node.attribute} <= _NUMBERS
    if not is_step or node.domain not in ONNX_DOMAINS:
        raise UnheldError(f"{place[1]} is worked out by {node.op_type} when the graph runs")
    return inputs_of(place)


def _evaluated(node: NodeProto, given: Mapping[str, Tensor], opset: int) -> dict[str, Tensor]:
    """The outputs of one node, by onnx's own definition of its operator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    outputs = [name for name in node.output if name]
    to = next((each.i for each in node.attribute if each.name == "to"), None)
    if node.op_type == "Cast" and to not in [onnx.TensorProto.DataType.Value(name) for name in DTYPES]:
        raise UnheldError(f"{outputs[0]} is of a type that torch lacks")
    inputs, results = ([onnx.ValueInfoProto(name=name) for name in names] for names in (given, outputs))
    graph = onnx.helper.make_graph([node], "step", inputs, results)
    version = max(opset, _DEFINED_FROM.get(node.op_type, 1))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    try:
        made = ReferenceEvaluator(model).run(outputs, {name: array_of(tensor) for name, tensor in given.items()})
        return {name: from_array(array) for name, array in zip(outputs, made, strict=True)}
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged node makes of its operator, its layer is refused for it
        raise UnheldError(f"{outputs[0]} cannot be worked out ({node.op_type}: {error})") from error
