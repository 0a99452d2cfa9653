"""Recurrent layers that are known by their names and that no grammar can bring over: each with the reason why.

Gates in one matrix whose order no name tells, light-gated layers of SpeechBrain, and LSTMs over trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from btcompress.dialects.found import Dialect, Refused
from btcompress.dialects.keys import below

_MATRIX = 2
_AS_LINEAR = "its matrices can be factorized as linear layers (--matrices linear)"
_UNORDERED = (
    "it looks like a hand-written layer with all gates in one matrix, in an order that no name tells (of LSTMs, "
    "i, f, g, o and i, f, o, g are both in use); "
)
_IN_CODE = "stack them in torch's order in your own code, and save weight_ih and weight_hh"


@dataclass(frozen=True, slots=True)
class _Known:
    """Two matrices by which a layer is known.

    Attributes:
        inputs: what the key of the one ends in.
        recurrent: and that of the other.
        gates: how many of the hidden size the matrices can have.
        reason: why it is not brought over.
    """

    inputs: str
    recurrent: str
    gates: tuple[int, ...]
    reason: str


_KNOWN = (
    *(
        _Known(f"{x}.weight", f"{h}.weight", (3, 4), _UNORDERED + _AS_LINEAR)
        for x, h in (("x2h", "h2h"), ("i2h", "h2h"))
    ),
    *(_Known(x, h, (3, 4), _UNORDERED + _IN_CODE) for x, h in (("w_ih", "w_hh"), ("W_ih", "W_hh"), ("W", "U"))),
    _Known(
        "w.weight", "u.weight", (2,), f"a light-gated recurrent layer (Li-GRU), which torch does not have; {_AS_LINEAR}"
    ),
    _Known("W_iou.weight", "U_iou.weight", (3,), f"an LSTM over trees, which torch does not have; {_AS_LINEAR}"),
)


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Refused]:
    endings = tuple({name for known in _KNOWN for name in (known.inputs, known.recurrent)})
    for prefix, group in below(tensors, endings).items():
        for known in _KNOWN:
            if known.inputs in group and known.recurrent in group:
                keys = group[known.inputs], group[known.recurrent]
                if _are_gates(tensors[keys[0]], tensors[keys[1]], known):
                    yield Refused(prefix.removesuffix("."), () if _AS_LINEAR in known.reason else keys, known.reason)
                    break


def _are_gates(inputs: Tensor, recurrent: Tensor, known: _Known) -> bool:
    """Whether the recurrent matrix has so many rows for each column, or the other way round, and the other as many."""
    if inputs.dim() != _MATRIX or recurrent.dim() != _MATRIX or not recurrent.numel():
        return False
    (rows, columns), (n_rows, n_columns) = recurrent.shape, inputs.shape
    is_upright = rows in [each * columns for each in known.gates] and rows == n_rows
    return is_upright or (
        not known.recurrent.endswith(".weight")
        and columns in [each * rows for each in known.gates]
        and columns == n_columns
    )


DIALECT = Dialect("other projects", _find)
