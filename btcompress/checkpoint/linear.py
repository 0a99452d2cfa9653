"""Which matrices of a state dict are the weights of plain linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from btcompress.checkpoint.names import OtherRecurrent, RecurrentEntry, natural_key
from btcompress.checkpoint.tensors import find_aliases

#: What torch's attention keeps beside its linear layer, and where a transformer layer has its attention.
_ATTENTION = ("in_proj_weight", "in_proj_bias", "q_proj_weight")
_SELF_ATTENTION = "self_attn."


@dataclass(frozen=True, slots=True)
class LinearEntry:
    """A matrix of a state dict that is, or may be, the weight of a linear layer.

    Attributes:
        key: its key, ``weight`` or ending in ``.weight``.
        out_features: its rows.
        in_features: its columns.
        bias: a vector of as many entries as rows lies beside it; without one it may as well be an embedding.
        obstacle: why it has to stay dense, in words; None where nothing stands against it.
    """

    key: str
    out_features: int
    in_features: int
    bias: bool
    obstacle: str | None = None

    @property
    def name(self) -> str:
        """The layer: its key without ``weight``; empty at the top."""
        return self.key.removesuffix("weight").removesuffix(".")


def find_linear(
    tensors: Mapping[str, Tensor], recurrent: Sequence[RecurrentEntry | OtherRecurrent]
) -> tuple[LinearEntry, ...]:
    """Find what may be linear layers: floating-point matrices ``<name>.weight`` outside recurrent layers.

    Args:
        tensors: a flat state dict; meta tensors serve, except that none of them is found to be tied.
        recurrent: what :func:`find_recurrent` found in it.

    Returns:
        The entries in natural order of their keys.
    """
    taken = {key for entry in recurrent for key in entry.keys}
    aliases = find_aliases({key: tensor for key, tensor in tensors.items() if not tensor.is_meta})
    found = []
    for key in sorted(tensors, key=natural_key):
        weight = tensors[key]
        is_weight = key == "weight" or key.endswith(".weight")
        if not is_weight or key in taken or weight.dim() != 2 or not weight.numel() or not weight.is_floating_point():
            continue
        rows, columns = weight.shape
        bias = tensors.get(f"{key.removesuffix('weight')}bias")
        has_bias = bias is not None and tuple(bias.shape) == (rows,)
        found.append(LinearEntry(key, rows, columns, has_bias, _obstacle(key, tensors, aliases)))
    return tuple(found)


def _obstacle(key: str, tensors: Mapping[str, Tensor], aliases: Mapping[str, str]) -> str | None:
    first = aliases.get(key, key)
    tied = next((name for name in (first, *aliases) if name != key and aliases.get(name, name) == first), None)
    if tied is not None:
        return f"it is tied to {tied}, and would no longer be; untie them first if that is meant"
    layer = key.removesuffix("weight").removesuffix(".")
    parent = layer[: layer.rfind(".") + 1]
    if any(f"{prefix}{part}" in tensors for prefix in (parent, f"{parent}{_SELF_ATTENTION}") for part in _ATTENTION):
        return "it belongs to an attention or transformer layer, which reads its weight directly"
    return None
