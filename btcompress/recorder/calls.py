"""What a call of a layer says, whatever the layout: sequences, and the states that they start from and end in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from btcompress.errors import BTCompressError
from btcompress.nn import BTLinear
from btcompress.nn.celltype import State
from btcompress.nn.replacing import classes_of
from btcompress.shapes import GATES

RECURRENT, CELLS = (
    tuple(kind for each in GATES for kind in classes_of(each, is_cell=is_cell)) for is_cell in (False, True)
)
LINEAR = (nn.Linear, BTLinear)


#: A state as a layer takes and gives it.
_Given = State | Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a layer was called with.

    Attributes:
        x: inputs, shape ``(B, T, I)``.
        lengths: steps of each sequence; None where all have ``T``.
        start: ``h``, and ``c`` of an LSTM, that were given, shapes ``(directions * L, B, H)``; None where none were.
        end: those that it ended in, from which a later call may go on; None where none can.
    """

    x: Tensor
    lengths: tuple[int, ...] | None
    start: State | None
    end: State | None


def call_of(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: object) -> Call:
    """What a call of a layer says.

    Args:
        name: of the layer, for messages.
        layer: a recurrent layer, a cell or a linear layer.
        args: that it was called with.
        kwargs: that it was called with.
        output: what it returned.

    Raises:
        BTCompressError: it was called in a way of its own, or with numbers that are not finite.
    """
    read: Callable[..., Call] = _linear if isinstance(layer, LINEAR) else _cell if isinstance(layer, CELLS) else _layer
    inputs = args[0] if args else kwargs.get("input")
    state = args[1] if len(args) > 1 else kwargs.get("hx")
    try:
        call = read(layer, inputs, state, output)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise BTCompressError(
            f"{name} is a {type(layer).__name__} that is called in a way of its own ({error}), so its inputs cannot be "
            "recorded. Leave it out: layers=('!NAME',)."
        ) from error
    for what, value in (("an input", call.x), *(("a state", each) for each in call.start or ())):
        if not torch.isfinite(value).all():
            raise BTCompressError(
                f"{name} got {what} that is NaN or infinite. Find out where it comes from, or run the model on other "
                "inputs."
            )
    return call


def _layer(layer: nn.RNNBase, inputs: Tensor | PackedSequence, hx: _Given, output: tuple[Any, _Given]) -> Call:
    start, end = _state(hx), _state(output[1])
    lengths = None
    if isinstance(inputs, PackedSequence):
        x, n_steps = pad_packed_sequence(inputs, batch_first=True)
        lengths = tuple(n_steps.tolist())
    elif inputs.dim() == 2:
        x, start, end = inputs.unsqueeze(0), _with_batch(start), _with_batch(end)
    else:
        x = inputs if layer.batch_first else inputs.transpose(0, 1)
    # What runs backward ends where its next steps would have begun, so it never goes on.
    return Call(x, lengths, _checked(start, x), None if layer.bidirectional else _checked(end, x))


def _cell(_: nn.Module, inputs: Tensor, hx: _Given, output: _Given) -> Call:
    x = inputs.reshape(-1, 1, inputs.shape[-1])
    start, end = (_as_of_layers(_state(given)) for given in (hx, output))
    return Call(x, None, _checked(start, x), _checked(end, x))


def _linear(_: nn.Module, inputs: Tensor, *__: object) -> Call:
    n_sequences = inputs.shape[0] if inputs.dim() > 1 else 1
    return Call(inputs.reshape(n_sequences, math.prod(inputs.shape[1:-1]), inputs.shape[-1]), None, None, None)


def _state(given: _Given) -> State | None:
    """A state as a tuple: an LSTM's is one already, all others have a tensor."""
    return (given,) if isinstance(given, Tensor) else given


def _with_batch(state: State | None) -> State | None:
    return state and tuple(each.unsqueeze(1) for each in state)


def _as_of_layers(state: State | None) -> State | None:
    return state and tuple(each.reshape(1, -1, each.shape[-1]) for each in state)


def _checked(state: State | None, x: Tensor) -> State | None:
    """The state, if it has a part for each sequence."""
    if state is None:
        return None
    if any(each.dim() != x.dim() or each.shape[1] != len(x) for each in state):
        raise ValueError(f"its states have shapes {' and '.join(str(tuple(each.shape)) for each in state)}")
    return state
