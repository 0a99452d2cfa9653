"""The task on images: draw such images in steps, and say how likely one is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from btcompress.demo.images.drawings import ImageSet, make_images
from btcompress.demo.images.model import DrawingModel, bits_per_dimension, bound, loss
from btcompress.demo.images.pictures import Drawings, save_drawings
from btcompress.demo.noise import Noise
from btcompress.demo.task import Drawn, Measure, Size, Task, Training

_SCALE = 1 / 255
#: Draws of ``z`` over which the bound is averaged, for each test image, and the seed of these.
_N_DRAWS = 4
_SEED = 1
_BATCH = 50
#: In the picture: images out of nothing, and images that are read.
_N_SAMPLES, _N_READ = 4, 16


@dataclass(frozen=True, slots=True)
class Images(Task[ImageSet]):
    """Draw images as DRAW does (Gregor et al. 2015, without attention), whose encoder reads images as they are.

    The bound is the mean over several draws of ``log p(y | z) - sum_t KL_t`` for each image, in nats; images that were
    seen by no training are measured. With noise, the encoder reads images with noise and the likelihood is that of
    the clean ones: it is then no bound on what the encoder read, but says how well the model sees through the noise.

    Attributes:
        side: of an image, in pixels.
        n_latent: numbers drawn at each step.
        n_steps: steps in which an image is drawn.
        decoder_size: hidden size of the decoder.
        size: see :class:`btcompress.demo.task.Task`.
        factory: ``package.module:factory`` of the dense model of this very task.
    """

    name: ClassVar[str] = "images"
    layer: ClassVar[str] = "encoder"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("bound in nats per image"),
        Measure("bits per dimension", higher_is_better=False),
        Measure("reconstruction error", higher_is_better=False),
    )
    metric: ClassVar[Measure] = Measure("bits per dimension", higher_is_better=False)
    examples: ClassVar[str] = "images"

    side: int
    n_latent: int
    n_steps: int
    decoder_size: int
    size: Size
    factory: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.side, self.side, 3

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """An image, and beside it what its drawing lacks."""
        return self.side, self.side, 6

    @property
    def scale(self) -> float:
        """From bytes to 0 ... 1."""
        return _SCALE

    @property
    def model_reference(self) -> str:
        """See :class:`btcompress.demo.task.Task`."""
        return self.factory

    @property
    def loss(self) -> Callable[[Any, Tensor], Tensor]:
        """The mean negative bound, in bits for each colour of each pixel."""
        return loss

    def draw(self, seed: int) -> Drawn[ImageSet]:
        """See :class:`btcompress.demo.task.Task`."""
        images = make_images(
            self.size.n_train + self.size.n_test, side=self.side, generator=torch.Generator().manual_seed(seed)
        )
        train, test = images.split(self.size.n_train)
        return Drawn(train.x, train.y, test)

    def model(self, hidden_size: int | None = None) -> DrawingModel:
        """See :class:`btcompress.demo.task.Task`."""
        return DrawingModel(
            self.shape, hidden_size or self.size.hidden_size, self.n_latent, self.n_steps, self.decoder_size
        )

    @torch.no_grad()
    def scores(self, model: nn.Module, test: ImageSet) -> tuple[float, ...]:
        """The bound, higher is better; the same in bits per dimension; and the reconstruction error, lower is better.

        The last is the root mean square of what drawings differ by from the images, where black is 0 and white is 1.
        """
        drawing_model = cast(DrawingModel, model.eval())
        generator = torch.Generator().manual_seed(_SEED)
        nats = squares = 0.0
        for rows in torch.arange(len(test.x)).split(_BATCH):
            x, y = torch.from_numpy(test.x[rows.numpy()]), torch.from_numpy(test.y[rows.numpy()])
            for _ in range(_N_DRAWS):
                drawing = drawing_model.drawn(x.float() * _SCALE, drawing_model.noise(len(x), generator))
                nats += float(bound(drawing, y).double().sum()) / _N_DRAWS
                squares += float((drawing.mean - y.float() * _SCALE).double().square().sum()) / _N_DRAWS
        n_images, n_pixels = test.y.shape
        per_image = nats / n_images
        return per_image, bits_per_dimension(per_image, n_pixels), math.sqrt(squares / test.y.size)

    def noisy(self, test: ImageSet, noise: Noise) -> ImageSet:
        """The same images to draw, with noise over what the encoder reads."""
        return test.noisy(noise)

    @torch.no_grad()
    def draw_examples(self, models: Mapping[str, nn.Module], test: ImageSet, path: Path) -> None:
        """Draw what each model makes of the same random numbers, step by step, and of the first test images."""
        some = torch.from_numpy(test.x[:_N_READ])
        shown = {}
        for name, model in models.items():
            drawing_model = cast(DrawingModel, model.eval())
            samples = drawing_model.sample(_N_SAMPLES, torch.Generator().manual_seed(_SEED))
            again = drawing_model(some.float() * _SCALE).mean
            shown[name] = Drawings(
                samples.view(*samples.shape[:2], *self.shape).numpy(), again.view(-1, *self.shape).numpy()
            )
        save_drawings(some.view(-1, *self.shape).numpy(), shown, path)


def small_model() -> DrawingModel:
    """The dense model of :data:`SMALL`, with random weights."""
    return SMALL.model()


def full_model() -> DrawingModel:
    """The dense model of :data:`FULL`, with random weights."""
    return FULL.model()


#: About two minutes on two cores. Half as many epochs leave the dense model far from what it can learn.
SMALL = Images(
    24,
    n_latent=12,
    n_steps=4,
    decoder_size=256,
    size=Size(
        2000,
        500,
        64,
        4,
        4,
        dense=Training(16, 2e-2, 0.1, batch_size=16),
        tuning=Training(8, 1e-2, 0.1, batch_size=16),
        scratch=Training(16, 2e-2, 0.1, batch_size=16),
    ),
    factory=f"{__name__}:small_model",
)

#: The encoder reads 24,576 numbers, and its input matrix has 25,165,824.
FULL = Images(
    64,
    n_latent=16,
    n_steps=4,
    decoder_size=256,
    size=Size(
        2400,
        500,
        256,
        4,
        4,
        dense=Training(10, 1e-2, 0.1),
        tuning=Training(8, 1e-2, 0.1),
        scratch=Training(8, 1e-2, 0.1),
    ),
    factory=f"{__name__}:full_model",
)
