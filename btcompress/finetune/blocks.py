"""Keeping block terms well scaled, and watching for blocks that cancel one another."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from btcompress.blockterm import BlockTerm
from btcompress.fit import balanced
from btcompress.nn import BTWeight

#: Powers of two up to this one, and one over it, are floats.
_MOST_SCALED = 1000


def balance(network: nn.Module, kept: Collection[Tensor] = ()) -> None:
    """Spread the scale evenly over cores and factors of every matrix that is free to change.

    Args:
        network: holds them.
        kept: parameters whose values stay, as those stored in fewer bits must.
    """
    fixed = {id(tensor) for tensor in kept}
    for weight in _weights(network):
        if all(parameter.requires_grad and id(parameter) not in fixed for parameter in weight.parameters()):
            dtype = next(weight.parameters()).dtype
            with torch.no_grad():
                weight.load(tuple(balanced(part.to(torch.float64)).to(dtype) for part in weight.parts))


def worst_cancellation(network: nn.Module) -> float:
    """The largest :func:`cancellation` among all block-term forms of a network; 1 where there is none."""
    with torch.no_grad():
        return max((cancellation(part) for weight in _weights(network) for part in weight.parts), default=1.0)


def cancellation(form: BlockTerm) -> float:
    """``sum_n ||W_n||^2 / ||sum_n W_n||^2``: about 1 for blocks that share the work, large for ones that cancel.

    From the ``R_k x R_k`` overlaps of the factors, without forming any block; padding counts. A form whose
    sum is zero up to rounding, or not finite, gives the ratio at the rounding's limit, and a form of zeros gives 1.
    """
    # On the CPU: these are many small products, and some devices know no float64.
    cores, *factors = (_scaled(tensor.detach().cpu().double()) for tensor in (form.cores, *form.factors))
    overlaps = [torch.einsum("nijr,mijs->nmrs", factor, factor) for factor in factors]
    gram = cores.new_empty(len(cores), len(cores))
    for n, core in enumerate(cores):
        for m, other in enumerate(cores):
            for overlap in overlaps:  # each takes the leading mode and puts it last, so all come back in order
                other = torch.tensordot(other, overlap[n, m], dims=([0], [1]))
            gram[n, m] = (core * other).sum()
    separate, together, limit = float(gram.trace()), float(gram.sum()), torch.finfo(gram.dtype).eps
    if not math.isfinite(together):
        return 1 / limit
    return separate / max(together, limit * separate) if separate else 1.0


def _scaled(tensor: Tensor) -> Tensor:
    """The tensor by a power of two, to entries of about 1: their squares stay in range, and no digit changes."""
    exponent = int(torch.frexp(tensor.abs().max()).exponent)
    return tensor * 2.0 ** max(min(-exponent, _MOST_SCALED), -_MOST_SCALED)


def _weights(network: nn.Module) -> list[BTWeight]:
    """The matrices in block-term form; one with separate gates is seen whole, not gate by gate again."""
    found = [module for module in network.modules() if isinstance(module, BTWeight)]
    parts = {id(child) for module in found for child in module.children()}
    return [module for module in found if id(module) not in parts]
