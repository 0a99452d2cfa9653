"""Modules of the recurrent layers of a result: dense, as block terms, and with the interface that all exports have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.models import apply
from btcompress.nn.replacing import classes_of
from btcompress.shapes import GATES, Cell


def kind_of(module: nn.Module) -> tuple[Cell, bool]:
    """What a recurrent layer computes, and whether it is a single step.

    Raises:
        TypeError: it is none.
    """
    kinds = ((cell, is_cell) for cell in GATES for is_cell in (False, True))
    found = next((kind for kind in kinds if isinstance(module, classes_of(*kind))), None)
    if found is None:
        raise TypeError(f"a {type(module).__name__} is no recurrent layer")
    return found


#: How a layer is run: inputs and initial states, to outputs and final states.
Run = Callable[[nn.Module, "Tensor | PackedSequence", Sequence[Tensor]], tuple["Tensor | PackedSequence", ...]]


def whole(
    layer: nn.Module, x: Tensor | PackedSequence, states: Sequence[Tensor]
) -> tuple[Tensor | PackedSequence, ...]:
    """A layer that is called as torch's are: of one state, they have no tuples."""
    y, final = layer(x, tuple(states) if len(states) > 1 else states[0])
    return (y, final) if isinstance(final, Tensor) else (y, *final)


class ExportedLayer(nn.Module):
    """A recurrent layer with states in and out, in the manner of every export.

    Args:
        layer: called as :class:`torch.nn.LSTM`, ``GRU`` or ``RNN`` are.
        run: how it is run.
    """

    def __init__(self, layer: nn.Module, run: Run = whole) -> None:
        super().__init__()
        self.layer = layer
        self._run = run

    def run(self, x: Tensor | PackedSequence, *states: Tensor) -> tuple[Any, ...]:
        """``(T, B, I)``, or ``(B, T, I)``, or packed, and states ``(layers * directions, B, H)``, to the like."""
        return self._run(self.layer, x, states)


class LayerOfTwoStates(ExportedLayer):
    """An LSTM that takes ``x``, ``h0`` and ``c0``, and gives ``y``, ``hn`` and ``cn``."""

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`run`."""
        return self.run(x, h0, c0)


class LayerOfOneState(ExportedLayer):
    """A GRU or a plain RNN that takes ``x`` and ``h0``, and gives ``y`` and ``hn``."""

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`run`."""
        return self.run(x, h0)


def layer_module(
    compressed: CompressedCheckpoint,
    entry: RecurrentEntry,
    dtype: torch.dtype | None = None,
    *,
    batch_first: bool = False,
) -> ExportedLayer:
    """A recurrent layer of a result, or a cell as one of a single layer, in eval mode.

    Args:
        compressed: the result.
        entry: which layer.
        dtype: of its parameters; that which it has in the result where left out.
        batch_first: whether inputs and outputs are ``(B, T, ...)``.
    """
    dtype = dtype_of(compressed, entry) if dtype is None else dtype
    own, entry = as_layer(compressed, entry)
    layer = block_term_module(own, entry, dtype, "cpu", batch_first=batch_first)
    kind = LayerOfTwoStates if entry.n_states > 1 else LayerOfOneState
    return kind(layer).requires_grad_(False).eval()


def dtype_of(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> torch.dtype:
    """In which a layer computes."""
    return compressed.outline()[entry.recurrent_keys[0]].dtype


def as_layer(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> tuple[CompressedCheckpoint, RecurrentEntry]:
    """The part of a result that is one recurrent layer, and its entry; a cell is one of a single layer there."""
    own = compressed.only(entry.keys)
    if not entry.is_cell:
        return own, entry

    def named(name: str) -> str:
        key = next(key for key in entry.keys if name == key or name.startswith(f"{key}."))
        return f"{key}_l0{name.removeprefix(key)}"

    layer = replace(
        own,
        tensors={named(name): tensor for name, tensor in own.tensors.items()},
        matrices={named(key): matrix for key, matrix in own.matrices.items()},
        keys=tuple(named(key) for key in own.keys),
        rounded={named(key): matrix for key, matrix in own.rounded.items()},
        stored={named(name): how for name, how in own.stored.items()},
    )
    return layer, replace(entry, kind=entry.type)


def block_term_module(
    compressed: CompressedCheckpoint,
    entry: RecurrentEntry,
    dtype: torch.dtype,
    device: str,
    *,
    batch_first: bool = False,
) -> nn.Module:
    """A recurrent layer or cell of a result as :func:`btcompress.apply` puts it into a model."""
    empty = _empty(entry, dtype, device, batch_first=batch_first)
    return apply(empty, compressed.only(entry.keys), prefix=entry.prefix)


def dense_module(entry: RecurrentEntry, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> nn.Module:
    """The dense layer or cell with weights by their keys; shares no storage with them."""
    module = _empty(entry, dtype, device)
    module.load_state_dict({key.removeprefix(entry.prefix): tensors[key] for key in entry.keys})
    return module


def _empty(entry: RecurrentEntry, dtype: torch.dtype, device: str, *, batch_first: bool = False) -> nn.Module:
    """The dense layer or cell, its weights not set."""
    build: Callable[..., nn.Module] = classes_of(entry.type, entry.is_cell)[0]
    arguments = entry.arguments | ({} if entry.is_cell else {"batch_first": batch_first})
    return build(**arguments, device="meta", dtype=dtype).to_empty(device=device)
