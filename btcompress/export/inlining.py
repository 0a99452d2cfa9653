"""Nodes of layers in the place of the operators that stand for them in a traced graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from btcompress.export.forms import operands_of
from btcompress.export.graphs import Nodes
from btcompress.export.layers import written
from btcompress.export.matrices import Matrix
from btcompress.export.operands import Operand
from btcompress.export.request import GraphRequest, Steps
from btcompress.export.standins import DOMAIN, Module, Sizes
from btcompress.export.weights import StoredTensor, Weights, weight_of
from btcompress.nn import BTLinear

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(slots=True, eq=False)
class Inlining:
    """A traced graph that gets the layers' own nodes.

    Attributes:
        model: the graph.
        modules: those that were traced, by name.
        sizes: what each layer met in the example.
        request: how layers are written; its sizes are those of each layer in the example, but for what is given here.
        batch: sequences in a run of every layer.
        steps: of each sequence in every layer.
        forms: how the steps of each layer and direction are written, by its name.
        nodes: what was made.
    """

    model: ir.Model
    modules: Mapping[str, Module]
    sizes: Sizes
    request: GraphRequest
    batch: int | None
    steps: int | None
    forms: dict[str, Steps] = field(default_factory=dict)
    nodes: Nodes = field(default_factory=lambda: Nodes(f"{DOMAIN}/"))

    def run(self) -> None:
        """Put nodes in the place of all operators that stand for layers.

        Raises:
            BTCompressError: no form that is asked for can write a layer.
        """
        graph = self.model.graph
        for node in [node for node in graph.all_nodes() if node.domain == DOMAIN]:
            self._inline(node)
        for value in self.nodes.initializers:
            if value.name in graph.initializers:
                # A parameter that the network reads itself as well.
                value.name = f"{DOMAIN}/{value.name}"
            graph.register_initializer(value)
        imports = graph.opset_imports
        imports.pop(DOMAIN, None)
        imports[""] = max(imports[""], self.nodes.opset)

    @property
    def products(self) -> list[str]:
        """Names of what multiplies by matrices among the nodes made, within ``Scan`` too."""
        return [
            own.name
            for node in self.nodes.nodes
            for own in (node, *(each for graph in _subgraphs(node) for each in graph))
            if own.op_type in ("MatMul", "LSTM") and own.name
        ]

    def _inline(self, node: ir.Node) -> None:
        import onnx_ir as ir
        from onnx_ir.convenience import replace_nodes_and_values

        name, before = node.attributes["module"].as_string(), len(self.nodes.nodes)
        module, given = self.modules[name], [_required(value) for value in node.inputs]
        inputs = [self._cast(value, ir.DataType.FLOAT) for value in given]
        if isinstance(module, BTLinear):
            outputs = [self._linear(name, module, inputs[0])]
        else:
            outputs = self._layer(name, node, inputs)
        # What the nodes make is known to be float32 here alone.
        if given[0].dtype != ir.DataType.FLOAT:
            outputs = [self._cast(value, given[0].dtype) for value in outputs]
        owner = node.graph
        if owner is None:
            raise ValueError(f"{node.name} is in no graph")
        replace_nodes_and_values(owner, node, [node], self.nodes.nodes[before:], node.outputs, outputs)

    def _layer(self, name: str, node: ir.Node, inputs: list[ir.Value]) -> list[ir.Value]:
        module, layer = self.modules[name], node.attributes["layer"].as_string()
        if isinstance(module, BTLinear):
            raise TypeError(f"{name} is no recurrent layer")
        batch_first = bool(node.attributes["batch_first"].as_int())
        steps, batch = self.sizes[name, layer]
        request = replace(
            self.request,
            batch=self.batch or max(batch, 1),
            steps=self.steps or steps,
            batch_first=batch_first,
        )
        weights = Weights.of_module(name, module)
        if not isinstance(module, nn.RNNBase):
            weights = weights.layer(list(module.layers()).index(layer))
        shape = inputs[0].shape
        one_step = shape is not None and shape[1 if batch_first else 0] == 1
        x, *states = inputs
        outputs, forms = written(self.nodes, weights, request, x, states, one_step=one_step)
        prefix = f"{name}." if name else ""
        self.forms |= {f"{prefix}{suffix}": form for suffix, form in forms.items()}
        return list(outputs)

    def _linear(self, name: str, module: BTLinear, x: ir.Value) -> ir.Value:
        prefix = f"{name}." if name else ""
        weight = weight_of(f"{prefix}weight", module.weight)
        rows, _ = self.sizes[name, ""]
        dense = "dense" in operands_of([weight], self.request) and module.weight.prefers_dense(
            rows, module.method, formed=True
        )
        y = Matrix(self.nodes, weight, None, int8=self.request.int8).product(x, by_factors=not dense)
        if module.bias is None:
            return y
        bias = Operand.of(StoredTensor(f"{prefix}bias", module.bias.detach()), None)
        return self.nodes.op("Add", y, bias.value(self.nodes))

    def _cast(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        """A value as numbers of another type; layers compute in float32, whatever the network does."""
        if dtype is None or value.dtype == dtype:
            return value
        cast = self.nodes.op("Cast", value, to=int(dtype))
        cast.dtype, cast.shape = dtype, value.shape
        return cast


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    import onnx_ir as ir

    return [each.as_graph() for each in node.attributes.values() if each.type == ir.AttributeType.GRAPH]


def _required(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise ValueError("a layer has no input")
    return value
