"""A fixed convolutional network over pictures: filters like Gabor's, then random ones, never trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from btcompress.demo.captions.scenes import make_scenes

_SEED = 20181206  # of the random filters, and of the scenes on which channels are brought to one spread
#: Axes of colour: bright or dark, red or green, blue or yellow.
_AXES = ((0.577, 0.577, 0.577), (0.707, -0.707, 0.0), (-0.408, -0.408, 0.816))
_ORIENTATIONS = 4
_WIDTH = 7  # of the first filters, in pixels
_WAVELENGTH, _SPREAD = 5.0, 1.7  # of their waves and of the bell over these, in pixels
_TYPICAL_SCENES = 64  # on which each channel is brought to mean 0 and spread 1
_CHUNK = 32  # pictures at once, which bounds memory
#: A byte for each of so much, where a channel has spread 1 before its ReLU.
_STEP = 1 / 85


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor
    stride: int

    def of(self, inputs: Tensor) -> Tensor:
        return conv2d(inputs, self.weight, self.bias, self.stride, padding=self.weight.shape[-1] // 2).relu_()


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """What a fixed convolutional network gives for a picture.

    Two layers with ReLUs: filters like Gabor's on axes of colour, at half of the picture's resolution; random
    combinations of 3 x 3 of these, at a quarter. Each channel is shifted and scaled to mean 0 and spread 1, before its
    ReLU, on some scenes of a seed of its own; means over ``grid`` x ``grid`` parts of the picture are the map.

    Attributes:
        side: of a picture, in pixels.
        grid: of the map, each way.
        channels: of the map.
    """

    side: int
    grid: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of the map."""
        return self.grid, self.grid, self.channels

    @torch.no_grad()
    def of(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The maps of pictures ``(n, side, side, 3)``, each flattened in C order: ``(n, grid * grid * channels)``.

        Raises:
            BTCompressError: scikit-learn, whose digits are among the scenes, is missing.
        """
        first, second = self._layers()
        maps = np.empty((len(images), math.prod(self.shape)), np.uint8)
        for start in range(0, len(images), _CHUNK):
            found = second.of(first.of(_pixels(images[start : start + _CHUNK])))
            means = adaptive_avg_pool2d(found, self.grid).permute(0, 2, 3, 1).flatten(1)
            maps[start : start + _CHUNK] = means.div_(_STEP).round_().clamp_(0, 255).numpy()
        return maps

    def _layers(self) -> Iterator[_Layer]:
        generator = torch.Generator().manual_seed(_SEED)
        inputs = _pixels(make_scenes(_TYPICAL_SCENES, side=self.side, generator=generator).images)
        filters = _gabor()
        combinations = torch.randn(self.channels, len(filters), 3, 3, generator=generator)
        for weight in (filters, combinations):
            layer = _levelled(weight, inputs)
            yield layer
            inputs = layer.of(inputs)


def _pixels(images: npt.NDArray[np.uint8]) -> Tensor:
    """Shape ``(n, 3, side, side)``, from 0 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255).contiguous()


def _levelled(weight: Tensor, inputs: Tensor) -> _Layer:
    """The filters so shifted and scaled that each has mean 0 and spread 1 over these inputs."""
    stride = 2
    given = conv2d(inputs, weight, None, stride, padding=weight.shape[-1] // 2).transpose(0, 1).flatten(1)
    spread, mean = torch.std_mean(given, dim=1)
    return _Layer(weight / spread[:, None, None, None], -mean / spread, stride)


def _gabor() -> Tensor:
    """A bell and odd waves of four orientations within it on each axis of colour, and their negatives."""
    steps = torch.arange(_WIDTH) - (_WIDTH - 1) / 2
    bell = torch.exp(-(steps**2 + steps[:, None] ** 2) / (2 * _SPREAD**2))
    angles = [math.pi * k / _ORIENTATIONS for k in range(_ORIENTATIONS)]
    along = [2 * math.pi / _WAVELENGTH * (math.cos(a) * steps + math.sin(a) * steps[:, None]) for a in angles]
    planes = torch.stack([bell, *(torch.sin(each) * bell for each in along)])  # (5, 7, 7)
    axes = torch.tensor(_AXES)
    filters = (axes[:, None, :, None, None] * planes[None, :, None]).flatten(0, 1)
    return torch.cat([filters, -filters])
