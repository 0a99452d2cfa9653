"""haste's LSTM and GRU: ``kernel`` and ``recurrent_kernel`` for rows of inputs, gates ``i, g, f, o`` and ``z, r, n``.

Both compute as torch's do, the GRU's reset gate on the product with its bias. Zoneout, which no tensor shows, mixes a
new hidden state with the old one at inference too. With layer norm (``gamma``), and where the state is only scaled
(``recurrent_scale``), a layer is none of torch's. Keras has the same names with another order of gates, below cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.dialects.found import Dialect, Found, Refused
from btcompress.dialects.keys import below, last_of
from btcompress.dialects.steps import alone, fused_step
from btcompress.shapes import Cell

_PARTS = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias_ih", "recurrent_bias": "bias_hh"}
_NORMS = ("gamma", "gamma_h", "beta_h")
_SCALE = "recurrent_scale"
#: By the biases that there are.
_CELLS: dict[bool, tuple[Cell, str]] = {False: ("lstm", "igfo"), True: ("gru", "zrn")}
#: In names that Keras and TensorFlow write.
_KERAS = ("/", ":")


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    for prefix, group in below(tensors, ("kernel", "recurrent_kernel", _SCALE)).items():
        if "kernel" not in group or len(group) == 1 or any(mark in prefix for mark in _KERAS):
            continue
        name = prefix.removesuffix(".")
        own = {part: f"{prefix}{part}" for part in (*_PARTS, *_NORMS, _SCALE) if f"{prefix}{part}" in tensors}
        if "bias" not in own:
            continue
        if _SCALE in own:
            yield Refused(name, tuple(own.values()), "an IndRNN of haste, whose recurrence has no matrix")
        elif any(norm in own for norm in _NORMS):
            reason = f"a layer of haste with layer norm ({prefix}gamma), which torch's LSTM and GRU do not have"
            yield Refused(name, tuple(own.values()), reason)
        elif last_of(prefix).endswith("cell"):
            yield Refused(name, tuple(own.values()), _AS_KERAS)
        else:
            kind, order = _CELLS["recurrent_bias" in own]
            keys = {_PARTS[part]: key for part, key in own.items()}
            step = fused_step(name, tensors, keys, kind, order, is_turned=True)
            if isinstance(step, str):
                continue
            gates = f"{name or 'the top'}: its gates are taken to be {', '.join(order)}, as haste has them."
            yield alone(step, (f"{gates} {_ZONEOUT}",))


_ZONEOUT = (
    "Zoneout, if it was trained with any, takes part at inference there, and no file of weights says so; here is none."
)
_AS_KERAS = (
    "its weights have the names of a cell of Keras, with dots, and of haste, which stacks gates in another order; give "
    "the file that Keras wrote, or stack them in torch's order in your own code, as weight_ih and weight_hh"
)

DIALECT = Dialect("haste", _find)
