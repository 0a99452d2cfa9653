"""One thread for fits of ordinary size: sums over several end in other last digits than sums over one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Entries of a matrix up to which one thread costs little time.
_ORDINARY = 2**19


@contextmanager
def one_thread_for(n_entries: int) -> Iterator[None]:
    """Let torch compute in one thread inside, in all of the process, unless a matrix is larger than ordinary ones.

    Args:
        n_entries: of the largest matrix to be fitted.
    """
    before = torch.get_num_threads()
    if n_entries > _ORDINARY or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
