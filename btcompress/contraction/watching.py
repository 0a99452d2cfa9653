"""Who looks into operations: what records them, and what has to see every one of them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.jit._trace import TracerWarning


def is_captured() -> bool:
    """Whether a compiler, exporter or tracer records operations, to run them later on inputs of other sizes."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_watched(*tensors: Tensor) -> bool:
    """Whether something looks into operations on these tensors, and so has to see every one of them.

    A compiler or tracer, ``torch.func``, forward gradients, or a tensor class of its own.
    """
    return (
        is_captured()
        or torch._C._are_functorch_transforms_active()
        or torch.overrides.has_torch_function(tensors)
        or any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    )


def own_sizes(tensor: Tensor) -> tuple[int, ...]:
    """The sizes of a parameter, or of what is formed of parameters alone; a tracer takes them for constants."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is None:
        return tuple(tensor.shape)
    with warnings.catch_warnings():
        # Constants they are.
        warnings.simplefilter("ignore", TracerWarning)
        return tuple(int(size) for size in tensor.shape)
