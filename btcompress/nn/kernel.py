"""Torch's kernel of a recurrent layer, as each of those who may look on has to be shown it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from btcompress.contraction import autocasts
from btcompress.nn.celltype import KernelName, State

#: Outputs, and the final states.
Outputs = tuple[Tensor, State]


@dataclass(frozen=True, slots=True)
class Kernel:
    """``torch.lstm``, or its like for another cell, of one layer, on tensors that are in the dtype to compute in.

    Attributes:
        weights: for each direction ``weight_ih, weight_hh``, then both biases, then ``weight_hr``, as they apply.
        bias: whether there are biases.
        training: whether the kernel is told that gradients will be asked for.
        bidirectional: whether there are two directions.
        batch_first: the order of the first two axes of inputs and outputs.
        batch_sizes: sequences at each step, for packed inputs.
        name: of the function of ``torch``.
    """

    weights: Sequence[Tensor]
    bias: bool
    training: bool
    bidirectional: bool
    batch_first: bool = False
    batch_sizes: Tensor | None = None
    name: KernelName = "lstm"

    def run(self, inputs: Tensor, state: State) -> Outputs:
        """The layer.

        An exporter or tracer is shown the kernel itself, as one operation that any torch can run. A compiler keeps its
        hands off it, as it does off :class:`torch.nn.LSTM`: what it makes of it can fail, or is unrolled over time.
        Where nobody asks for gradients it finds an operation of ours in its graph; else its graph ends here.
        """
        if not torch.compiler.is_compiling():
            return self._in_its_dtype(inputs, state)
        if _is_exporting():
            return self._exported(inputs, state)
        tensors = (inputs, *state, *self.weights)
        if self.batch_sizes is not None or (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)):
            return torch.compiler.disable(self._in_its_dtype)(inputs, state)
        steps_first = inputs.transpose(0, 1) if self.batch_first else inputs
        outputs, final = self._as_operation(steps_first, state)
        return (outputs.transpose(0, 1) if self.batch_first else outputs), final

    def _as_operation(self, inputs: Tensor, state: State) -> Outputs:
        arguments = (list(self.weights), self.bias, self.bidirectional)
        if self.name == "lstm":
            outputs, h, c = lstm_layer(inputs, *state, *arguments)
            return outputs, (h, c)
        outputs, h = one_state_layer(inputs, *state, *arguments, self.name)
        return outputs, (h,)

    def _exported(self, inputs: Tensor, state: State) -> Outputs:
        if self.batch_sizes is not None:
            return self._in_its_dtype(inputs, state)
        if torch.compiler.is_dynamo_compiling():
            _leave_to_exporter()
        outputs, *final = _shown(
            inputs,
            list(state),
            list(self.weights),
            self.bias,
            self.training,
            self.bidirectional,
            self.batch_first,
            self.name,
        )
        return outputs, tuple(final)

    def _in_its_dtype(self, inputs: Tensor, state: State) -> Outputs:
        device = inputs.device.type
        casts = autocasts(device)
        if device == "cpu" and not (casts and self.name != "gru"):
            # What torch's own GRU computes under autocast has the dtype of its states.
            return self._called(inputs, state)
        with ExitStack() as stack:
            if casts:
                # On CUDA it would cast them to float16 here, whatever dtype it is set to.
                stack.enter_context(torch.autocast(device, enabled=False))
            if device != "cpu":
                # Matrices formed anew never lie in one piece of memory, which cuDNN gives advice about at each call.
                stack.enter_context(warnings.catch_warnings())
                message = "RNN module weights are not part of single contiguous chunk of memory"
                warnings.filterwarnings("ignore", message)
            return self._called(inputs, state)

    def _called(self, inputs: Tensor, state: State) -> Outputs:
        # The kernel has nothing random to do in one layer.
        common = (list(self.weights), self.bias, 1, 0.0, self.training, self.bidirectional)
        given: Any = state if self.name == "lstm" else state[0]
        function: Callable[..., tuple[Tensor, ...]] = getattr(torch, self.name)
        if self.batch_sizes is not None:
            outputs, *final = function(inputs, self.batch_sizes, given, *common)
        else:
            outputs, *final = function(inputs, given, *common, self.batch_first)
        return outputs, tuple(final)


def _shown(
    inputs: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
    name: KernelName,
) -> tuple[Tensor, ...]:
    """Outputs and final states of the layer, as an exporter is shown it."""
    with _sizes_alone():
        kernel = Kernel(weights, bias, training, bidirectional, batch_first, name=name)
        outputs, final = kernel._in_its_dtype(inputs, tuple(state))
    return outputs, *final


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

    taken = {name: getattr(decompositions, name) for name in _STEPPING if hasattr(decompositions, name)}
    for name in taken:
        setattr(decompositions, name, _STEPPING[name])
    try:
        yield
    finally:
        for name, function in taken.items():
            setattr(decompositions, name, function)


def _sizes_of_lstm(
    inputs: Tensor, state: Sequence[Tensor], *_: object, **__: object
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Tensors of the sizes that one direction gives; states are those of one layer, without its axis."""
    h, c = state
    return inputs.new_empty(*inputs.shape[:2], h.shape[-1]), (torch.empty_like(h), torch.empty_like(c))


def _sizes_of_one_state(inputs: Tensor, h: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    """The same, of a GRU or a plain RNN."""
    # Under autocast a GRU has the dtype of its states.
    return h.new_empty(*inputs.shape[:2], h.shape[-1]), torch.empty_like(h)


#: What in torch takes the steps there, by name: a choice of such a function for an LSTM, and the function of others.
_STEPPING: dict[str, Callable[..., Any]] = {
    "select_one_layer_lstm_function": lambda *_: _sizes_of_lstm,
    "one_layer_rnn": _sizes_of_one_state,
}


def _is_exporting() -> bool:
    # Torch 2.6 does not say so where its compiler helps the exporter (strict=True).
    asked = getattr(torch.compiler, "is_exporting", None)
    return not torch.compiler.is_dynamo_compiling() if asked is None else bool(asked())


_LAST = "Tensor[] weights, bool bias, bool bidirectional"
_LSTM_SCHEMA = f"(Tensor inputs, Tensor h, Tensor c, {_LAST}) -> (Tensor, Tensor, Tensor)"


@torch.library.custom_op("btcompress::lstm_layer", mutates_args=(), schema=_LSTM_SCHEMA)
def lstm_layer(
    inputs: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], bias: bool, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer without gradients, as one operation that a compiler does not look into."""
    outputs, (h, c) = Kernel(weights, bias, False, bidirectional)._in_its_dtype(inputs, (h, c))
    return outputs, h, c


@lstm_layer.register_fake
def _lstm_sizes(inputs: Tensor, h: Tensor, c: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the sizes that the results have."""
    outputs = inputs.new_empty(*inputs.shape[:2], len(h) * h.shape[-1])
    return outputs, h.new_empty(h.shape), c.new_empty(c.shape)


_ONE_STATE_SCHEMA = f"(Tensor inputs, Tensor h, {_LAST}, str name) -> (Tensor, Tensor)"


@torch.library.custom_op("btcompress::one_state_layer", mutates_args=(), schema=_ONE_STATE_SCHEMA)
def one_state_layer(
    inputs: Tensor, h: Tensor, weights: list[Tensor], bias: bool, bidirectional: bool, name: KernelName
) -> tuple[Tensor, Tensor]:
    """The same of a GRU or a plain RNN."""
    outputs, (h,) = Kernel(weights, bias, False, bidirectional, name=name)._in_its_dtype(inputs, (h,))
    return outputs, h


@one_state_layer.register_fake
def _one_state_sizes(inputs: Tensor, h: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Tensors of the sizes that the results have, and of the dtype of the states."""
    return h.new_empty(*inputs.shape[:2], len(h) * h.shape[-1]), h.new_empty(h.shape)
