"""Modules of the LSTMs of a result: dense, as block terms, and with the interface that all exports have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.models import apply


class ExportedLayer(nn.Module):
    """An LSTM that takes ``x``, ``h0`` and ``c0``, and gives ``y``, ``hn`` and ``cn``.

    Args:
        lstm: an LSTM that is called as :class:`torch.nn.LSTM` is.
    """

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(T, B, I)``, or ``(B, T, I)``, and states ``(layers * directions, B, H)``, to the like."""
        y, (hn, cn) = self.lstm(x, (h0, c0))
        return y, hn, cn


def layer_module(
    compressed: CompressedCheckpoint,
    entry: RecurrentEntry,
    dtype: torch.dtype | None = None,
    *,
    batch_first: bool = False,
) -> ExportedLayer:
    """An LSTM of a result, or a cell as an LSTM of one layer, in eval mode.

    Args:
        compressed: the result.
        entry: which LSTM.
        dtype: of its parameters; that which it has in the result where left out.
        batch_first: whether inputs and outputs are ``(B, T, ...)``.
    """
    dtype = dtype_of(compressed, entry) if dtype is None else dtype
    own, entry = as_layer(compressed, entry)
    lstm = block_term_module(own, entry, dtype, "cpu", batch_first=batch_first)
    return ExportedLayer(lstm).requires_grad_(False).eval()


def dtype_of(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> torch.dtype:
    """In which an LSTM computes."""
    return compressed.outline()[entry.recurrent_keys[0]].dtype


def as_layer(compressed: CompressedCheckpoint, entry: RecurrentEntry) -> tuple[CompressedCheckpoint, RecurrentEntry]:
    """The part of a result that is one LSTM, and its entry; a cell is an LSTM of one layer there, of the same names."""
    own = compressed.only(entry.keys)
    if entry.kind == "lstm":
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
    return layer, replace(entry, kind="lstm")


def block_term_module(
    compressed: CompressedCheckpoint,
    entry: RecurrentEntry,
    dtype: torch.dtype,
    device: str,
    *,
    batch_first: bool = False,
) -> nn.Module:
    """An LSTM or cell of a result as :func:`btcompress.apply` puts it into a model."""
    empty = _empty(entry, dtype, device, batch_first=batch_first)
    return apply(empty, compressed.only(entry.keys), prefix=entry.prefix)


def dense_module(entry: RecurrentEntry, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: str) -> nn.Module:
    """The dense LSTM or cell with weights by their keys; shares no storage with them."""
    module = _empty(entry, dtype, device)
    module.load_state_dict({key.removeprefix(entry.prefix): tensors[key] for key in entry.keys})
    return module


def _empty(entry: RecurrentEntry, dtype: torch.dtype, device: str, *, batch_first: bool = False) -> nn.Module:
    """The dense LSTM or cell, its weights not set."""
    if entry.kind == "cell":
        cell = nn.LSTMCell(entry.input_size, entry.hidden_size, entry.bias, device="meta", dtype=dtype)
        return cell.to_empty(device=device)
    lstm = nn.LSTM(
        entry.input_size,
        entry.hidden_size,
        entry.num_layers,
        entry.bias,
        batch_first,
        bidirectional=entry.bidirectional,
        proj_size=entry.proj_size,
        device="meta",
        dtype=dtype,
    )
    return lstm.to_empty(device=device)
