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
from btcompress.dialects.steps import Step, alone, from_the_end, fused_step, stacked

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
    stacks: dict[str, dict[int, dict[int, Step]]] = defaultdict(lambda: defaultdict(dict))
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
        elif match["alternating"] or step.proj_size:
            yield alone(step, _notices(match, step))
        else:
            stacks[match["stack"]][int(match["layer"])][int(match["direction"] == "backward")] = step
    for stack, by_layer in stacks.items():
        yield from stacked(stack.removesuffix("."), by_layer)


def _name(prefix: str) -> str:
    """Of a layer on its own, without the module that does a single step."""
    return prefix.removesuffix(".").removesuffix(".cell")


def _notices(match: re.Match[str], step: Step) -> tuple[str, ...]:
    """What a layer's own matrices do not hold."""
    name, layer = step.name, int(match["layer"])
    if not step.proj_size:
        return (f"{name} reads its sequences from the end, as every other layer of its stack does.",) * (layer % 2)
    skip = ", and adds what goes into the layer to what comes out" if layer else ""
    clips = f"{name}: ELMo clips its states to bounds that no file of weights holds{skip}; here it is without that."
    return (clips, *from_the_end(name, int(match["direction"] == "backward")))


def _is_highway(inputs: Tensor, recurrent: Tensor) -> bool:
    if inputs.dim() != len(_HIGHWAY) or recurrent.dim() != len(_HIGHWAY) or not recurrent.shape[1]:
        return False
    hidden = recurrent.shape[1]
    return (inputs.shape[0], recurrent.shape[0]) == tuple(each * hidden for each in _HIGHWAY)


_HIGHWAY_REASON = (
    "an LSTM with highway connections (6 and 5 rows per hidden unit where an LSTM has 4), for which there is no "
    "block-term form; its matrices can be factorized as linear layers (--matrices linear)"
)

DIALECT = Dialect("AllenNLP", _find)
