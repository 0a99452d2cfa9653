"""A recurrent variational autoencoder that draws an image in steps (DRAW, Gregor et al. 2015), without attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from btcompress.demo.images.likelihood import log_likelihood

#: Root mean square of what the encoder reads, about, where black is 0 and white is 1.
_TYPICAL_INPUT = 0.2
#: How the drawing starts, before anything is learned: dark, and with a scale of the bytes around it.
_FIRST_CANVAS = -1.5
_FIRST_SCALE = 0.05
#: How much faster than other parameters the logarithm of the scale is learned.
_HASTE = 8
#: Posteriors begin narrow. As wide as the prior, they would drown what they tell before anyone learned to read it.
_FIRST_LOG_DEVIATION = -2.0
#: Of the noise that stands in for draws where a model is measured.
_SEED = 0


class Drawing(NamedTuple):
    """What the model makes of images: all that the bound on their log-likelihood needs.

    Attributes:
        mean: the drawing, where black is 0 and white is 1; shape ``(B, n_pixels)``.
        log_scale: the logarithm of the scale of the distribution around it, shape ``(n_pixels,)``.
        divergence: ``sum_t KL(q(z_t | x, z_<t) || p(z_t))`` in nats, shape ``(B,)``.
    """

    mean: Tensor
    log_scale: Tensor
    divergence: Tensor


class DrawingModel(nn.Module):
    """Reads an image and what its drawing still lacks at each step, and adds to the drawing (eq. 3 to 8 of the source).

    At each step ``e = x - sigmoid(c)``; the encoder reads ``(x, e)``, of shape ``(height, width, 6)`` in C order;
    ``z`` is drawn from a normal distribution that is linear in the encoder's hidden state; the decoder reads ``z``;
    and its hidden state, times a matrix, is added to the canvas ``c``. The drawing is ``sigmoid(c)`` in the end, and
    bytes are logistic around it, with a scale for each pixel and colour that is learned. ``p(z)`` is the standard
    normal. The source's encoder reads the decoder's state too, which is left out: ``e`` tells most of it.

    In evaluation mode the noise is the same at every call; in training it comes from torch's generator.

    Args:
        shape: of an image, ``(height, width, 3)``.
        hidden_size: of the encoder.
        n_latent: numbers drawn at each step.
        n_steps: ``T``.
        decoder_size: hidden size of the decoder.
    """

    def __init__(
        self, shape: tuple[int, int, int], hidden_size: int, n_latent: int, n_steps: int, decoder_size: int
    ) -> None:
        super().__init__()
        self.shape, self.n_latent, self.n_steps = shape, n_latent, n_steps
        n_pixels = math.prod(shape)
        self.encoder = nn.LSTMCell(2 * n_pixels, hidden_size)
        self.posterior = nn.Linear(hidden_size, 2 * n_latent)
        self.decoder = nn.LSTMCell(n_latent, decoder_size)
        self.write = nn.Linear(decoder_size, n_pixels, bias=False)
        self.first_canvas = nn.Parameter(torch.full((n_pixels,), _FIRST_CANVAS))
        self.spread = nn.Parameter(torch.full((n_pixels,), math.log(_FIRST_SCALE) / _HASTE))
        # What is read is scaled to a norm of about 1. Adam moves every weight by about the learning rate, whatever
        # meets it: with thousands of inputs as they are, it would have to be tiny for these. A power of two is exact.
        self.scale = 2.0 ** -round(math.log2(_TYPICAL_INPUT * math.sqrt(2 * n_pixels)))
        nn.init.normal_(self.encoder.weight_ih)
        nn.init.normal_(self.decoder.weight_ih, std=n_latent**-0.5)
        nn.init.normal_(self.write.weight, std=decoder_size**-0.5)
        nn.init.constant_(self.posterior.bias[n_latent:], _FIRST_LOG_DEVIATION)

    def forward(self, x: Tensor) -> Drawing:
        """Draw images.

        Args:
            x: shape ``(B, ..., n_pixels)`` of ``B n_pixels`` numbers, where black is 0 and white is 1.
        """
        generator = None if self.training else torch.Generator().manual_seed(_SEED)
        return self.drawn(x, self.noise(len(x), generator))

    def noise(self, n_images: int, generator: torch.Generator | None) -> Tensor:
        """Standard normal draws, shape ``(T, n_images, n_latent)``, from a generator of the CPU's; torch's if None."""
        return torch.randn(self.n_steps, n_images, self.n_latent, generator=generator)

    def drawn(self, x: Tensor, noise: Tensor) -> Drawing:
        """The same with the noise given, as :meth:`noise` draws it."""
        x = x.flatten(1)
        images, noise = x.view(-1, *self.shape), noise.to(x)
        canvas, written = self.first_canvas.expand_as(x), None
        read: tuple[Tensor, Tensor] | None = None
        divergence = x.new_zeros(len(x))
        for step in noise:
            lacking = (x - torch.sigmoid(canvas)).view_as(images)
            read = self.encoder(torch.cat([images, lacking], dim=-1).flatten(1) * self.scale, read)
            mean, log_deviation = self.posterior(read[0]).chunk(2, dim=-1)  # (B, n_latent) each
            divergence = divergence + normal_divergence(mean, log_deviation)
            written = self.decoder(mean + torch.exp(log_deviation) * step, written)
            canvas = canvas + self.write(written[0])
        return Drawing(torch.sigmoid(canvas), _HASTE * self.spread, divergence)

    @torch.no_grad()
    def sample(self, n_images: int, generator: torch.Generator) -> Tensor:
        """Draw images out of nothing, ``z`` from ``p(z)``.

        Args:
            n_images: images to draw.
            generator: source of the draws, on the CPU.

        Returns:
            The drawing after each step, where black is 0 and white is 1; shape ``(T, n_images, n_pixels)``.
        """
        noise = self.noise(n_images, generator).to(self.first_canvas)
        return torch.stack(list(self._sampled(noise)))

    def _sampled(self, noise: Tensor) -> Iterator[Tensor]:
        canvas, written = self.first_canvas, None
        for step in noise:
            written = self.decoder(step, written)
            canvas = canvas + self.write(written[0])
            yield torch.sigmoid(canvas)


def normal_divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """``KL(N(mean, deviation^2) || N(0, 1))``, summed over the last axis, in nats."""
    return 0.5 * (mean.square() + torch.exp(2 * log_deviation) - 1 - 2 * log_deviation).sum(-1)


def bound(outputs: Drawing, y: Tensor) -> Tensor:
    """A lower bound on the log-likelihood of each image, in nats, shape ``(B,)`` (eq. 9 to 12 of the source).

    ``log p(y | z) - sum_t KL_t`` for the ``z`` that was drawn; unbiased, so its mean over draws is the bound.

    Args:
        outputs: of the model.
        y: bytes of the images, shape ``(B, n_pixels)``.
    """
    return log_likelihood(y, outputs.mean, outputs.log_scale).sum(-1) - outputs.divergence


def bits_per_dimension(nats: float, n_pixels: int) -> float:
    """How many bits each colour of each pixel takes, for a log-likelihood of the whole image in nats."""
    return -nats / (n_pixels * math.log(2))


def loss(outputs: Drawing, y: Tensor) -> Tensor:
    """The mean negative bound, in bits for each colour of each pixel."""
    return -bound(outputs, y).mean() / (y.shape[-1] * math.log(2))
