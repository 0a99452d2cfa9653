"""Recurrent layers that are known by their names and that no grammar can bring over: each with the reason why.

Gates in one matrix whose order no name tells, light-gated layers of SpeechBrain, LSTMs of pytorch-kaldi and over trees,
and convolutional ones as of https://github.com/ndrplz/ConvLSTM_pytorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from btcompress.dialects.found import Dialect, Refused
from btcompress.dialects.keys import below

_MATRIX = 2


@dataclass(frozen=True, slots=True)
class _Known:
    """Two matrices by which a layer is known.

    Attributes:
        inputs: what the key of the one ends in.
        recurrent: and that of the other.
        gates: how many there may be in one matrix.
        what: what it is, and why it is not brought over.
    """

    inputs: str
    recurrent: str
    gates: tuple[int, ...]
    what: str

    @property
    def is_linear(self) -> bool:
        """Whether these are linear layers."""
        return self.recurrent.endswith(".weight")


_UNORDERED = (
    "it looks like a hand-written layer with all gates in one matrix, in an order that no name tells (of LSTMs, "
    "i, f, g, o and i, f, o, g are both in use)"
)
_KNOWN = (
    *(
        _Known(f"{x}.weight", f"{h}.weight", (3, 4), _UNORDERED)
        for x, h in (("x2h", "h2h"), ("i2h", "h2h"), ("fc_i2h", "fc_h2h"), ("linear_ih", "linear_hh"))
    ),
    *(_Known(x, h, (3, 4), _UNORDERED) for x, h in (("w_ih", "w_hh"), ("W_ih", "W_hh"), ("W", "U"))),
    _Known("w.weight", "u.weight", (2,), "a light-gated recurrent layer (Li-GRU), which torch does not have"),
    _Known("W_iou.weight", "U_iou.weight", (3,), "an LSTM over trees, which torch does not have"),
    _Known(
        "wfx.0.weight",
        "ufh.0.weight",
        (1,),
        "an LSTM of pytorch-kaldi, which may have batch norm, other nonlinearities, and one set of weights for both "
        "directions",
    ),
)
#: The one kernel of a convolutional LSTM's first layer, of (4 H, I + H, ...).
_KERNEL = "cell_list.0.conv.weight"


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Refused]:
    endings = {name for known in _KNOWN for name in (known.inputs, known.recurrent)}
    for prefix, group in below(tensors, (*endings, _KERNEL)).items():
        if _KERNEL in group and _is_kernel(tuple(tensors[group[_KERNEL]].shape)):
            shape = tuple(tensors[group[_KERNEL]].shape)
            what = f"a convolutional LSTM, its weights are kernels of shape {shape}, and only matrices are factorized"
            yield Refused(prefix.removesuffix("."), (), what)
            continue
        for known in _KNOWN:
            keys = group.get(known.inputs), group.get(known.recurrent)
            if keys[0] is None or keys[1] is None or not _are_gates(tensors[keys[0]], tensors[keys[1]], known):
                continue
            name = prefix.removesuffix(".")
            if known.is_linear:
                yield Refused(
                    name, (), f"{known.what}; its matrices can be factorized as linear layers (--matrices linear)"
                )
            else:
                way_out = "stack them in torch's order in your own code, and save weight_ih and weight_hh"
                yield Refused(name, (keys[0], keys[1]), f"{known.what}; {way_out}")
            break


def _is_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a convolution gives four gates of what comes in with the state beside it."""
    hidden, rest = divmod(shape[0], 4) if len(shape) > _MATRIX else (0, 0)
    return not rest and 0 < hidden < shape[1]


def _are_gates(inputs: Tensor, recurrent: Tensor, known: _Known) -> bool:
    """Whether the recurrent matrix has so many rows for each column, or the other way round, and the other as many."""
    if inputs.dim() != _MATRIX or recurrent.dim() != _MATRIX or not recurrent.numel():
        return False
    (rows, columns), (n_rows, n_columns) = recurrent.shape, inputs.shape
    if rows in [each * columns for each in known.gates] and rows == n_rows:
        return True
    return not known.is_linear and columns in [each * rows for each in known.gates] and columns == n_columns


DIALECT = Dialect("other projects", _find)
