"""The custom LSTM of TorchScript's benchmarks: ``layers.K.cell``, or ``layers.K.directions.D.cell`` in two directions.

Its cells have the names and the order of ``torch.nn.LSTMCell``. One with layer norm (``cell.layernorm_i``) is none, and
stays as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.dialects.found import Dialect, Found
from btcompress.dialects.keys import below, parent_of
from btcompress.dialects.steps import Step, are_stacked, fused_step, in_a_row, layered

_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_LAYER = re.compile(
    r"(?P<stack>(?:.*\.)?layers)\.(?P<layer>0|[1-9][0-9]{0,4})\.(?:directions\.(?P<direction>[01])\.)?", re.DOTALL
)


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    stacks: dict[str, dict[int, dict[int, Step]]] = defaultdict(lambda: defaultdict(dict))
    others: set[str] = set()
    for prefix, group in below(tensors, tuple(f"cell.{part}" for part in _PARTS)).items():
        match = _LAYER.fullmatch(prefix)
        if match is None:
            continue
        step = fused_step(f"{prefix}cell", tensors, {part.removeprefix("cell."): key for part, key in group.items()})
        layer, direction = int(match["layer"]), int(match["direction"] or 0)
        if isinstance(step, str) or len(group) < len(_PARTS):
            others.add(match["stack"])
        else:
            stacks[match["stack"]][layer][direction] = step
    own = {key for by_layer in stacks.values() for steps in by_layer.values() for s in steps.values() for key in s.keys}
    for key in tensors if stacks else ():
        match = _LAYER.match(key)
        if match and key not in own:
            others.add(match["stack"])
    for stack, by_layer in stacks.items():
        if stack not in others and are_stacked(by_layer):
            yield layered(parent_of(f"{stack}.").removesuffix("."), in_a_row(by_layer))


DIALECT = Dialect("TorchScript's custom LSTM", _find)
