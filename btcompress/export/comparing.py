"""Whether the graph of a whole network computes what the network does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from btcompress.errors import BTCompressError
from btcompress.export.checking import TIMES, in_float64, most_of_rounding, relative_error, session
from btcompress.export.examples import Example, tensors_of

#: The largest error that is rounding, over the largest output, where the network cannot be converted to float64, so
#: that its own rounding is unknown.
_UNKNOWN = 1e-4
#: Share of whole numbers, such as classes, that rounding may change.
_FLIPPED = 0.01
#: The largest error of ONNX Runtime's sigmoid, whose small values are as far off as its large ones: at most 1.67e-7 at
#: two million numbers from -30 to 30 in onnxruntime 1.32, which at 1e-4 is 0.1 %. Torch's are exact to 1.5e-7 of each.
_OF_SIGMOID = 2.0**-22
#: Operators that compute sigmoids.
_SIGMOIDS = ("Sigmoid", "LSTM", "GRU")


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """A network in eval mode, until the block ends; its training flags and states are then as they were."""
    training = {module: module.training for module in network.modules()}
    with _unchanged(network):
        network.eval()
        try:
            yield
        finally:
            for module, flag in training.items():
                module.training = flag


def outputs_of(network: nn.Module, example: Example) -> list[Tensor]:
    """What a network gives, all tensors of it in order; its states are then as they were."""
    with _unchanged(network):
        return _called(network, example)


def check_repeats(network: nn.Module, example: Example, outputs: Sequence[Tensor]) -> None:
    """Refuse a network that gives something else when it is called again.

    Args:
        network: in eval mode.
        example: what it is called with.
        outputs: what it gave for it.

    Raises:
        BTCompressError: it keeps states from one call to the next, or draws random numbers, which no graph does.
    """
    with _unchanged(network):
        _called(network, example)
        again = _called(network, example)
    if not all(map(_agree, again, outputs)) or not _error(again, outputs) <= _limit(outputs, None):
        raise BTCompressError(
            "called again with the same inputs, the network gives something else: it keeps states from one call to "
            "the next, or draws random numbers, and a graph does neither. Have it take its states as inputs and give "
            "them back as outputs."
        )


def check_network(path: Path, network: nn.Module, example: Example, outputs: Sequence[Tensor]) -> float:
    """Compare a graph with its network.

    Args:
        path: the graph.
        network: in eval mode.
        example: what it was called with.
        outputs: what it gave.

    Returns:
        The largest difference of their outputs, over the network's largest output.

    Raises:
        BTCompressError: it is more than rounding explains, or ONNX Runtime does not run the graph.
    """
    found = _run(path, example)
    if len(found) != len(outputs):
        raise BTCompressError(
            f"the graph has {len(found)} outputs, but the network gives {len(outputs)} tensors, so nothing was "
            "written. Have the network give each tensor once, and nothing but tensors."
        )
    for number, (own, right) in enumerate(zip(found, outputs, strict=True)):
        if not _agree(own, right):
            raise BTCompressError(
                f"output {number} of the graph has shape {tuple(own.shape)} and the network's {tuple(right.shape)}, or "
                "their whole numbers differ, so nothing was written. Report this, with the network."
            )
    limit = _limit(outputs, _own_error(network, example, outputs))
    error = _error(found, outputs)
    if not error <= limit and not _error(found, outputs, _OF_SIGMOID * _has_sigmoid(path)) <= limit:
        raise BTCompressError(
            f"in ONNX Runtime the graph's outputs are off by {error:.1e} of the largest, where rounding explains "
            f"{limit:.1e}, so nothing was written. Export with another form, and report this."
        )
    return error


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Put back a network's buffers, and the tensors that are plain attributes, once the block ends."""
    kept = [
        (values, name, value, value.detach().clone())
        for module in network.modules()
        for values in (module._buffers, vars(module))
        for name, value in values.items()
        if isinstance(value, Tensor)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for values, name, value, before in kept:
                values[name] = value
                if not torch.equal(value.nan_to_num(), before.nan_to_num()):
                    value.copy_(before)


def _called(network: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return [output.detach().clone() for output in tensors_of(network(*example.args, **example.kwargs))]


def _limit(outputs: Sequence[Tensor], own_error: float | None) -> float:
    """The largest error that rounding explains, by that of the network itself where it is known."""
    if own_error is not None:
        return most_of_rounding(own_error)
    dtypes = [output.dtype for output in outputs if output.is_floating_point()]
    return max(_UNKNOWN, TIMES * max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0))


def _run(path: Path, example: Example) -> list[Tensor]:
    """What a graph gives."""
    if any(tensor.dtype == torch.bfloat16 for tensor in example.tensors):
        raise BTCompressError(
            "the network takes inputs in bfloat16, which ONNX Runtime cannot be given. Convert it to float32 "
            "(network.float()) and export that."
        )
    try:
        runtime = session(path)
        names = [each.name for each in runtime.get_inputs()]
        tensors = [tensor.detach().cpu().resolve_conj().numpy() for tensor in example.tensors]
        if len(names) != len(tensors):
            raise BTCompressError(
                f"the graph has {len(names)} inputs, but the example has {len(tensors)} tensors, so nothing was "
                "written. Give each tensor once, and nothing but tensors."
            )
        found = runtime.run(None, dict(zip(names, tensors, strict=True)))
    except BTCompressError:
        raise
    except Exception as error:
        raise BTCompressError(
            f"ONNX Runtime does not run the graph, so nothing was written: {str(error).strip():.400} Where an operator "
            "is not implemented for the network's numbers, convert it to float32 (network.float()) and export that."
        ) from error
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in found]


def _agree(own: Tensor, right: Tensor) -> bool:
    """Whether shapes are the same, and whole numbers too, but for a few."""
    if own.shape != right.shape:
        return False
    if right.is_floating_point():
        return True
    return not right.numel() or float((own.cpu() != right.cpu()).double().mean()) <= _FLIPPED


def _error(found: Sequence[Tensor], outputs: Sequence[Tensor], granted: float = 0.0) -> float:
    """The largest error of floating-point outputs, beyond the difference that is granted to each number.

    What is infinite or no number in both is no error.
    """
    own, right = [], []
    for mine, theirs in zip(found, outputs, strict=True):
        if theirs.is_floating_point() and theirs.numel():
            exact = theirs.detach().cpu().double()
            rounded = mine.detach().cpu().double()
            alike = ~exact.isfinite() & ((exact == rounded) | (exact.isnan() & rounded.isnan()))
            rounded, exact = rounded.masked_fill(alike, 0.0), exact.masked_fill(alike, 0.0)
            own.append(exact + ((rounded - exact).abs() - granted).clamp_min(0) if granted else rounded)
            right.append(exact)
    return relative_error(own, right) if own else 0.0


def _has_sigmoid(path: Path) -> bool:
    """Whether a graph computes sigmoids anywhere."""
    import onnx

    def has(nodes: Iterable[onnx.NodeProto]) -> bool:
        return any(
            node.op_type in _SIGMOIDS
            or any(has(graph.node) for each in node.attribute for graph in (each.g, *each.graphs))
            for node in nodes
        )

    model = onnx.load(path)
    return has(model.graph.node) or any(has(function.node) for function in model.functions)


def _own_error(network: nn.Module, example: Example, outputs: Sequence[Tensor]) -> float | None:
    """How far a network's own outputs are off by rounding; None where it does not run in float64."""
    try:
        exact = outputs_of(copy.deepcopy(network).double(), example.converted(in_float64))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return _error(outputs, exact) if len(exact) == len(outputs) else None
