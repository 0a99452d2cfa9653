"""The dense model that watches clips, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.demo.training import train_network
from btcompress.demo.video.clips import Clips
from btcompress.finetune.config import TrainConfig
from btcompress.finetune.data import Data
from btcompress.finetune.epoch import OnEpoch
from btcompress.finetune.state import StateFile
from btcompress.finetune.tasks import Labels

#: What inputs are multiplied by, so that bytes become 0 to 1.
SCALE = 1 / 255
#: Root mean square of the inputs so scaled, about.
_TYPICAL_INPUT = 0.2
_BATCH = 50


class ClipClassifier(nn.Module):
    """An LSTM over the frames of a clip and a linear head on its last hidden state.

    Args:
        input_size: numbers in a frame.
        hidden_size: of the LSTM.
        n_classes: scores for each clip.
    """

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


def training_scale(n_inputs: int) -> float:
    """What :func:`train_classifier` needs bytes to be multiplied by, so that a frame has a norm of about 1."""
    return SCALE * _shrunk(n_inputs)


def train_classifier(
    model: ClipClassifier,
    train: Data,
    held: Data,
    config: TrainConfig,
    *,
    file: StateFile | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[float, ...]:
    """Train a dense model in its place, and leave it at the epoch that is best on the clips held back.

    While it trains, a frame is scaled to a norm of about 1, and the input weights the other way. Adam moves every
    weight by about the learning rate, whatever meets it: with thousands of inputs as they are, a rate that is small
    enough for the input weights would leave all others next to untrained.

    Args:
        model: of inputs times :data:`SCALE`; it ends on the CPU.
        train: clips to train on, their bytes times :func:`training_scale`.
        held: clips that choose the epoch, likewise.
        config: how to train.
        file: where the state is kept; see :func:`btcompress.demo.training.train_network`.
        on_epoch: called after each epoch.

    Returns:
        The accuracy on the clips held back, before training and after each epoch.

    Raises:
        BTCompressError: the state is damaged or of another training.
        DivergedError: a loss is no longer a number.
    """
    shrunk = _shrunk(model.lstm.input_size)
    weight = model.lstm.get_parameter("weight_ih_l0")
    with torch.no_grad():
        weight.div_(shrunk)
    labels = Labels("classes", None, config.temperature, 0.0)
    with _without_onednn():
        curve = train_network(model, labels, train, held, config, file=file, on_epoch=on_epoch)
    with torch.no_grad():
        weight.mul_(shrunk)
    return curve


def _shrunk(n_inputs: int) -> float:
    """A factor that brings a frame, already times :data:`SCALE`, to a norm of about 1."""
    # A power of two changes no digit of an input or a weight.
    return 2.0 ** -round(math.log2(_TYPICAL_INPUT * math.sqrt(n_inputs)))


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


def accuracy(model: nn.Module, clips: Clips) -> float:
    """Share of the clips whose class has the highest score."""
    return int((decisions(model, clips) == torch.from_numpy(clips.y)).sum()) / len(clips.y)


@torch.no_grad()
def decisions(model: nn.Module, clips: Clips) -> Tensor:
    """The class with the highest score for each clip, shape ``(n_clips,)``."""
    batches = torch.arange(len(clips.y)).split(_BATCH)
    return torch.cat([model(torch.from_numpy(clips.x[rows.numpy()]).float() * SCALE).argmax(1) for rows in batches])
