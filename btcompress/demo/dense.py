"""The dense model of the demonstration, trained by the loop that fine-tunes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.demo.clips import CLASS_NAMES, Clips
from btcompress.demo.sizes import DemoSize
from btcompress.finetune.data import open_data, split
from btcompress.finetune.epoch import OnEpoch
from btcompress.finetune.loop import Trainer
from btcompress.finetune.tasks import Labels
from btcompress.finetune.user import UserNetwork

#: What inputs are multiplied by, so that bytes become 0 to 1.
SCALE = 1 / 255
#: Root mean square of the inputs so scaled, about.
_TYPICAL_INPUT = 0.2
_BATCH = 50


class ClipClassifier(nn.Module):
    """An LSTM over the frames of a clip and a linear head on its last hidden state."""

    def __init__(self, input_size: int, hidden_size: int, n_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, n_classes)
        # torch's spread depends on the hidden size alone; with this many inputs it would saturate every gate.
        nn.init.normal_(self.lstm.get_parameter("weight_ih_l0"), std=input_size**-0.5)

    def forward(self, frames: Tensor) -> Tensor:
        """Class scores, shape ``(B, n_classes)``, of frames ``(B, T, input_size)``."""
        hidden, _ = self.lstm(frames)
        scores: Tensor = self.head(hidden[:, -1])
        return scores


def train_dense(
    data: Path, size: DemoSize, seed: int, on_epoch: OnEpoch | None = None
) -> tuple[ClipClassifier, tuple[float, ...]]:
    """Train a dense model on clips and keep the epoch that is best on those held back.

    While it trains, a frame is scaled to a norm of about 1, and the input weights the other way. Adam moves every
    weight by about the learning rate, whatever meets it: with thousands of inputs as they are, a rate that is small
    enough for the input weights would leave all others next to untrained.

    Args:
        data: file of the clips, bytes ``x`` and labels ``y``.
        size: of the model, and how to train it.
        seed: of the first weights, the split and the order of training.
        on_epoch: called after each epoch.

    Returns:
        The model, on the CPU, and the accuracy on the clips held back, before training and after each epoch.
    """
    n_inputs = size.height * size.width * 3
    # A power of two changes no digit of an input or a weight.
    shrunk = 2.0 ** -round(math.log2(_TYPICAL_INPUT * math.sqrt(n_inputs)))
    train, held = split(open_data(str(data), SCALE * shrunk), size.held_fraction, seed)
    torch.manual_seed(seed)
    model = ClipClassifier(n_inputs, size.hidden_size, len(CLASS_NAMES))
    weight = model.lstm.get_parameter("weight_ih_l0")
    with torch.no_grad():
        weight.div_(shrunk)
    config = size.dense_config(seed)
    trainer = Trainer(UserNetwork(model), Labels("classes", None, config.temperature, 0.0), train, held, config)
    with _without_onednn():
        before, best = trainer.run(on_epoch=on_epoch)
    trainer.network.load_state_dict(best.tensors)
    with torch.no_grad():
        weight.mul_(shrunk)
    return model.cpu(), (before, *(row.metric for row in trainer.rows))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Keep off oneDNN's LSTM: it spends half of each step on the gradient of the inputs, which nobody asks for."""
    backend: Any = torch.backends.mkldnn
    enabled = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = enabled


@torch.no_grad()
def accuracy(model: nn.Module, clips: Clips) -> float:
    """Share of the clips whose class has the highest score."""
    right = 0
    for rows in torch.arange(len(clips.y)).split(_BATCH):
        frames = torch.from_numpy(clips.x[rows.numpy()]).float() * SCALE
        right += int((model(frames).argmax(1) == torch.from_numpy(clips.y[rows.numpy()])).sum())
    return right / len(clips.y)
