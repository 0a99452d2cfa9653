"""A user's whole network as an ONNX graph: torch's exporter writes it, except for block-term layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from btcompress.checkpoint import check_target, replacing
from btcompress.errors import BTCompressError
from btcompress.export.checking import check_operators, has_runtime, relative_error, run
from btcompress.export.comparing import check_network, check_repeats, evaluated, outputs_of
from btcompress.export.examples import Dynamic, Example
from btcompress.export.graphs import proto_of, require_onnx
from btcompress.export.inlining import Inlining
from btcompress.export.integers import has_integers, quantize, require_quantizer
from btcompress.export.quiet import without_logs
from btcompress.export.request import ExportedGraph, FormRequest, GraphRequest
from btcompress.export.standins import is_supported, modules_of, traced, watched

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

#: Said where the quantizer found nothing to do.
_NO_INTEGERS = (
    "nothing is computed in integers: the quantizer takes products with matrices that lie in the file as they are, and "
    "none of these does."
)
#: Bytes of the largest file of the format.
_MOST_BYTES = 2**31 - 1


def export_onnx(
    model: nn.Module,
    example_inputs: Any,  # noqa: ANN401 - whatever the network takes
    path: str | PathLike[str],
    *,
    dynamic: Dynamic = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    batch: int | None = None,
    steps: int | None = None,
    form: FormRequest = "auto",
    int8: bool = False,
    force: bool = False,
) -> ExportedGraph:
    """Write a network with block-term layers inside, recurrent or linear ones, as one ONNX graph.

    Torch's exporter writes all of it but these layers, which become the graphs that ``btcompress export`` writes:
    not unrolled over time, and with their factors; so do dense LSTMs, GRUs and plain RNNs. The network is exported in
    eval mode, and left as it was. Layers compute in float32, whatever the network does. The graph is compared with the
    network on the example, and on one with one more of everything that is dynamic, in ONNX Runtime where that is
    installed.

    Args:
        model: the network, such as :func:`btcompress.apply` gives.
        example_inputs: what it is called with: a tensor, a tuple of arguments, or a dict of them by name. Give them the
            sizes that runs are going to have, as far as the speed of layers is to be chosen by them.
        path: the file.
        dynamic: which axes of the inputs may have any size, by the names of the arguments of ``forward``, such as
            ``{"x": {0: "batch", 1: "time"}}``; said of an argument that is a tuple of tensors, it holds for all of
            them. Axes of one name have the same size. Anything else that torch takes as ``dynamic_shapes`` may be
            given as well. All sizes are those of the example where left out.
        input_names: of the graph's inputs, in order; chosen by torch where left out.
        output_names: of the graph's outputs.
        batch: sequences in a run for which layers are to be fast; those that each layer met in the example where left
            out.
        steps: of each sequence, likewise.
        form: how the steps of all layers are written: ``"operator"`` for ONNX's of the cell, ``"scan"``, or ``"auto"``
            for whichever is faster.
        int8: compute the matrix products of block-term layers in integers.
        force: replace an existing file.

    Returns:
        What was written, with the form of each layer by its name in the network.

    Raises:
        BTCompressError: a library is missing or too old, the example or ``dynamic`` do not fit the network, torch
            cannot trace it, no form that is asked for can write a layer, or what was written is not in order or
            computes something else; there is no new file then.
        OutputError: the file cannot or may not be written there.
    """
    _require(int8=int8)
    if not isinstance(model, nn.Module):
        raise BTCompressError(
            f"a network is an nn.Module, but a {type(model).__name__} was given. The layers of a result are exported "
            "by btcompress.export_graphs."
        )
    network = getattr(model, "_orig_mod", model)  # of torch.compile
    target = Path(path)
    check_target(target, force=force)
    request = GraphRequest(batch=_or_one(batch), steps=_or_one(steps), form=form, int8=int8)
    example, modules = Example.of(network, example_inputs, dynamic), modules_of(network)
    with evaluated(network):
        with watched(modules) as sizes:
            outputs = outputs_of(network, example)
        check_repeats(network, example, outputs)
        with traced(modules):
            graph = _traced(network, example, input_names, output_names)
        inlining = Inlining(graph, modules, sizes, request, batch, steps)
        inlining.run()
        if int8 and not inlining.products:
            # The quantizer would take the lack of names for all of the network.
            raise BTCompressError("int8 is for products of block-term layers, but the network has none. Leave it out.")
        proto, opset = _proto(graph), graph.graph.opset_imports[""]
        with replacing(target) as temporary:
            plain = temporary.with_name("float") if int8 else temporary
            plain.write_bytes(proto.SerializeToString(deterministic=True))
            check_operators(plain)
            error, int8_error = None, None
            notices: list[str] = []
            if has_runtime():
                error = check_network(plain, network, example, outputs)
                error = max(error, _error_elsewhere(plain, network, example, notices))
            else:
                notices.append("onnxruntime is not installed here, so what the graph computes was not compared.")
            if int8:
                quantize(plain, temporary, inlining.products)
                check_operators(temporary)
                feed = _named(proto, example.varied())
                int8_error = relative_error(run(temporary, feed), run(plain, feed))
                if not has_integers(temporary):
                    notices.append(_NO_INTEGERS)
                plain.unlink()
            size = temporary.stat().st_size
    return ExportedGraph(
        target, "", inlining.forms, size, opset, error=error, int8_error=int8_error, notices=tuple(notices)
    )


def _require(*, int8: bool) -> None:
    require_onnx("onnx", "onnx_ir", "onnxscript")
    if not is_supported():
        raise BTCompressError(
            f"exporting a whole network needs torch 2.8 or later, but {torch.__version__} is installed. Update torch, "
            "or export the layers of the result alone (btcompress export)."
        )
    if int8:
        require_quantizer()


def _or_one(number: int | None) -> int:
    return 1 if number is None else number


def _traced(
    network: nn.Module, example: Example, input_names: Sequence[str] | None, output_names: Sequence[str] | None
) -> ir.Model:
    """The graph that torch's exporter makes of a network."""
    with _quiet():
        try:
            program = torch.onnx.export(
                network,
                example.args,
                kwargs=example.kwargs,
                dynamo=True,
                verbose=False,
                dynamic_shapes=example.axes,
                input_names=input_names,
                output_names=output_names,
            )
        except torch.onnx.OnnxExporterError as error:
            causes = list(_causes(error))
            for cause in causes:
                if isinstance(cause, BTCompressError):
                    raise cause from None
            why = " ".join(str(causes[-1]).split())
            raise BTCompressError(
                f"torch's exporter cannot write this network: {type(causes[-1]).__name__}: {why:.300} "
                "What torch.export can trace is in its documentation; sizes that are to vary are named in dynamic."
            ) from error
    if program is None:
        raise BTCompressError("torch's exporter gave no graph of this network. Report this, with the network.")
    return program.model


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter warns of, logs and prints."""
    with without_logs(), warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _proto(model: ir.Model) -> onnx.ModelProto:
    """The file's content, without what torch says of where each node comes from: it names the user's own files."""
    graph = model.graph
    n_bytes = sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
    if n_bytes > _MOST_BYTES:
        raise BTCompressError(
            f"the network has {n_bytes:,} bytes of weights, but an ONNX file has at most {_MOST_BYTES:,}. Compress it "
            "further, or export its parts."
        )
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    return proto_of(model)


def _error_elsewhere(path: Path, network: nn.Module, example: Example, notices: list[str]) -> float:
    """The graph's error for inputs of other sizes and numbers."""
    other = example.larger(network).varied()
    try:
        outputs = outputs_of(network, other)
    except (RuntimeError, ValueError, IndexError) as error:
        notices.append(
            "the network itself does not run with one more of everything that is dynamic, so that other sizes than "
            f"the example's were not compared: {str(error).strip():.200}"
        )
        return 0.0
    return check_network(path, network, other, outputs)


def _named(proto: onnx.ModelProto, example: Example) -> dict[str, Tensor]:
    """The example's tensors by the names of the graph's inputs."""
    names = [each.name for each in proto.graph.input]
    return dict(zip(names, (tensor.detach().cpu() for tensor in example.tensors), strict=True))
