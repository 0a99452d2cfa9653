"""Handwritten digits to draw with, and where draws come from."""

from __future__ import annotations

import torch
from torch import Tensor

from btcompress.demo.missing import missing


def handwritten_digits() -> Tensor:
    """All digits of scikit-learn's set, shape ``(1797, 1, 8, 8)``, ink from 0 to 1.

    Raises:
        BTCompressError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("drawing digits", "scikit-learn") from error
    ink = torch.from_numpy(load_digits().images).to(torch.float32)
    return ink[:, None] / ink.max()


def uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent draws between the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)
