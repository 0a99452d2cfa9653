"""AllenNLP's LSTMs, ELMo's among them: ``input_linearity``, ``state_linearity`` and ``state_projection``.

Gates are in torch's order. ``StackedBidirectionalLstm`` and ``BiAugmentedLstm`` are torch's LSTM; the layers of
``ElmoLstm`` and ``StackedAlternatingLstm`` are LSTMs of one layer each, as something else lies between them. With
highway connections a layer has one gate more, and is no LSTM of torch's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.dialects.found import Dialect, Found, Refused
from btcompress.dialects.keys import below
from btcompress.dialects.steps import Step, alone, fused_step, in_a_row, stacked

_PARTS = {
    "input_linearity.weight": "weight_ih",
    "state_linearity.weight": "weight_hh",
    "input_linearity.bias": "bias_ih",
    "state_linearity.bias": "bias_hh",
    "state_projection.weight": "weight_hr",
}
_WEIGHTS = ("input_linearity.weight", "state_linearity.weight")
#: A step below a stack: ``forward_layer_0.``, ``backward_layers.1.cell.``, ``layer_2.``.
_LAYER = re.compile(
    r"(?P<stack>(?:.*\.)?)(?P<name>(?:(?P<direction>forward|backward)_layer(?:_|s\.)|(?P<alternating>layer_))"
    r"(?P<layer>0|[1-9][0-9]{0,4}))\.(?:cell\.)?",
    re.DOTALL,
)
#: Rows per hidden unit of the two matrices with highway connections.
_HIGHWAY = (6, 5)


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    stacks: dict[tuple[str, str], dict[int, dict[int, Step]]] = defaultdict(lambda: defaultdict(dict))
    for prefix, group in below(tensors, tuple(_PARTS)).items():
        if not all(part in group for part in _WEIGHTS):
            continue
        match, name = _LAYER.fullmatch(prefix), _name(prefix)
        step = fused_step(name, tensors, {_PARTS[part]: key for part, key in group.items()})
        if isinstance(step, str):
            highway = _is_highway(*(tensors[group[part]] for part in _WEIGHTS))
            yield Refused(name, () if highway else tuple(group.values()), _HIGHWAY_REASON if highway else step)
        elif match is None:
            yield alone(step)
        else:
            way = "alternating" if match["alternating"] else "ELMo" if step.proj_size else ""
            stacks[match["stack"], way][int(match["layer"])][int(match["direction"] == "backward")] = step
    for (stack, way), by_layer in stacks.items():
        name = stack.removesuffix(".")
        yield from _apart(name, way, by_layer) if way else stacked(name, by_layer)


def _apart(stack: str, way: str, steps: Mapping[int, Mapping[int, Step]]) -> Iterator[Found]:
    """Layers of their own, as something else lies between them than between torch's; the first one says what."""
    notices: tuple[str, ...] = (f"{stack or 'the top'}: {_BETWEEN[way]}",)
    for layer in in_a_row(steps):
        for step in layer:
            yield alone(step, notices)
            notices = ()


def _name(prefix: str) -> str:
    """Of a layer on its own, without the module that does a single step."""
    return prefix.removesuffix(".").removesuffix(".cell")


def _is_highway(inputs: Tensor, recurrent: Tensor) -> bool:
    if inputs.dim() != len(_HIGHWAY) or recurrent.dim() != len(_HIGHWAY) or not recurrent.shape[1]:
        return False
    hidden = recurrent.shape[1]
    return (inputs.shape[0], recurrent.shape[0]) == tuple(each * hidden for each in _HIGHWAY)


#: What the matrices of layers do not hold.
_BETWEEN = {
    "alternating": "its layers are LSTMs of their own, of which every other one, from layer_1 on, reads its sequences "
    "from the end.",
    "ELMo": "its layers are LSTMs of their own; ELMo clips their states to bounds that no file of weights holds, adds "
    "what goes into a layer to what comes out from layer 1 on, and lets backward layers read from the end. Here each "
    "is without that.",
}
_HIGHWAY_REASON = (
    "an LSTM with highway connections (6 and 5 rows per hidden unit where an LSTM has 4), for which there is no "
    "block-term form; its matrices can be factorized as linear layers (--matrices linear)"
)

DIALECT = Dialect("AllenNLP", _find)
