"""Block-term modules in the place of others: with the same arguments, and matrices of other shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import nn

from btcompress.errors import ShapeError
from btcompress.nn.alterations import plain_type
from btcompress.nn.cell import BTLSTMCell
from btcompress.nn.linear import BTLinear
from btcompress.nn.lstm import ARGUMENTS, BTLSTM
from btcompress.nn.ways import Method
from btcompress.shapes import MatrixShape
from btcompress.text import listed

#: Modules that have a block-term form, and those that are in it.
Replaceable = nn.LSTM | nn.LSTMCell | nn.Linear | BTLSTM | BTLSTMCell | BTLinear


_MOST_SHOWN = 4

#: Methods that a subclass may have of its own, as nothing is computed with them once there are weights.
_WITHOUT_EFFECT = frozenset({"_abc_impl", "extra_repr", "flatten_parameters", "reset_parameters"})
_SPECIAL = frozenset({"__call__", "__getattr__", "__getattribute__", "__setattr__"})


class _Rest(TypedDict):
    device: torch.device
    dtype: torch.dtype
    method: Method
    keeps_formed: bool


def is_replaceable(module: nn.Module | None) -> bool:
    """Whether a module is of one of these types, or an LSTM that computes as torch's.

    Others may use their weights in ways of their own.
    """
    if type(module) in Replaceable.__args__:
        return True
    return module is not None and any(obstacle_to(module, each) is None for each in (nn.LSTM, nn.LSTMCell))


def obstacle_to(module: nn.Module | None, expected: type[nn.Module]) -> str | None:
    """Why no block-term layer can take the place of what is to be a layer of this type; None where one can.

    A subclass of an LSTM computes what torch's class does if it overrides nothing that computes. A method beyond that
    may be called by the model, and a block-term layer would not have it; plain attributes are taken over.

    Args:
        module: a layer of a model, or None where it has none.
        expected: ``nn.LSTM``, ``nn.LSTMCell`` or ``nn.Linear``, of which no subclass will do: its owner may be one
            that reads its weight.
    """
    if module is None:
        return "is not in the model"
    kind = plain_type(module)
    if kind is expected:
        return None
    if expected not in (nn.LSTM, nn.LSTMCell) or not isinstance(module, expected):
        return f"is a {kind.__name__}"
    of_classes = {name for each in kind.__mro__ if each not in expected.__mro__ for name in vars(each)}
    own = {name for name in of_classes if not _is_dunder(name) or name in _SPECIAL} - _WITHOUT_EFFECT
    replacement = BTLSTM if expected is nn.LSTM else BTLSTMCell
    own |= {name for name in _attributes(module) if hasattr(replacement, name)}
    if not own:
        return None
    return (
        f"is a {kind.__name__}, a subclass with {listed(sorted(own), _MOST_SHOWN)} of its own, which a "
        "block-term layer would not have"
    )


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _attributes(module: nn.Module) -> dict[str, object]:
    """What a subclass of an LSTM or a cell keeps beside the attributes of torch's class."""
    expected = nn.LSTM if isinstance(module, nn.LSTM) else nn.LSTMCell
    if plain_type(module) is expected:
        return {}
    usual = vars(expected(1, 1, device="meta"))
    return {name: value for name, value in vars(module).items() if name not in usual}


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
    if isinstance(old, nn.LSTM | nn.LSTMCell):
        for name, value in _attributes(old).items():
            setattr(new, name, value)
    return new.train(old.training)
