"""Count what a call of a layer takes beside time: bytes allocated, and operations of matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the first calls of a layer took.

    Attributes:
        peak_bytes: the most that was allocated at a time by torch, from before the first call to the end of the second,
            beyond what was there before; None where torch does not tell.
        operations: multiplications and additions of the matrix products in the second call; None where torch does not
            tell, or where a kernel was called that does not say what it multiplies.
    """

    peak_bytes: int | None
    operations: int | None


def count(call: Callable[[], object], device: str) -> Counts:
    """Run a call of a new layer twice and count; what it forms and keeps is formed in the first one."""
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    first, second = (_recorded(call) for _ in range(2))
    if device != "cpu":
        torch.cuda.synchronize(device)
        peak: int | None = max(torch.cuda.max_memory_allocated(device) - before, 0)
    else:
        peak = None if first is None or second is None else _peak_of([*first, *second])
    return Counts(peak, None if second is None else _operations_of(second))


def _product(left: Shape, right: Shape) -> int:
    """Of matrices, vectors, or stacks of matrices."""
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


#: Operations of what torch is asked for, by its arguments' shapes; what they call in turn is not counted again.
_PRODUCTS: dict[str, Callable[[Sequence[Shape]], int]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot"), lambda shapes: _product(*shapes[:2])),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), lambda shapes: _product(*shapes[1:3])),
    **dict.fromkeys(("addmm_", "baddbmm_", "addmv_"), lambda shapes: _product(*shapes[1:3])),
    # A layer and direction: inputs (T, B, I), then W and U.
    "mkldnn_rnn_layer": lambda shapes: 2 * math.prod(shapes[0][:2]) * sum(map(math.prod, shapes[1:3])),
}
#: Kernels whose lists of weights have no shapes.
_UNKNOWN = ("_cudnn_rnn", "miopen_rnn", "quantized_lstm")


def _recorded(call: Callable[[], object]) -> list[Any] | None:
    """The records of torch's profiler over a call, one thread after the other; None where there is none.

    It is the older one of torch's two, which allocates nothing itself, starts at once and writes nothing to stderr.
    """
    try:
        from torch.autograd import profiler_legacy

        own = torch._C._autograd
        enable, disable = own._enable_profiler_legacy, own._disable_profiler_legacy
        config = profiler_legacy.profile(record_shapes=True, profile_memory=True).config()
    except (ImportError, AttributeError):
        call()
        return None
    enable(config)
    try:
        call()
    finally:
        threads = disable()
    return [record for thread in threads for record in thread]


def _peak_of(records: Iterable[Any]) -> int:
    allocated = peak = 0
    for record in records:
        if record.kind() == "memory_alloc":
            allocated += record.cpu_memory_usage()
            peak = max(peak, allocated)
    return peak


def _operations_of(records: Iterable[Any]) -> int | None:
    total = 0
    inside: list[bool] = []  # of the calls that have begun, whether each is counted, or within one that is
    for record in records:
        if record.kind() == "push":
            name = record.name().removeprefix("aten::")
            if any(name.startswith(unknown) for unknown in _UNKNOWN):
                return None
            counted = bool(inside) and inside[-1]
            if not counted and name in _PRODUCTS:
                total += _PRODUCTS[name](record.shapes())
                counted = True
            inside.append(counted)
        elif record.kind() == "pop" and inside:
            inside.pop()
    return total
