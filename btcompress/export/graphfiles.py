"""The recurrent layers of a result as ONNX files, each checked before it takes its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.errors import BTCompressError
from btcompress.export.checking import check_operators, check_outputs, drawn_inputs, has_runtime, layer_error, run
from btcompress.export.graphs import Nodes, proto_of, require_onnx, value
from btcompress.export.integers import quantize, require_quantizer
from btcompress.export.layers import written
from btcompress.export.modules import layer_module
from btcompress.export.record import RECORD, record_of
from btcompress.export.request import ExportedGraph, GraphRequest, Steps
from btcompress.export.targets import planned, replacing_all, shown_name
from btcompress.export.weights import Weights
from btcompress.memory import require, size_text
from btcompress.models import Compressed, opened

if TYPE_CHECKING:
    import onnx

#: Told the file of each graph before it is written.
OnGraph = Callable[[Path], None]

#: Bytes that a file of ONNX's has room for beside nodes.
_MOST_BYTES = 2**31 - 2**22
#: Bytes for each number: as a graph, its bytes, what a session makes of them, and modules in float32 and float64.
_COPIES = 28

#: Error of integers, over the largest output, from which on it is warned of.
_LARGE = 0.05
#: The version of ONNX's format that has an opset.
_IR_VERSIONS = {18: 8, 21: 10}


def export_graphs(
    compressed: Compressed,
    path: str | PathLike[str],
    request: GraphRequest = GraphRequest(),
    *,
    lstm: str | None = None,
    force: bool = False,
    on_graph: OnGraph | None = None,
) -> tuple[ExportedGraph, ...]:
    """Write each LSTM, GRU and plain RNN of a result as an ONNX graph, its factors as factors.

    Inputs are ``x`` ``(T, B, I)``, ``h0`` and ``c0`` ``(layers * directions, B, H)``, and ``lengths`` ``(B,)`` where it
    is asked for; outputs are ``y`` ``(T, B, directions * H)``, ``hn`` and ``cn``. LSTMs alone have ``c0`` and ``cn``.
    All are float32, lengths int64, and ``T`` and ``B`` may be any. A cell is a layer of any number of steps.

    Args:
        compressed: a result file, or what :func:`btcompress.load` or :func:`btcompress.factorize` gave.
        path: the file; with several layers, ``OUT.NAME.onnx`` of ``OUT.onnx`` for each.
        request: how they are to be written.
        lstm: the name of the only one; None for all that have a matrix that was factorized or rounded.
        force: replace existing files.
        on_graph: told each file before it is written.

    Returns:
        What was written, in the result's order.

    Raises:
        BTCompressError: a library is missing, there is no such LSTM, it cannot be written in the form asked for or is
            too large, or what was written is not in order or computes something else; there is no new file then.
        OutputError: a file cannot or may not be written there.
        CheckpointError: the result cannot be read.
        MemoryLimitError: a graph needs more memory than there is.
    """
    require_onnx()
    if request.int8:
        require_quantizer()
    result = opened(compressed)
    pairs = planned(result, path, lstm, force=force)
    found = []
    with replacing_all(target for _, target in pairs) as temporaries:
        for (entry, target), temporary in zip(pairs, temporaries, strict=True):
            if on_graph is not None:
                on_graph(target)
            found.append(replace(_written(result, entry, temporary, request), path=target))
    return tuple(found)


def _written(result: CompressedCheckpoint, entry: RecurrentEntry, path: Path, request: GraphRequest) -> ExportedGraph:
    """Write one graph, check it, and say what it is."""
    weights = Weights.of_result(result, entry)
    tensor_bytes = result.only(entry.keys).n_bytes
    _require_room(weights, entry, tensor_bytes)
    proto, forms, opset = graph_of(weights, request)
    _describe(proto, result, entry, request, forms)
    plain = path.with_name("float") if request.int8 else path
    _save(proto, plain)
    check_operators(plain)
    error, int8_error = None, None
    notices, warnings = list[str](), list[str]()
    if has_runtime():
        inputs = drawn_inputs(entry, batch_first=request.batch_first, lengths=request.lengths)
        module = layer_module(result, entry, batch_first=request.batch_first)
        error = check_outputs(plain, module, inputs, batch_first=request.batch_first)
    else:
        notices.append("onnxruntime is not installed here, so what the graph computes was not compared.")
    if request.int8:
        quantize(plain, path)
        _keep_properties(path, proto)
        check_operators(path)
        int8_error = layer_error(run(path, inputs), run(plain, inputs))
        warnings += _warnings(int8_error, path.stat().st_size, plain.stat().st_size)
        plain.unlink()
    size = path.stat().st_size
    told = tuple(notices), tuple(warnings)
    return ExportedGraph(path, entry.name, forms, size, opset, tensor_bytes, error, int8_error, *told)


def _require_room(weights: Weights, entry: RecurrentEntry, n_bytes: int) -> None:
    """Refuse what is too large for a file of ONNX's, or takes more memory than there is."""
    name, n_values = shown_name(entry), sum(tensor.values.numel() for tensor in weights.tensors())
    if n_bytes > _MOST_BYTES:
        raise BTCompressError(
            f"the tensors of {name} take {size_text(n_bytes)}, and a graph has at most 2 GB. Factorize it further, or "
            "export it with --to torch (btcompress.export_program)."
        )
    require(_COPIES * n_values, f"The graph of {name}", "Export on a larger machine.")


def _warnings(error: float, n_bytes: int, n_bytes_before: int) -> Iterator[str]:
    """What to know of a graph that computes in integers: its error and its size, beside that which does not."""
    if not error < _LARGE:
        yield (
            f"computed in integers, outputs on random inputs are off by {error:.0%} of the largest. Some layers do not "
            "bear that: measure your task before you use it."
        )
    if n_bytes >= n_bytes_before:
        yield (
            f"with products in integers the file takes {size_text(n_bytes)}, and {size_text(n_bytes_before)} without. "
            "Leave --int8 (int8=True) out, unless this is faster for you."
        )


def graph_of(weights: Weights, request: GraphRequest) -> tuple[onnx.ModelProto, dict[str, Steps], int]:
    """The graph of a recurrent layer, how each layer is written, and the opset."""
    import onnx_ir as ir

    nodes = Nodes()
    n_states = len(weights.layers) * weights.n_directions
    lead = ("B", "T") if request.batch_first else ("T", "B")
    x, y = (
        value(name, *lead, size)
        for name, size in (("x", weights.input_size), ("y", weights.n_directions * weights.output_size))
    )
    sizes = {"h": weights.output_size, "c": weights.hidden_size}
    before, after = (
        [value(f"{letter}{end}", n_states, "B", sizes[letter]) for letter in weights.cell.states] for end in "0n"
    )
    inputs, lengths = [x, *before], None
    if request.lengths:
        lengths = value("lengths", "B", dtype="INT64")
        inputs.append(lengths)
    outputs, forms = written(nodes, weights, request, x, before, lengths)
    for each, typed in zip(outputs, (y, *after), strict=True):
        each.name, each.type, each.shape = typed.name, typed.type, typed.shape
    model = ir.Model(
        nodes.graph(weights.cell.steps, inputs, outputs),
        ir_version=_IR_VERSIONS[nodes.opset],
    )
    return proto_of(model), dict(forms), nodes.opset


def _describe(
    proto: onnx.ModelProto,
    result: CompressedCheckpoint,
    entry: RecurrentEntry,
    request: GraphRequest,
    forms: dict[str, Steps],
) -> None:
    """What the graph was made of, as one of its properties."""
    record = {
        **record_of(result, entry),
        "forms": forms,
        "batch": request.batch,
        "steps_of_a_run": request.steps,
    }
    properties = proto.metadata_props.add()
    properties.key, properties.value = RECORD, json.dumps(record, separators=(",", ":"))


def _keep_properties(path: Path, proto: onnx.ModelProto) -> None:
    """Give a file the properties of a graph that it was made of."""
    import onnx

    own = onnx.load(path)
    del own.metadata_props[:]
    own.metadata_props.extend(proto.metadata_props)
    own.producer_name, own.producer_version = proto.producer_name, proto.producer_version
    _save(own, path)


def _save(proto: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(proto.SerializeToString(deterministic=True))
