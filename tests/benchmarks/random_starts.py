"""Compressed checkpoints of clip classifiers, with random numbers in the place of what was fitted."""

import torch

from btcompress.checkpoint import CompressedCheckpoint
from btcompress.demo.randomstart import with_random_terms
from btcompress.demo.video.dense import ClipClassifier


def randomised(compressed: CompressedCheckpoint, model: ClipClassifier, start: str, seed: int) -> CompressedCheckpoint:
    """The compressed checkpoint with random block terms, or with every tensor random."""
    torch.manual_seed(seed)
    fresh = ClipClassifier(model.lstm.input_size, model.lstm.hidden_size, model.head.out_features)
    shapes = {key: matrix.shape for key, matrix in compressed.matrices.items()}
    tensors = with_random_terms(fresh, shapes).tensors
    if start == "random block terms":
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("lstm.weight_ih_l0.")}
    return compressed.with_step({"step": "random start"}, tensors)
