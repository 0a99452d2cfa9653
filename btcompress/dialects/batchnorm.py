"""Cells of the recurrent batch-normalization LSTM: ``cell_K.weight_ih`` of ``(I, 4H)``, gates ``f, i, o, g``.

As in https://github.com/jihunchoi/recurrent-batch-normalization-pytorch. With batch norm beside (``bn_ih``, ``bn_hh``,
``bn_c``, a mean and a variance for each step) a cell is no LSTM of torch's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.dialects.found import Dialect, Found, Refused
from btcompress.dialects.keys import below
from btcompress.dialects.steps import Step, fused_step, stacked

_PARTS = {"weight_ih": "weight_ih", "weight_hh": "weight_hh", "bias": "bias_ih"}
_NORMS = tuple(
    f"bn_{part}.{name}" for part in ("ih", "hh", "c") for name in ("weight", "running_mean_0", "running_mean")
)
_LAYER = re.compile(r"(?P<stack>(?:.*\.)?)cell_(?P<layer>0|[1-9][0-9]{0,4})\.", re.DOTALL)
_MATRIX = 2


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    stacks: dict[str, dict[int, dict[int, Step]]] = defaultdict(dict)
    for prefix, group in below(tensors, ("weight_ih", "weight_hh")).items():
        if len(group) == 1 or not _is_turned(tensors[group["weight_ih"]], tensors[group["weight_hh"]]):
            continue
        own = {part: f"{prefix}{name}" for name, part in _PARTS.items() if f"{prefix}{name}" in tensors}
        norm = next((norm for norm in _NORMS if f"{prefix}{norm}" in tensors), None)
        match = _LAYER.fullmatch(prefix)
        name = prefix.removesuffix(".")
        if norm is not None:
            reason = f"an LSTM with batch norm ({prefix}{norm}), which torch's LSTM does not have"
            yield Refused(name, tuple(own.values()), reason)
        elif match is None:
            yield Refused(name, tuple(own.values()), _UNORDERED)
        else:
            step = fused_step(name, tensors, own, "lstm", "fiog", is_turned=True)
            if isinstance(step, str):
                yield Refused(name, tuple(own.values()), step)
            else:
                stacks[match["stack"]][int(match["layer"])] = {0: step}
    for stack, by_layer in stacks.items():
        name = stack.removesuffix(".")
        notice = f"{name or 'the top'}: the gates of its cells are taken to be f, i, o, g, as its project stacks them."
        yield from stacked(name, by_layer, (notice,))


def _is_turned(inputs: Tensor, recurrent: Tensor) -> bool:
    """Whether the recurrent matrix has three or four columns for each of its rows, and the other one as many."""
    if inputs.dim() != _MATRIX or recurrent.dim() != _MATRIX or not recurrent.shape[0]:
        return False
    return (
        recurrent.shape[1] in (3 * recurrent.shape[0], 4 * recurrent.shape[0]) and inputs.shape[1] == recurrent.shape[1]
    )


_UNORDERED = (
    "its gates lie side by side in an order that no name tells (of LSTMs, f, i, o, g and i, f, g, o are both in use); "
    "stack them in torch's order in your own code, i, f, g, o below each other, and save weight_ih and weight_hh"
)

DIALECT = Dialect("the recurrent batch-normalization LSTM", _find)
