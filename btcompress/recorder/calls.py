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
from btcompress.nn import BTLSTM, BTLinear, BTLSTMCell

State = tuple[Tensor, Tensor]

LSTMS = (nn.LSTM, BTLSTM)
CELLS = (nn.LSTMCell, BTLSTMCell)
LINEAR = (nn.Linear, BTLinear)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a layer was called with.

    Attributes:
        x: inputs, shape ``(B, T, I)``.
        lengths: steps of each sequence; None where all have ``T``.
        start: ``h`` and ``c`` that were given, shapes ``(directions * L, B, H)``; None where none were.
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
        layer: an LSTM, a cell or a linear layer.
        args: that it was called with.
        kwargs: that it was called with.
        output: what it returned.

    Raises:
        BTCompressError: it was called in a way of its own, or with numbers that are not finite.
    """
    read: Callable[..., Call] = _linear if isinstance(layer, LINEAR) else _cell if isinstance(layer, CELLS) else _lstm
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


def _lstm(layer: nn.LSTM | BTLSTM, inputs: Tensor | PackedSequence, state: State | None, output: Any) -> Call:  # noqa: ANN401
    end: State = output[1]
    lengths = None
    if isinstance(inputs, PackedSequence):
        x, n_steps = pad_packed_sequence(inputs, batch_first=True)
        lengths = tuple(n_steps.tolist())
    elif inputs.dim() == 2:
        x, state, end = inputs.unsqueeze(0), state and _with_batch(state), _with_batch(end)
    else:
        x = inputs if layer.batch_first else inputs.transpose(0, 1)
    # What runs backward ends where its next steps would have begun, so it never goes on.
    return Call(x, lengths, _checked(state, x), None if layer.bidirectional else _checked(end, x))


def _cell(_: nn.Module, inputs: Tensor, state: State | None, output: State) -> Call:
    x = inputs.reshape(-1, 1, inputs.shape[-1])
    start, end = (state and _as_of_lstm(state) for state in (state, output))
    return Call(x, None, _checked(start, x), _checked(end, x))


def _linear(_: nn.Module, inputs: Tensor, *__: object) -> Call:
    n_sequences = inputs.shape[0] if inputs.dim() > 1 else 1
    return Call(inputs.reshape(n_sequences, math.prod(inputs.shape[1:-1]), inputs.shape[-1]), None, None, None)


def _with_batch(state: State) -> State:
    return state[0].unsqueeze(1), state[1].unsqueeze(1)


def _as_of_lstm(state: State) -> State:
    return state[0].reshape(1, -1, state[0].shape[-1]), state[1].reshape(1, -1, state[1].shape[-1])


def _checked(state: State | None, x: Tensor) -> State | None:
    """The state, if it has a part for each sequence."""
    if state is None:
        return None
    h, c = state
    if not h.dim() == c.dim() == x.dim() or not h.shape[1] == c.shape[1] == len(x):
        raise ValueError(f"its states have shapes {tuple(h.shape)} and {tuple(c.shape)}")
    return h, c
