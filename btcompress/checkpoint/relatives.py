"""Recurrent layers that are stored much as LSTMs are, and are others: by their shapes, and what lies beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor

#: Matrices of a multiplicative LSTM, whose recurrence goes through a product of two others.
_MULTIPLICATIVE = ("weight_mh", "weight_hm", "weight_im", "weight_mx")
#: Rows per hidden unit of the two matrices of a highway LSTM: a gate more, and what is carried past the layer.
_HIGHWAY = (6, 5)
#: Columns per hidden unit of an SRU's matrix, without and with a projection of what is carried past the layer.
_SRU = (3, 4)


def relative_of(prefix: str, group: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """What else than an LSTM some tensors are, and what to do; None where they do not tell.

    Args:
        prefix: what stands before their keys, with the dot at the end; empty at the top.
        group: the tensors whose keys are in the grammar of recurrent layers.
        tensors: all of the state dict.
    """
    shapes = [tuple(tensor.shape) for key, tensor in group.items() if key.startswith(f"{prefix}weight_")]
    empty = next((shape for shape in shapes if not prod(shape)), None)
    if empty is not None:
        return (
            f"weights must be matrices with entries, but one has shape {empty}: a placeholder, as sharded training "
            "(ZeRO, FSDP) leaves it in the file of each process. Gather the whole weights, as DeepSpeed's "
            "zero_to_fp32.py does, and give that file"
        )
    kernel = next((shape for shape in shapes if len(shape) > 2), None)
    if kernel is not None:
        return f"a convolutional LSTM, its weights are kernels of shape {kernel}, and only matrices are factorized"
    named = next((name for name in _MULTIPLICATIVE if prefix + name in tensors), None)
    if named is not None:
        return f"a multiplicative LSTM ({prefix}{named} lies beside its weights), for which there is no block-term form"
    if _is_highway(prefix, group):
        return "a highway LSTM, 6 and 5 rows per hidden unit where an LSTM has 4, for which there is no block-term form"
    return None


def sru_layers(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The layers of SRUs in a state dict: the prefix, the keys, and the reason why they are left alone."""
    for key, vector in tensors.items():
        if key.rpartition(".")[2] != "weight_c" or vector.dim() != 1:
            continue
        prefix = key.removesuffix("weight_c")
        matrix, bias = tensors.get(f"{prefix}weight"), tensors.get(f"{prefix}bias")
        hidden, odd = divmod(vector.shape[0], 2)
        if matrix is None or matrix.dim() != 2 or odd or not hidden:
            continue
        if matrix.shape[1] in [each * hidden for each in _SRU]:
            keys = (f"{prefix}weight", key, *(() if bias is None else (f"{prefix}bias",)))
            yield prefix, keys, "an SRU, whose recurrence has no matrix, and for which there is no block-term form"


def _is_highway(prefix: str, group: Mapping[str, Tensor]) -> bool:
    for suffix in ("", "_l0"):
        inputs, recurrent = (group.get(f"{prefix}weight_{part}{suffix}") for part in ("ih", "hh"))
        if inputs is not None and recurrent is not None and inputs.dim() == recurrent.dim() == 2:
            hidden = recurrent.shape[1]
            return (inputs.shape[0], recurrent.shape[0]) == tuple(each * hidden for each in _HIGHWAY)
    return False
