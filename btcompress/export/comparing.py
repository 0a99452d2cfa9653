"""Whether the graph of a whole network computes what the network does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from btcompress.errors import BTCompressError
from btcompress.export.checking import relative_error, session
from btcompress.export.examples import Example, tensors_of

#: Largest error that is rounding, over the largest output; and how often that of the network itself.
_ROUNDING, _TIMES = 1e-5, 10.0
#: The largest where the network cannot be converted to float64, so that its own rounding is unknown.
_UNKNOWN = 1e-4
#: Share of whole numbers, such as classes, that rounding may change.
_FLIPPED = 0.01


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """A network in eval mode, until the block ends; training flags and buffers are then as they were."""
    training = {module: module.training for module in network.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    network.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        with torch.no_grad():
            for buffer, before in buffers:
                if not same(buffer, before):
                    buffer.copy_(before)


def outputs_of(network: nn.Module, example: Example) -> list[Tensor]:
    """What a network gives, all tensors of it in order.

    Raises:
        BTCompressError: it changes its buffers on the way, which a graph cannot do.
    """
    before = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    with torch.no_grad():
        outputs = tensors_of(network(*example.args, **example.kwargs))
    changed = [name for name, buffer in network.named_buffers() if name in before and not same(buffer, before[name])]
    if changed:
        raise BTCompressError(
            f"the network changes its buffer {changed[0]} as it runs, but a graph keeps nothing from one run to the "
            "next. Have the network take such states as inputs and give them back as outputs."
        )
    return [output.detach().clone() for output in outputs]


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
        if own.shape != right.shape or not _agree(own, right):
            raise BTCompressError(
                f"output {number} of the graph has shape {tuple(own.shape)} and the network's {tuple(right.shape)}, or "
                "their whole numbers differ, so nothing was written. Report this, with the network."
            )
    own_error = _own_error(network, example, outputs)
    dtypes = [output.dtype for output in outputs if output.is_floating_point()]
    spacing = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    limit = max(_UNKNOWN, _TIMES * spacing) if own_error is None else max(_ROUNDING, _TIMES * own_error)
    error = _error(found, outputs)
    if not error <= limit:
        raise BTCompressError(
            f"in ONNX Runtime the graph's outputs are off by {error:.1e} of the largest, where rounding explains "
            f"{limit:.1e}, so nothing was written. A network that draws random numbers as it runs cannot be exported; "
            "else export with another form, and report this."
        )
    return error


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers, those that are none among them."""
    return first.shape == second.shape and torch.equal(first.nan_to_num(), second.nan_to_num())


def _run(path: Path, example: Example) -> list[Tensor]:
    """What a graph gives."""
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
    """Whether whole numbers are the same, but for a few."""
    if right.is_floating_point():
        return True
    return not right.numel() or float((own != right.cpu()).double().mean()) <= _FLIPPED


def _error(found: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """The largest error of floating-point outputs; what is infinite or no number in both is no error."""
    own, right = [], []
    for mine, theirs in zip(found, outputs, strict=True):
        if theirs.is_floating_point() and theirs.numel():
            exact = theirs.detach().cpu().double()
            mine = mine.double()
            alike = ~exact.isfinite() & ((exact == mine) | (exact.isnan() & mine.isnan()))
            own.append(mine.masked_fill(alike, 0.0))
            right.append(exact.masked_fill(alike, 0.0))
    return relative_error(own, right) if own else 0.0


def _own_error(network: nn.Module, example: Example, outputs: Sequence[Tensor]) -> float | None:
    """How far a network's own outputs are off by rounding; None where it does not run in float64."""
    try:
        exact = outputs_of(copy.deepcopy(network).double(), example.converted(_in_float64))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return _error(outputs, exact) if len(exact) == len(outputs) else None


def _in_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
