"""``torch.ao.nn.quantizable.LSTM``: ``layers.K.layer_fw.cell.igates`` and ``hgates``, gates in torch's order.

With ``split_gates`` there is a linear layer for each gate, ``igates.input`` and so on. Observers that training for
quantization left beside them are no part of the LSTM.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.dialects.keys import below
from btcompress.dialects.separate import separate_step
from btcompress.dialects.steps import Step, fused_step, stacked

_GATES = {"i": "input", "f": "forget", "g": "cell", "o": "output"}
_SIDES = {"igates": "ih", "hgates": "hh"}
_FUSED = {f"{side}.{kind}": f"{kind}_{part}" for side, part in _SIDES.items() for kind in ("weight", "bias")}
_SPLIT = {
    f"{side}.{word}.{kind}": (f"{kind}_{part}", gate)
    for side, part in _SIDES.items()
    for gate, word in _GATES.items()
    for kind in ("weight", "bias")
}
_LAYER = re.compile(
    r"(?P<name>.*?)\.?layers\.(?P<layer>0|[1-9][0-9]{0,4})\.layer_(?P<direction>fw|bw)\.cell\.", re.DOTALL
)
_OBSERVERS = ("activation_post_process.", "weight_fake_quant.")


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    stacks: dict[str, dict[int, dict[int, Step]]] = defaultdict(lambda: defaultdict(dict))
    for prefix, group in below(tensors, (*_FUSED, *_SPLIT)).items():
        match = _LAYER.fullmatch(prefix)
        name = prefix.removesuffix(".cell.")
        step = _step(name, tensors, group) if match else None
        if match is None or step is None:
            continue
        if isinstance(step, str):
            yield Refused(name, tuple(group.values()), step)
        else:
            stacks[match["name"]][int(match["layer"])][int(match["direction"] == "bw")] = step
    observers = _observers(tensors, stacks)
    for name, by_layer in stacks.items():
        first, *others = stacked(name, by_layer)
        yield _without(first, observers[name])
        yield from others


def _step(name: str, tensors: Mapping[str, Tensor], group: Mapping[str, str]) -> Step | str | None:
    """The step of one cell, whichever way its gates are stored; None where its weights are not all there."""
    if {"igates.weight", "hgates.weight"} <= set(group):
        return fused_step(name, tensors, {_FUSED[part]: key for part, key in group.items() if part in _FUSED})
    if not {part for part in _SPLIT if part.endswith(".weight")} <= set(group):
        return None
    keys: dict[str, dict[str, str]] = defaultdict(dict)
    for part in (part for part in group if part in _SPLIT):
        own, gate = _SPLIT[part]
        keys[own][gate] = group[part]
    weights = {part: keys[part] for part in ("weight_ih", "weight_hh")}
    biases = {part: {gate: (key,) for gate, key in keys[part].items()} for part in ("bias_ih", "bias_hh")}
    return separate_step(name, tensors, weights, biases)


def _observers(tensors: Iterable[str], stacks: Collection[str]) -> dict[str, list[str]]:
    """The tensors of what observes layers of some names, or rounds their values in training."""
    found: dict[str, list[str]] = {name: [] for name in stacks}
    for key in tensors if stacks else ():
        if any(each in key for each in _OBSERVERS):
            match = _LAYER.match(key)
            if match is not None and match["name"] in found:
                found[match["name"]].append(key)
    return found


def _without(found: Converted, observers: Sequence[str]) -> Converted:
    """The same with these taken out of the file, as nothing computes with them any more."""
    if not observers:
        return found
    told = f"{found.name or 'the top'}: {len(observers)} tensors of its observers are left out; it is taken as it was "
    told += "before quantization."
    return replace(found, keys=(*found.keys, *observers), notices=(*found.notices, told))


DIALECT = Dialect("torch.ao.nn.quantizable", _find)
