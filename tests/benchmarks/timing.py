"""What the scripts that time things share: calls that take turns, and of which machine and arithmetic a time is."""

import torch

from btcompress.benching.turns import median_seconds

__all__ = ["machine", "median_seconds", "set_tf32"]


def set_tf32(allowed: bool) -> None:
    """Whether a GPU may round factors of float32 to 11 bits, in matrix products and in cuDNN's LSTM alike.

    By torch's default only cuDNN may, which would measure a dense LSTM by other rules than block terms.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def machine(device: str) -> dict[str, object]:
    """What times on a device are of, for a row of results."""
    row = {"device": "cpu", "threads": torch.get_num_threads(), "torch": torch.__version__}
    if device != "cpu":
        row |= {"device": torch.cuda.get_device_name(), "tf32": torch.backends.cudnn.allow_tf32}
    return row
