"""The LSTM cell of ncps, the memory of its liquid networks: ``input_map``, ``recurrent_map``, gates ``g, i, f, o``.

As in ``ncps/torch/lstm.py``. Its forget gate adds 1, which goes into the bias here. It stays a single step, as the
state that it gets is not its own but what a liquid cell made of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from btcompress.dialects.arranging import as_cell, raised
from btcompress.dialects.found import Converted, Dialect, Found, Refused
from btcompress.dialects.keys import below
from btcompress.dialects.steps import Step, fused_step

_PARTS = {"input_map.weight": "weight_ih", "recurrent_map.weight": "weight_hh", "input_map.bias": "bias_ih"}
_FORGET_BIAS = 1.0


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    for prefix, group in below(tensors, tuple(_PARTS)).items():
        if len(group) < len(_PARTS):
            continue
        name = prefix.removesuffix(".")
        step = fused_step(name, tensors, {_PARTS[part]: key for part, key in group.items()}, "lstm", "gifo")
        if isinstance(step, str):
            yield Refused(name, tuple(group.values()), step)
        else:
            yield Converted(name, step.keys, partial(_make, step))


def _make(step: Step) -> dict[str, Tensor]:
    direction = step.form()
    if direction.bias_ih is None:
        return as_cell(direction)
    return as_cell(replace(direction, bias_ih=raised(direction.bias_ih, "f", _FORGET_BIAS, "lstm")))


DIALECT = Dialect("ncps", _find)
