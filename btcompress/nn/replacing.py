"""Block-term modules in the place of others: with the same arguments, and matrices of other shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import nn

from btcompress.errors import ShapeError
from btcompress.nn.cell import BTLSTMCell
from btcompress.nn.linear import BTLinear
from btcompress.nn.lstm import ARGUMENTS, BTLSTM
from btcompress.nn.ways import Method
from btcompress.shapes import MatrixShape

#: Modules that have a block-term form, and those that are in it.
Replaceable = nn.LSTM | nn.LSTMCell | nn.Linear | BTLSTM | BTLSTMCell | BTLinear


class _Rest(TypedDict):
    device: torch.device
    dtype: torch.dtype
    method: Method
    keeps_formed: bool


def is_replaceable(module: nn.Module | None) -> bool:
    """Whether a module is of exactly one of these types: others may use their weights in ways of their own."""
    return type(module) in Replaceable.__args__


def with_shapes(old: Replaceable, shapes: Mapping[str, MatrixShape]) -> BTLSTM | BTLSTMCell | BTLinear:
    """A new block-term module of the same arguments, dtype, device and training flag, its parameters drawn.

    Args:
        old: never changed.
        shapes: by the names of its matrices; all others are dense.

    Raises:
        ShapeError: a shape is given for what is no matrix, or one of another size, or a linear layer has none.
    """
    weight = next(old.parameters())
    keeps = getattr(old, "keeps_formed", True)
    rest: _Rest = {
        "device": weight.device,
        "dtype": weight.dtype,
        "method": getattr(old, "method", "auto"),
        "keeps_formed": keeps,
    }
    new: BTLSTM | BTLSTMCell | BTLinear
    if isinstance(old, nn.LSTM | BTLSTM):
        arguments = {name: getattr(old, name) for name in ARGUMENTS}
        new = BTLSTM(old.input_size, old.hidden_size, **arguments, **rest, shapes=shapes)
    elif isinstance(old, nn.LSTMCell | BTLSTMCell):
        new = BTLSTMCell(old.input_size, old.hidden_size, bool(old.bias), **rest, shapes=shapes)
    else:
        if shapes.keys() != {"weight"}:
            raise ShapeError(f"a linear layer has a weight, but shapes are given for {', '.join(shapes)}.")
        has_bias = getattr(old, "bias", None) is not None
        new = BTLinear(old.in_features, old.out_features, has_bias, **rest, shape=shapes["weight"])
    return new.train(old.training)
