"""Block-term modules in the place of others: with the same arguments, and matrices of other shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict, cast

import torch
from torch import nn

from btcompress.errors import ShapeError
from btcompress.nn.alterations import plain_type
from btcompress.nn.cell import BTCell, BTGRUCell, BTLSTMCell, BTRNNCell
from btcompress.nn.gru import BTGRU
from btcompress.nn.layers import BTRecurrent
from btcompress.nn.linear import BTLinear
from btcompress.nn.lstm import BTLSTM
from btcompress.nn.rnn import BTRNN
from btcompress.nn.ways import Method
from btcompress.shapes import Cell, MatrixShape
from btcompress.text import listed

#: Modules of torch that have a block-term form.
Dense = nn.LSTM | nn.GRU | nn.RNN | nn.LSTMCell | nn.GRUCell | nn.RNNCell | nn.Linear

#: Modules that are in it.
Recurrent = BTLSTM | BTGRU | BTRNN | BTLSTMCell | BTGRUCell | BTRNNCell
BlockTerm = Recurrent | BTLinear

Replaceable = Dense | BlockTerm

#: Torch's class and ours for layers and for single steps, by the cell.
_CLASSES: dict[Cell, tuple[tuple[type[nn.Module], type[Recurrent]], tuple[type[nn.Module], type[Recurrent]]]] = {
    "lstm": ((nn.LSTM, BTLSTM), (nn.LSTMCell, BTLSTMCell)),
    "gru": ((nn.GRU, BTGRU), (nn.GRUCell, BTGRUCell)),
    "rnn": ((nn.RNN, BTRNN), (nn.RNNCell, BTRNNCell)),
}

#: Our class in the place of each of torch's.
_OURS: dict[type[nn.Module], type[Recurrent]] = {dense: ours for pair in _CLASSES.values() for dense, ours in pair}


_MOST_SHOWN = 4

#: Methods that a subclass may have of its own, as nothing is computed with them once there are weights.
_WITHOUT_EFFECT = frozenset({"_abc_impl", "extra_repr", "flatten_parameters", "reset_parameters"})
_SPECIAL = frozenset({"__call__", "__getattr__", "__getattribute__", "__setattr__"})


class _Rest(TypedDict):
    device: torch.device
    dtype: torch.dtype
    method: Method
    keeps_formed: bool


def classes_of(type: Cell, is_cell: bool) -> tuple[type[nn.Module], type[Recurrent]]:  # noqa: A002 - as in entries
    """Torch's class and the block-term one.

    Args:
        type: what is computed at each step, as :attr:`btcompress.checkpoint.RecurrentEntry.type` says.
        is_cell: whether of a single step.
    """
    return _CLASSES[type][is_cell]


def is_replaceable(module: nn.Module | None) -> bool:
    """Whether a module is of one of these types, or a recurrent layer that computes as torch's.

    Others may use their weights in ways of their own.
    """
    if type(module) in Replaceable.__args__:
        return True
    return module is not None and any(obstacle_to(module, each) is None for each in _OURS)


def obstacle_to(module: nn.Module | None, expected: type[nn.Module]) -> str | None:
    """Why no block-term layer can take the place of what is to be a layer of this type; None where one can.

    A subclass of a recurrent layer computes what torch's class does if it overrides nothing that computes. A method
    beyond that may be called by the model, and a block-term layer would not have it; plain attributes are taken over.

    Args:
        module: a layer of a model, or None where it has none.
        expected: a recurrent layer or cell of ``torch.nn``, or ``nn.Linear``, of which no subclass will do: its owner
            may be one that reads its weight.
    """
    if module is None:
        return "is not in the model"
    kind = plain_type(module)
    if kind is expected:
        return None
    if expected not in _OURS or not isinstance(module, expected):
        return f"is a {kind.__name__}"
    of_classes = {name for each in kind.__mro__ if each not in expected.__mro__ for name in vars(each)}
    own = {name for name in of_classes if not _is_dunder(name) or name in _SPECIAL} - _WITHOUT_EFFECT
    own |= {name for name in _attributes(module) if hasattr(_OURS[expected], name)}
    if not own:
        return None
    return (
        f"is a {kind.__name__}, a subclass with {listed(sorted(own), _MOST_SHOWN)} of its own, which a "
        "block-term layer would not have"
    )


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _attributes(module: nn.Module) -> dict[str, object]:
    """What a subclass of a recurrent layer or a cell keeps beside the attributes of torch's class."""
    expected = next(each for each in _OURS if isinstance(module, each))
    if plain_type(module) is expected:
        return {}
    build: Callable[..., nn.Module] = expected
    usual = vars(build(1, 1, device="meta"))
    return {name: value for name, value in vars(module).items() if name not in usual}


def with_shapes(old: Replaceable, shapes: Mapping[str, MatrixShape]) -> BlockTerm:
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
    if isinstance(old, nn.Linear | BTLinear):
        if shapes.keys() != {"weight"}:
            raise ShapeError(f"a linear layer has a weight, but shapes are given for {', '.join(shapes)}.")
        has_bias = getattr(old, "bias", None) is not None
        linear = BTLinear(old.in_features, old.out_features, has_bias, **rest, shape=shapes["weight"])
        return linear.train(old.training)
    new = _recurrent(old, shapes, rest)
    if not isinstance(old, BTRecurrent | BTCell):
        for name, value in _attributes(old).items():
            setattr(new, name, value)
    return new.train(old.training)


def _recurrent(old: nn.Module, shapes: Mapping[str, MatrixShape], rest: _Rest) -> Recurrent:
    """A module of the same arguments as a recurrent layer or cell, torch's or ours."""
    ours = next(ours for dense, ours in _OURS.items() if isinstance(old, dense | ours))
    arguments: dict[str, Any] = {name: getattr(old, name) for name in ours._arguments}
    arguments["bias"] = bool(arguments["bias"])
    build = cast(Callable[..., Recurrent], ours)
    return build(old.input_size, old.hidden_size, **arguments, **rest, shapes=shapes)
