"""The task on video: which of 11 motions a clip shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from btcompress.demo.noise import Noise
from btcompress.demo.task import Drawn, Measure, Size, Task, Training
from btcompress.demo.video.clips import CLASS_NAMES, Clips, make_clips
from btcompress.demo.video.dense import SCALE, ClipClassifier, accuracy, decisions, train_classifier, training_scale
from btcompress.demo.video.pictures import save_clips
from btcompress.finetune.data import open_data, split
from btcompress.finetune.epoch import OnEpoch
from btcompress.finetune.state import StateFile


@dataclass(frozen=True, slots=True)
class Video(Task[Clips]):
    """Tell the motion of a digit in a clip, by an LSTM over its frames as they are (Ye et al. 2018, on UCF11).

    Attributes:
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        size: see :class:`btcompress.demo.task.Task`.
    """

    name: ClassVar[str] = "video"
    layer: ClassVar[str] = "lstm"
    metric: ClassVar[Measure] = Measure("accuracy", is_share=True)
    measures: ClassVar[tuple[Measure, ...]] = (metric,)
    examples: ClassVar[str] = "clips"

    height: int
    width: int
    size: Size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """That of a frame."""
        return self.height, self.width, 3

    @property
    def scale(self) -> float:
        """From bytes to 0 ... 1."""
        return SCALE

    def draw(self, seed: int) -> Drawn[Clips]:
        """See :class:`btcompress.demo.task.Task`."""
        n_train, n_test = self.size.n_train, self.size.n_test
        generator = torch.Generator().manual_seed(seed)
        clips = make_clips(n_train + n_test, height=self.height, width=self.width, generator=generator)
        train, test = clips.split(n_train, n_test)
        return Drawn(train.x, train.y, test)

    def model(self, hidden_size: int | None = None) -> ClipClassifier:
        """See :class:`btcompress.demo.task.Task`."""
        return ClipClassifier(self.height * self.width * 3, hidden_size or self.size.hidden_size, len(CLASS_NAMES))

    def train(
        self,
        model: nn.Module,
        data: Path,
        training: Training,
        seed: int,
        *,
        file: StateFile | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> tuple[float, ...]:
        """See :class:`btcompress.demo.task.Task`; a dense model is trained by :func:`train_classifier`."""
        if not isinstance(model, ClipClassifier) or type(model.lstm) is not nn.LSTM:
            # Not super(): a dataclass with slots is another class than the one that it is written in.
            return Task.train(self, model, data, training, seed, file=file, on_epoch=on_epoch)
        clips = open_data(str(data), training_scale(model.lstm.input_size))
        parts = split(clips, self.size.held_fraction, seed)
        return train_classifier(model, *parts, training.config(seed), file=file, on_epoch=on_epoch)

    def scores(self, model: nn.Module, test: Clips) -> tuple[float, ...]:
        """See :class:`btcompress.demo.task.Task`."""
        return (accuracy(model.eval(), test),)

    def noisy(self, test: Clips, noise: Noise) -> Clips:
        """See :class:`btcompress.demo.task.Task`."""
        frames = test.x.reshape(*test.x.shape[:2], *test.frame_shape)
        return replace(test, x=noise.over(frames).reshape(test.x.shape))

    def draw_examples(self, models: Mapping[str, nn.Module], test: Clips, path: Path) -> None:
        """Draw one clip of each class, and what each model takes it for."""
        some = test.one_of_each()
        taken = {
            name: [some.class_names[int(label)] for label in decisions(model.eval(), some)]
            for name, model in models.items()
        }
        save_clips(some, taken, path)


_DENSE_SMALL, _DENSE_FULL, _BLOCK_TERMS = Training(14, 4e-3), Training(14, 1e-3), Training(10, 1e-2)

#: About two minutes on two cores.
SMALL = Video(
    60,
    80,
    Size(
        2000,
        1000,
        128,
        2,
        4,
        dense=_DENSE_SMALL,
        tuning=_BLOCK_TERMS,
        scratch=_BLOCK_TERMS,
        calibration=Training(2, 1e-2),
    ),
)

#: That of Ye et al. (2018): 57,600 inputs, 256 hidden units, 58,982,400 input weights.
FULL = Video(120, 160, Size(2000, 1000, 256, 2, 4, dense=_DENSE_FULL, tuning=_BLOCK_TERMS, scratch=_BLOCK_TERMS))
