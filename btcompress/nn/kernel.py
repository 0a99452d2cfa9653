"""Torch's LSTM kernel, as each of those who may look on has to be shown it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

#: Outputs, and the final ``h`` and ``c``.
Outputs = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Kernel:
    """``torch.lstm`` of one layer, on tensors that are in the dtype to compute in.

    Attributes:
        weights: for each direction ``weight_ih, weight_hh``, then both biases, then ``weight_hr``, as they apply.
        bias: whether there are biases.
        training: whether the kernel is told that gradients will be asked for.
        bidirectional: whether there are two directions.
        batch_first: the order of the first two axes of inputs and outputs.
        batch_sizes: sequences at each step, for packed inputs.
    """

    weights: Sequence[Tensor]
    bias: bool
    training: bool
    bidirectional: bool
    batch_first: bool = False
    batch_sizes: Tensor | None = None

    def run(self, inputs: Tensor, h: Tensor, c: Tensor) -> Outputs:
        """The layer.

        An exporter or tracer is shown the kernel itself, as one operation that any torch can run. A compiler keeps its
        hands off it, as it does off :class:`torch.nn.LSTM`: what it makes of it can fail, or is unrolled over time.
        Where nobody asks for gradients it finds an operation of ours in its graph; else its graph ends here.
        """
        if not torch.compiler.is_compiling():
            return self._in_its_dtype(inputs, h, c)
        if _is_exporting():
            return self._exported(inputs, h, c)
        tensors = (inputs, h, c, *self.weights)
        if self.batch_sizes is not None or (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)):
            return torch.compiler.disable(self._in_its_dtype)(inputs, h, c)
        steps_first = inputs.transpose(0, 1) if self.batch_first else inputs
        outputs, h, c = lstm_layer(steps_first, h, c, list(self.weights), self.bias, self.bidirectional)
        return (outputs.transpose(0, 1) if self.batch_first else outputs), h, c

    def _exported(self, inputs: Tensor, h: Tensor, c: Tensor) -> Outputs:
        if self.batch_sizes is not None:
            return self._in_its_dtype(inputs, h, c)
        if torch.compiler.is_dynamo_compiling():
            _leave_to_exporter()
        return _shown(inputs, h, c, list(self.weights), self.bias, self.training, self.bidirectional, self.batch_first)

    def _in_its_dtype(self, inputs: Tensor, h: Tensor, c: Tensor) -> Outputs:
        device = inputs.device.type
        autocasts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if device == "cpu" and not autocasts:
            return self._called(inputs, h, c)
        with ExitStack() as stack:
            if autocasts:
                # On CUDA it would cast them to float16 here, whatever dtype it is set to.
                stack.enter_context(torch.autocast(device, enabled=False))
            if device != "cpu":
                # Matrices formed anew never lie in one piece of memory, which cuDNN gives advice about at each call.
                stack.enter_context(warnings.catch_warnings())
                message = "RNN module weights are not part of single contiguous chunk of memory"
                warnings.filterwarnings("ignore", message)
            return self._called(inputs, h, c)

    def _called(self, inputs: Tensor, h: Tensor, c: Tensor) -> Outputs:
        # The kernel has nothing random to do in one layer.
        common = (list(self.weights), self.bias, 1, 0.0, self.training, self.bidirectional)
        if self.batch_sizes is not None:
            return torch.lstm(inputs, self.batch_sizes, (h, c), *common)
        return torch.lstm(inputs, (h, c), *common, self.batch_first)


def _shown(
    inputs: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Outputs:
    """The layer, as an exporter is shown it."""
    with _sizes_alone():
        return Kernel(weights, bias, training, bidirectional, batch_first)._in_its_dtype(inputs, h, c)


def _leave_to_exporter() -> None:
    """Have the compiler that helps an exporter (``strict=True``) not look into the function above."""
    torch.compiler.allow_in_graph(_shown)


#: So that the compiler calls it as it traces; see :func:`btcompress.contraction.layout.plan_layout`.
_leave_to_exporter._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def _sizes_alone() -> Iterator[None]:
    """Have an exporter learn the sizes of the kernel's results without the steps, which would be held for constant.

    To learn sizes, torch unrolls the kernel over time, and so refuses any number of steps but the one it sees. Where
    another torch has other means, it is left to them.
    """
    from torch._decomp import decompositions

    name = "select_one_layer_lstm_function"
    taken = getattr(decompositions, name, None)
    if taken is None:
        yield
        return
    setattr(decompositions, name, lambda *_: _sizes_of_layer)
    try:
        yield
    finally:
        setattr(decompositions, name, taken)


def _sizes_of_layer(
    inputs: Tensor, state: Sequence[Tensor], *_: object, **__: object
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Tensors of the sizes that one direction gives; states are those of one layer, without its axis."""
    h, c = state
    return inputs.new_empty(*inputs.shape[:2], h.shape[-1]), (torch.empty_like(h), torch.empty_like(c))


def _is_exporting() -> bool:
    # Torch 2.6 does not say so where its compiler helps the exporter (strict=True).
    asked = getattr(torch.compiler, "is_exporting", None)
    return not torch.compiler.is_dynamo_compiling() if asked is None else bool(asked())


_SIGNATURE = "(Tensor inputs, Tensor h, Tensor c, Tensor[] weights, bool bias, bool bidirectional)"


@torch.library.custom_op("btcompress::lstm_layer", mutates_args=(), schema=f"{_SIGNATURE} -> (Tensor, Tensor, Tensor)")
def lstm_layer(inputs: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], bias: bool, bidirectional: bool) -> Outputs:
    """One layer without gradients, as one operation that a compiler does not look into."""
    return Kernel(weights, bias, False, bidirectional)._in_its_dtype(inputs, h, c)


@lstm_layer.register_fake
def _sizes(inputs: Tensor, h: Tensor, c: Tensor, *_: object) -> Outputs:
    """Tensors of the sizes that the results have."""
    outputs = inputs.new_empty(*inputs.shape[:2], len(h) * h.shape[-1])
    return outputs, h.new_empty(h.shape), c.new_empty(c.shape)
