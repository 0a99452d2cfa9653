"""Compressed checkpoints of clip classifiers, with random numbers in the place of what was fitted."""

import copy

import torch

from btcompress import apply
from btcompress.checkpoint import CompressedCheckpoint
from btcompress.demo.video.dense import ClipClassifier
from btcompress.nn import BTWeight


def randomised(compressed: CompressedCheckpoint, model: ClipClassifier, start: str, seed: int) -> CompressedCheckpoint:
    """The compressed checkpoint with random block terms, or with every tensor random."""
    torch.manual_seed(seed)
    drawn = apply(copy.deepcopy(model), compressed)
    drawn.lstm.reset_parameters()
    # The spread that the dense model begins with, see ClipClassifier.
    if isinstance(drawn.lstm.weight_ih_l0, BTWeight):
        drawn.lstm.weight_ih_l0.reset_parameters(1 / model.lstm.input_size)
    drawn.head.reset_parameters()
    tensors = {name: tensor.clone() for name, tensor in drawn.state_dict().items()}
    if start == "random block terms":
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("lstm.weight_ih_l0.")}
    return compressed.with_step({"step": "random start"}, tensors)
