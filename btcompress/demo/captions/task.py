"""The task on captions: say which objects a picture shows, of which shape, colour and size, and where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from btcompress.demo.captions.features import FeatureMap
from btcompress.demo.captions.grammar import PAD, decode, encode, things, wordings
from btcompress.demo.captions.model import IGNORED, Captioner, word_loss
from btcompress.demo.captions.pictures import save_captions
from btcompress.demo.captions.scenes import make_scenes
from btcompress.demo.captions.scores import bleu, content, scorer
from btcompress.demo.noise import Noise
from btcompress.demo.task import Drawn, Measure, Size, Task, Training

#: Right wordings of each picture that is trained on. With one, models learn which words go with which picture.
WORDINGS = 2
#: Right wordings of each picture that is tested on.
REFERENCES = 5
#: Pictures in the picture of examples.
_SHOWN = 6
_BATCH = 100


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """What captions are tested on.

    Attributes:
        images: ``uint8``, shape ``(n, side, side, 3)``.
        maps: their feature maps, ``uint8``, shape ``(n, n_features)``.
        objects: ``int8``, shape ``(n, N_OBJECTS, 4)``; see :class:`btcompress.demo.captions.scenes.Scenes`.
        references: right wordings, :data:`REFERENCES` for each picture.
    """

    images: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.int8]
    references: tuple[tuple[str, ...], ...]

    def first(self, count: int) -> Pictures:
        """The first so many of them."""
        return Pictures(self.images[:count], self.maps[:count], self.objects[:count], self.references[:count])


@dataclass(frozen=True, slots=True)
class Captions(Task[Pictures]):
    """Describe a picture in a sentence, from the feature map of a fixed convolutional network (Ye et al. 2018).

    Attributes:
        features: of the pictures.
        embedding_size: of a word.
        dropout: of the models, in training.
        factory: ``package.module:factory`` of the dense model of this very task.
        size: see :class:`btcompress.demo.task.Task`.
    """

    name: ClassVar[str] = "captions"
    layer: ClassVar[str] = "reader"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("exact content", is_share=True),
        Measure("objects right", is_share=True),
        Measure("BLEU-4", is_share=True),
        Measure("cross-entropy of a word", higher_is_better=False),
    )
    metric: ClassVar[Measure] = Measure("cross-entropy of a word", higher_is_better=False)
    examples: ClassVar[str] = "pictures"

    features: FeatureMap
    embedding_size: int
    dropout: float
    factory: str
    size: Size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """That of the feature map."""
        return self.features.shape

    @property
    def model_reference(self) -> str:
        """See :class:`btcompress.demo.task.Task`."""
        return self.factory

    @property
    def loss(self) -> Callable[[Any, Tensor], Tensor]:
        """See :class:`btcompress.demo.task.Task`."""
        return word_loss

    def check(self) -> None:
        """See :class:`btcompress.demo.task.Task`; captions need what scores them too."""
        # Not super(): a dataclass with slots is another class than the one that it is written in.
        Task.check(self)
        scorer()

    def draw(self, seed: int) -> Drawn[Pictures]:
        """See :class:`btcompress.demo.task.Task`."""
        n_train, n_test = self.size.n_train, self.size.n_test
        drawn = make_scenes(n_train + n_test, side=self.features.side, generator=torch.Generator().manual_seed(seed))
        maps = self.features.of(drawn.images)
        generator = np.random.default_rng(seed)
        shown = [things(objects) for objects in drawn.objects]
        sentences = [wordings(each, WORDINGS, generator) for each in shown[:n_train]]
        references = tuple(wordings(each, REFERENCES, generator) for each in shown[n_train:])
        x, y = _rows(maps[:n_train], sentences)
        return Drawn(x, y, Pictures(drawn.images[n_train:], maps[n_train:], drawn.objects[n_train:], references))

    def model(self, hidden_size: int | None = None) -> Captioner:
        """See :class:`btcompress.demo.task.Task`."""
        return Captioner(self.features.shape, self.embedding_size, self.size.hidden_size, self.dropout, hidden_size)

    def scores(self, model: nn.Module, test: Pictures) -> tuple[float, ...]:
        """See :class:`btcompress.demo.task.Task`."""
        captions = describe(model.eval(), test)
        exact, right = content(captions, [things(objects) for objects in test.objects])
        return exact, right, bleu(captions, test.references), _cross_entropy(model, test)

    def noisy(self, test: Pictures, noise: Noise) -> Pictures:
        """See :class:`btcompress.demo.task.Task`."""
        images = noise.over(test.images)
        return replace(test, images=images, maps=self.features.of(images))

    def draw_examples(self, models: Mapping[str, nn.Module], test: Pictures, path: Path) -> None:
        """Draw some pictures, and what each model says of them."""
        some = test.first(_SHOWN)
        said = {name: describe(model.eval(), some) for name, model in models.items()}
        save_captions(some.images, [things(objects) for objects in some.objects], said, path)


def describe(model: nn.Module, test: Pictures) -> list[str]:
    """A sentence about each picture, word after word the most likely one."""
    captioner = cast(Captioner, model)
    batches = torch.from_numpy(test.maps).split(_BATCH)
    return [decode(row) for maps in batches for row in captioner.captions(maps.float()).numpy()]


@torch.no_grad()
def _cross_entropy(model: nn.Module, test: Pictures) -> float:
    """The mean of a word of all references, given the words before it."""
    total, words = 0.0, 0
    for position in range(REFERENCES):
        x, y = _rows(test.maps, [each[position : position + 1] for each in test.references])
        for inputs, wanted in zip(torch.from_numpy(x).split(_BATCH), torch.from_numpy(y).split(_BATCH), strict=True):
            count = int((wanted != IGNORED).sum())
            total += count * float(word_loss(model(inputs.float()), wanted.long()))
            words += count
    return total / words


def _rows(
    maps: npt.NDArray[np.uint8], sentences: Sequence[Sequence[str]]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16]]:
    """What the model reads and what is wanted, of several sentences about each picture.

    Args:
        maps: shape ``(n, n_features)``.
        sentences: as many of each picture.

    Returns:
        Features and the tokens of the sentences, ``(n, 1, n_features + sentences * STEPS)``, and the tokens wanted,
        ``(n, sentences * STEPS)``.
    """
    tokens = np.concatenate([encode(each) for each in zip(*sentences, strict=True)], axis=1)
    x = np.concatenate([maps, tokens], axis=1)[:, None]
    return x, np.where(tokens == PAD, IGNORED, tokens.astype(np.int16)).astype(np.int16)


#: About two minutes on two cores.
SMALL = Captions(
    FeatureMap(96, 8, 64),
    64,
    0.2,
    f"{__name__}:small_model",
    Size(
        4000,
        1000,
        128,
        4,
        5,
        dense=Training(10, 1.2e-2),
        tuning=Training(6, 1e-2),
        scratch=Training(10, 2e-2),
        calibration=Training(3, 1e-2),
    ),
)

#: A feature map of 14 x 14 x 256: 50,176 inputs, 256 hidden units, 51,380,224 input weights.
FULL = Captions(
    FeatureMap(112, 14, 256),
    64,
    0.2,
    f"{__name__}:full_model",
    Size(4000, 1000, 256, 4, 6, dense=Training(10, 3e-3), tuning=Training(6, 1e-2), scratch=Training(10, 2e-2)),
)


def small_model() -> Captioner:
    """The dense model of :data:`SMALL`, with random weights."""
    return SMALL.model()


def full_model() -> Captioner:
    """The dense model of :data:`FULL`, with random weights."""
    return FULL.model()
