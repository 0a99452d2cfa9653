"""Put sequences in the order of their lengths, so that a batch of neighbours has little padding."""

from __future__ import annotations

import torch
from torch import Tensor

from btcompress.finetune.data import Arrays, Data, Rows


def by_length(data: Data) -> Data:
    """The same sequences, the shortest first, where their lengths are known without looking at each."""
    lengths = _lengths(data)
    return data if lengths is None else Rows(data, lengths.argsort(stable=True))


def _lengths(data: Data) -> Tensor | None:
    if isinstance(data, Rows):
        lengths = _lengths(data.source)
        return None if lengths is None else lengths[data.rows]
    if isinstance(data, Arrays) and data.lengths is not None:
        return torch.from_numpy(data.lengths.astype("int64"))
    return None
