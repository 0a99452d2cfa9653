"""The LSTMs of torchaudio's RNN-T: ``x2g`` for inputs, ``p2g`` for the state, gates in torch's order.

With layer norm (``g_norm``, ``c_norm``), as the released models have it, a layer is no LSTM of torch's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.dialects.found import Dialect, Found, Refused
from btcompress.dialects.keys import below
from btcompress.dialects.steps import Step, alone, fused_step, stacked

_PARTS = {"x2g.weight": "weight_ih", "p2g.weight": "weight_hh", "x2g.bias": "bias_ih", "p2g.bias": "bias_hh"}
_NORMS = ("g_norm.weight", "c_norm.weight", "g_norm.bias", "c_norm.bias")
_LAYER = re.compile(r"(?P<stack>(?:.*\.)?lstm_layers)\.(?P<layer>0|[1-9][0-9]{0,4})\.", re.DOTALL)


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    stacks: dict[str, dict[int, dict[int, Step]]] = defaultdict(dict)
    for prefix, group in below(tensors, (*_PARTS, *_NORMS)).items():
        if "x2g.weight" not in group or "p2g.weight" not in group:
            continue
        name = prefix.removesuffix(".")
        norms = [part for part in _NORMS if part in group]
        if norms:
            yield Refused(
                name,
                (),
                f"an LSTM of torchaudio with layer norm ({prefix}{norms[0]}), which torch's LSTM does not have; its "
                "matrices can be factorized as linear layers (--matrices linear)",
            )
            continue
        step = fused_step(name, tensors, {_PARTS[part]: key for part, key in group.items()})
        match = _LAYER.fullmatch(prefix)
        if isinstance(step, str):
            yield Refused(name, tuple(group.values()), step)
        elif match is None:
            yield alone(step)
        else:
            stacks[match["stack"]][int(match["layer"])] = {0: step}
    for stack, by_layer in stacks.items():
        yield from stacked(stack, by_layer)


DIALECT = Dialect("torchaudio", _find)
