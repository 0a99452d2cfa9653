"""Devices that can compute here."""

from __future__ import annotations

from functools import lru_cache
from textwrap import shorten

import torch

from btcompress.errors import BTCompressError

#: What torch raises for devices that it does not know, was not built for, or cannot reach.
_REFUSALS = (RuntimeError, AssertionError, TypeError, ValueError, ImportError, AttributeError)


@lru_cache
def check_device(device: str) -> str:
    """The name of a device, once it is sure that it can compute in float64.

    Raises:
        BTCompressError: it cannot, or there is no such device.
    """
    try:
        ones = torch.ones(2, 2, device=device or "none", dtype=torch.float64)
        float((ones @ ones).sum())
    except _REFUSALS as error:
        reason = shorten(str(error).partition("\n")[0], 120, placeholder=" ...")
        raise BTCompressError(
            f"the device {device!r:.40} cannot be used here ({reason}). Use cpu, or a CUDA device if there is one."
        ) from error
    return device
