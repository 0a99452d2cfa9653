"""The ways to run one layer of a file in ONNX Runtime: each makes a graph of it, and says how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from btcompress.benching.ways import State, tensors_of
from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.errors import BTCompressError
from btcompress.export.checking import session
from btcompress.export.forms import has_operator
from btcompress.export.graphfiles import graph_of
from btcompress.export.graphs import require_onnx
from btcompress.export.integers import quantize, require_quantizer
from btcompress.export.request import GraphRequest
from btcompress.export.weights import Weights
from btcompress.timings import LeftOut, WayName

if TYPE_CHECKING:
    import onnxruntime

_DENSE: tuple[WayName, ...] = ("onnx_dense", "onnx_dense_int8")
_OWN: tuple[WayName, ...] = ("onnx_block_terms", "onnx_block_terms_int8", "onnx_block_terms_int8_lstm")


@dataclass(frozen=True, slots=True)
class Graph:
    """A recurrent layer run by ONNX Runtime; a cell is a layer there.

    Attributes:
        way: which.
        session: that runs it.
        n_params: numbers in its parameters.
    """

    way: WayName
    session: onnxruntime.InferenceSession
    n_params: int

    def call(self, x: Tensor, state: State) -> Callable[[], object]:
        """A call on inputs of shape ``(T, B, I)`` from a state, all as arrays of float32."""
        states = [each if each.dim() == 3 else each.unsqueeze(0) for each in tensors_of(state)]
        feed = {name: each.float().numpy() for name, each in zip(("x", "h0", "c0"), (x, *states), strict=False)}
        run = self.session.run
        return lambda: run(None, feed)


def require_graphs() -> None:
    """Refuse to go on without what makes graphs and runs them.

    Raises:
        BTCompressError: it is not installed.
    """
    require_onnx()
    require_quantizer()


def dense_graphs(module: nn.Module, entry: RecurrentEntry) -> tuple[list[Graph], list[LeftOut]]:
    """The dense layer by ONNX's operator, in floats and in integers; by steps where there is none such."""
    weights = Weights.of_module(entry.name, module)
    requests = [GraphRequest(form="operator"), GraphRequest(form="operator", int8=True)]
    every = [
        request if has_operator(weights.layers[0][0], request) else replace(request, form="scan")
        for request in requests
    ]
    return _graphs(dict(zip(_DENSE, every, strict=True)), weights)


def block_term_graphs(
    compressed: CompressedCheckpoint, entry: RecurrentEntry, batch: int, steps: int
) -> tuple[list[Graph], list[LeftOut]]:
    """The layer as :func:`btcompress.export.export_graphs` writes it for these sizes, in floats and in integers."""
    request = GraphRequest(batch, steps)
    requests = (request, replace(request, int8=True), replace(request, int8=True, form="operator"))
    return _graphs(dict(zip(_OWN, requests, strict=True)), Weights.of_result(compressed, entry))


def without_graphs(reason: str) -> list[LeftOut]:
    """All of these ways left out."""
    return [LeftOut(way, reason) for way in (*_DENSE, *_OWN)]


def _graphs(ways: Mapping[WayName, GraphRequest], weights: Weights) -> tuple[list[Graph], list[LeftOut]]:
    found, left_out = [], []
    parameters = [each.values for each in weights.tensors() if each.values.is_floating_point()]
    n_params = sum(values.numel() for values in parameters)
    for way, request in ways.items():
        try:
            found.append(Graph(way, _session(weights, request), n_params))
        except BTCompressError as error:
            left_out.append(LeftOut(way, f"it cannot be written ({error})"))
    return found, left_out


def _session(weights: Weights, request: GraphRequest) -> onnxruntime.InferenceSession:
    """A session that computes in as many threads as torch does."""
    proto, _, _ = graph_of(weights, request)
    with TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        path.write_bytes(proto.SerializeToString())
        if request.int8:
            floats, path = path, path.with_name("integers.onnx")
            quantize(floats, path)
        return session(path, threads=torch.get_num_threads(), takes_turns=True)
