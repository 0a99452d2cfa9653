"""Nodes of an ONNX graph as they are made, on top of onnx_ir's tape."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from btcompress import __version__
from btcompress.errors import BTCompressError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

#: What is asked to install.
_EXTRA = "pip install 'btcompress[onnx]'"


def require_onnx(*libraries: str) -> None:
    """Refuse to go on without ONNX's libraries.

    Args:
        libraries: which ones; those that every graph needs where left out.

    Raises:
        BTCompressError: one is not installed.
    """
    missing = [name for name in libraries or ("onnx", "onnx_ir") if find_spec(name) is None]
    if missing:
        raise BTCompressError(f"exporting to ONNX needs {missing[0]}, which is not installed here. Run {_EXTRA}.")


class Nodes:
    """Nodes of a graph in order, and its initializers; names are used once, in its subgraphs too.

    Args:
        prefix: what all names of nodes and of their outputs begin with.
        parent: the nodes of the graph that this one is a subgraph of, which has all the initializers.
    """

    def __init__(self, prefix: str = "", parent: Nodes | None = None) -> None:
        from onnx_ir.tape import Tape

        self._prefix = prefix
        self._tape = Tape()
        self._root: Nodes = self if parent is None else parent._root
        self._numbers: Iterator[int] = itertools.count() if parent is None else parent._numbers
        self._constants: dict[str, ir.Value] = {}
        self.opset = 18

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """In the order made."""
        return self._tape.nodes

    @property
    def initializers(self) -> Sequence[ir.Value]:
        """Of the graph and its subgraphs."""
        return self._root._tape.initializers

    @property
    def root(self) -> Nodes:
        """Those of the graph that is no subgraph: what is made there is made once for all runs of a subgraph."""
        return self._root

    def name(self, hint: str) -> str:
        """A name that nothing else has."""
        return f"{self._prefix}{hint}{next(self._numbers)}"

    def subgraph(self) -> Nodes:
        """The nodes of a graph within this one."""
        return Nodes(self._prefix, self)

    def needs_opset(self, version: int) -> None:
        """Operators of at least this version of ONNX's set are used."""
        self._root.opset = max(self._root.opset, version)

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:  # noqa: ANN401 - any of ONNX's
        """The only output of a new node."""
        return self.ops(kind, *inputs, n_outputs=1, **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        n_outputs: int,
        **attributes: Any,  # noqa: ANN401
    ) -> tuple[ir.Value, ...]:
        """All outputs of a new node."""
        import onnx_ir as ir

        # Short names: a graph of small layers would else be mostly names.
        name = self.name("n")
        outputs = [ir.Value(name=f"{name}.{n}" if n else f"{name}.") for n in range(n_outputs)]
        return tuple(self._tape.op_multi_out(kind, inputs, attributes, outputs=outputs, name=name))

    def graph(self, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Graph:
        """The graph or subgraph of all nodes made."""
        import onnx_ir as ir

        is_root = self._root is self
        return ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=self.initializers if is_root else (),
            opset_imports={"": self.opset} if is_root else None,
            name=name,
        )

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """A constant of the graph; the same for one tensor asked for again, and under a longer name for another."""
        constants = self._root._constants
        names = itertools.chain([name], (f"{name}.{number}" for number in itertools.count(1)))
        own = next(own for own in names if own not in constants or _same(constants[own].const_value, tensor))
        if own not in constants:
            constants[own] = self._root._tape.initializer(tensor, name=own)
        return constants[own]

    def weight(self, name: str, tensor: Tensor) -> ir.Value:
        """A floating-point tensor as a constant, in its own dtype where that is no float64."""
        import onnx_ir as ir

        kept = tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor
        if kept.dtype == torch.bfloat16:
            array = ir.tensor(kept.contiguous().view(torch.uint16).numpy().view(_bfloat16()), name=name)
        else:
            array = ir.tensor(kept.contiguous().numpy(), name=name)
        value = self.initializer(name, array)
        return value if kept.dtype == torch.float32 else self.op("Cast", value, to=int(ir.DataType.FLOAT))

    def integers(self, *values: int) -> ir.Value:
        """Whole numbers as a constant of int64, shape ``(n,)``."""
        return self._shared(torch.tensor(values, dtype=torch.int64))

    def index(self, index: Tensor) -> ir.Value:
        """Places in an axis, as a constant of int32."""
        return self._shared(index.cpu().to(torch.int32))

    def number(self, number: float) -> ir.Value:
        """A scalar constant of float32."""
        return self._shared(torch.tensor(number, dtype=torch.float32))

    def _shared(self, tensor: Tensor) -> ir.Value:
        import onnx_ir as ir

        return self.initializer(f"{self._prefix}k", ir.tensor(tensor.numpy()))


def value(name: str, *sizes: int | str, dtype: str = "FLOAT") -> ir.Value:
    """An input or output of a graph, with its sizes or their names."""
    import onnx_ir as ir

    return ir.Value(name=name, type=ir.TensorType(ir.DataType[dtype]), shape=ir.Shape(sizes))


def proto_of(model: ir.Model) -> onnx.ModelProto:
    """The content of a file of this graph, with who made it."""
    import onnx_ir as ir

    model.producer_name, model.producer_version = "btcompress", __version__
    proto = ir.to_proto(model)
    # What can be worked out again takes bytes.
    del proto.graph.value_info[:]
    return proto


def _same(first: ir.TensorProtocol | None, second: ir.TensorProtocol) -> bool:
    if first is None or first is second:
        return first is second
    alike = first.dtype == second.dtype and first.shape == second.shape
    return alike and first.tobytes() == second.tobytes()


def _bfloat16() -> Any:  # noqa: ANN401 - numpy's dtype of ml_dtypes
    import ml_dtypes

    return ml_dtypes.bfloat16
