"""Compressed checkpoints of random numbers: where training from scratch begins."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import cast

import torch
from torch import nn

from btcompress.checkpoint import CompressedCheckpoint
from btcompress.models import apply
from btcompress.nn.weight import BTWeight


def random_start(make: Callable[[], nn.Module], compressed: CompressedCheckpoint, seed: int) -> CompressedCheckpoint:
    """A checkpoint of the same forms with every tensor random.

    Block terms are drawn so that their dense matrix has the variance that the dense model begins with; all other
    tensors are those of a dense model with random weights.

    Args:
        make: makes the dense model with random weights from torch's generator.
        compressed: tells the forms.
        seed: of the draws.
    """
    torch.manual_seed(seed)
    model = make()
    begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = apply(model, compressed)
    for key in compressed.matrices:
        weight = cast(BTWeight, attrgetter(key)(drawn))
        weight.reset_parameters(float(begun[key].var()))
    tensors = {name: begun.get(name, tensor) for name, tensor in drawn.state_dict().items()}
    return compressed.with_step({"step": "random start"}, tensors)
