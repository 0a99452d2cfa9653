"""Handwritten digits to draw with, and where draws come from."""

from __future__ import annotations

import torch
from torch import Tensor

from btcompress.errors import BTCompressError


def handwritten_digits() -> Tensor:
    """All digits of scikit-learn's set, shape ``(1797, 1, 8, 8)``, ink from 0 to 1.

    Raises:
        BTCompressError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BTCompressError(
            "the demonstration draws its pictures with scikit-learn's digits, and scikit-learn is not installed. "
            "Run: pip install 'btcompress[demo]'"
        ) from error
    ink = torch.from_numpy(load_digits().images).to(torch.float32)
    return ink[:, None] / ink.max()


def uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent draws between the bounds."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)
