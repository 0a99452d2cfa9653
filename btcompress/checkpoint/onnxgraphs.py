"""The graphs of an ONNX model, their constants, and which of these something else than given nodes needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from btcompress.checkpoint.onnxconstants import Place, Scope, inputs_of, tensor_of

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

#: A graph, and the names that hold in it.
Scoped: TypeAlias = "tuple[GraphProto, Scope]"


def graphs_of(graph: GraphProto) -> Iterator[Scoped]:
    """A graph and all within it, such as the branches of an ``If``, in the order of the file."""
    todo: list[tuple[GraphProto, Scope | None]] = [(graph, None)]
    while todo:
        each, parent = todo.pop()
        scope = Scope.of(each, parent)
        yield each, scope
        todo += [(inner, scope) for inner in reversed(list(_within(each)))]


def _within(graph: GraphProto | FunctionProto) -> Iterator[GraphProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def nodes_of_functions(model: ModelProto) -> Iterator[tuple[str, NodeProto]]:
    """The nodes in a model's functions, each with the name of the function."""
    for function in model.functions:
        todo: list[GraphProto | FunctionProto] = [function]
        while todo:
            each = todo.pop()
            yield from ((function.name, node) for node in each.node)
            todo += _within(each)


def initializers_of(graphs: Sequence[Scoped]) -> list[Place]:
    """The places of all initializers."""
    return [(scope, each.name) for graph, scope in graphs for each in graph.initializer]


def constants_of(graphs: Sequence[Scoped]) -> list[Place]:
    """The places of all ``Constant`` nodes that hold tensors."""
    found = []
    for graph, scope in graphs:
        found += [(scope, next(iter(node.output), "")) for node in graph.node if tensor_of(node) is not None]
    return found


def needed(graphs: Sequence[Scoped], given: Mapping[Place, Sequence[Place]]) -> set[Place]:
    """The places of all that the outputs of the graphs are made of.

    Args:
        graphs: all.
        given: by the outputs of some nodes the inputs that count of each.
    """
    todo = [scope.place(each.name) for graph, scope in graphs for each in graph.output]
    found: set[Place] = set()
    while todo:
        place = todo.pop()
        if place not in found:
            found.add(place)
            todo += given[place] if place in given else inputs_of(place)
    return found
