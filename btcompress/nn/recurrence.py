"""The LSTM recurrence, once the input part ``z = W x + b`` of every step is known."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]

#: On a CPU torch's kernel is used up to this many products of batch size and squared hidden size: beyond, the
#: identity matrix it has to be given costs more than a loop's calls.
_KERNEL_LIMIT = 2**17


class Recurrent:
    ...
