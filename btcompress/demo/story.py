"""The demonstration: train a dense LSTM on small clips, factorize its checkpoint, and train that on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from btcompress.checkpoint import check_target, replacing, write
from btcompress.demo.clips import CLASS_NAMES, Clips, make_clips
from btcompress.factorization import factorize
from btcompress.finetune import Epoch, FineTuneRequest, TrainConfig, finetune
from btcompress.models import apply
from btcompress.reporting import report
from btcompress.results import CompressionReport

_HEIGHT, _WIDTH = 30, 40
_N_TRAIN, _N_TEST = 2000, 1000
_HIDDEN = 128
_EPOCHS = 12
_BATCH = 50
_LEARNING_RATE = 3e-4
_TUNE_EPOCHS = 10
_TUNE_LEARNING_RATE = 1e-2
_SCALE = 1 / 255


@dataclass(frozen=True, slots=True)
class DemoEpoch:
    """Where a training stands.

    Attributes:
        what: the model that is trained.
        index: epochs done.
        count: epochs in all.
        loss: mean cross-entropy over the epoch.
    """

    what: str
    index: int
    count: int
    loss: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demonstration measured.

    Attributes:
        dense_path: the dense checkpoint.
        compressed_path: the compressed one.
        tuned_path: the compressed one after fine-tuning.
        dense_accuracy: of the dense model on the test clips.
        factorized_accuracy: of the factorized model, not trained any further.
        tuned_accuracy: of the fine-tuned model.
        n_test: test clips.
        report: what the compression gained and lost.
    """

    dense_path: Path
    compressed_path: Path
    tuned_path: Path
    dense_accuracy: float
    factorized_accuracy: float
    tuned_accuracy: float
    n_test: int
    report: CompressionReport


class ClipClassifier(nn.Module):
    """An LSTM over the frames of a clip and a linear head on its last hidden state."""

    def __init__(self, input_size: int, hidden_size: int, n_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, n_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Class scores, shape ``(B, n_classes)``, of frames ``(B, T, input_size)``."""
        hidden, _ = self.lstm(frames)
        scores: Tensor = self.head(hidden[:, -1])
        return scores


def run_demo(folder: Path, *, seed: int = 0, on_epoch: Callable[[DemoEpoch], None] | None = None) -> DemoResult:
    """Train, factorize, fine-tune and measure; checkpoints and training clips stay in ``folder``.

    The test clips are seen by no training and choose nothing.

    Args:
        folder: where to write ``dense.pt``, ``dense.bt.safetensors``, ``tuned.bt.safetensors`` and
            ``train.npz``; replaced if they exist.
        seed: of the clips, the first weights, and the order of training.
        on_epoch: called after each epoch.

    Raises:
        BTCompressError: scikit-learn, whose digits the clips show, is missing.
        OutputError: the folder cannot be written to.
    """
    names = ("dense.pt", "dense.bt.safetensors", "tuned.bt.safetensors", "train.npz")
    dense_path, compressed_path, tuned_path, data_path = (folder / name for name in names)
    for path in (dense_path, compressed_path, tuned_path, data_path):
        check_target(path, force=True)
    generator = torch.Generator().manual_seed(seed)
    clips = make_clips(_N_TRAIN + _N_TEST, height=_HEIGHT, width=_WIDTH, generator=generator)
    train, test = clips.split(_N_TRAIN, _N_TEST)
    with replacing(data_path) as temporary, temporary.open("wb") as file:
        np.savez(file, x=train.x, y=train.y)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClipClassifier(_HEIGHT * _WIDTH * 3, _HIDDEN, len(CLASS_NAMES))
        _train(model, train, generator, on_epoch)
        # By a path, torch.save would write the temporary name into the file.
        with replacing(dense_path) as temporary, temporary.open("wb") as file:
            torch.save(model.state_dict(), file)
        compressed = factorize(dense_path, cp_rank=2, tucker_rank=4, input_shape=clips.frame_shape)
        write(compressed, compressed_path, force=True)
        request = FineTuneRequest(compressed_path, str(data_path), tuned_path, scale=_SCALE)
        config = TrainConfig(epochs=_TUNE_EPOCHS, learning_rate=_TUNE_LEARNING_RATE, seed=seed)
        tuned = finetune(request, config, force=True, on_epoch=on_epoch and _as_demo_epoch(on_epoch))
    factorized_model = apply(copy.deepcopy(model), compressed)
    tuned_model = apply(copy.deepcopy(model), tuned.compressed)
    return DemoResult(
        dense_path,
        compressed_path,
        tuned_path,
        _accuracy(model, test),
        _accuracy(factorized_model, test),
        _accuracy(tuned_model, test),
        _N_TEST,
        report(compressed, bytes_after=compressed_path.stat().st_size),
    )


def _as_demo_epoch(on_epoch: Callable[[DemoEpoch], None]) -> Callable[[Epoch], None]:
    return lambda epoch: on_epoch(DemoEpoch("block-term model", epoch.epoch, epoch.epochs, epoch.loss))


def _train(
    model: nn.Module, clips: Clips, generator: torch.Generator, on_epoch: Callable[[DemoEpoch], None] | None
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    for epoch in range(1, _EPOCHS + 1):
        order = torch.randperm(len(clips.y), generator=generator)
        total = 0.0
        for frames, labels in _batches(clips, order):
            loss = cross_entropy(model(frames), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(labels)
        if on_epoch is not None:
            on_epoch(DemoEpoch("dense model", epoch, _EPOCHS, total / len(clips.y)))


def _accuracy(model: nn.Module, clips: Clips) -> float:
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in _batches(clips, torch.arange(len(clips.y))))
    return right / len(clips.y)


def _batches(clips: Clips, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of frames from 0 to 1, and labels, in this order."""
    for rows in torch.split(order, _BATCH):
        yield torch.from_numpy(clips.x[rows.numpy()]).float() * _SCALE, torch.from_numpy(clips.y[rows.numpy()])
