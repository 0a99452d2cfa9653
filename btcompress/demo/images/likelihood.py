"""How likely an image is, given what was drawn: bytes from a logistic distribution around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_MOST = 255


def log_likelihood(y: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """The logarithm of the probability of bytes (Salimans et al. 2017, eq. 2, with one component).

    ``p(y) = sigmoid((y + 1/2 - 255 m) / 255 s) - sigmoid((y - 1/2 - 255 m) / 255 s)``, where the first is 1 for a ``y``
    of 255 and the second 0 for a ``y`` of 0, so that the probabilities of the 256 bytes add up to 1.

    Args:
        y: bytes, 0 to 255, shape ``(..., n)``.
        mean: ``m``, where black is 0 and white is 1; shape ``(..., n)``.
        log_scale: the logarithm of ``s``, broadcast against it.

    Returns:
        In nats, shape ``(..., n)``.
    """
    above = (((y.to(mean.dtype) + 0.5) / _MOST) - mean) * torch.exp(-log_scale)
    width = torch.exp(-log_scale) / _MOST
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)), accurate where both are near 0 or 1 too.
    lower, upper = logsigmoid(above), logsigmoid(width - above)
    inside = lower + upper + torch.log(-torch.expm1(-width))
    return torch.where(y == 0, lower, torch.where(y == _MOST, upper, inside))
