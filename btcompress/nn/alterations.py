"""Parameters of a model that torch makes anew at each call: by weight norm, spectral norm or pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True, slots=True)
class Alteration:
    """A parameter that a model does not have as such.

    Attributes:
        name: that of the plain parameter in the model.
        stored: names in the model's state dict of what it is made from.
        shape: of the plain parameter.
        undo: gives the module the plain parameter in place of all that.
    """

    name: str
    stored: tuple[str, ...]
    shape: torch.Size
    undo: Callable[[], object]


def alterations(model: nn.Module) -> Iterator[Alteration]:
    """All parameters that are made anew at each call, each module's once; the model is not changed.

    Args:
        model: any.
    """
    for prefix, module in model.named_modules():
        before = f"{prefix}." if prefix else ""
        for part, undo in _altered(module):
            names = tuple(f"{part}_{end}" for end in ("orig", "mask", "g", "u", "v"))
            inner = f"parametrizations.{part}."
            state = {key: each for key, each in module.state_dict().items() if key.startswith(inner) or key in names}
            # Of norms, vectors, masks and weights, none is larger than the weights.
            shape = max((each.shape for each in state.values()), key=lambda sizes: (sizes.numel(), len(sizes)))
            yield Alteration(before + part, tuple(before + key for key in state), shape, undo)


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class of a module, as it was before any of its parameters was parametrized."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _altered(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names of a module's altered parameters, and what undoes each."""
    if parametrize.is_parametrized(module):
        for part in cast(nn.ModuleDict, module.parametrizations):
            yield part, partial(parametrize.remove_parametrizations, module, part)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, partial(remove_weight_norm, module, hook.name)
        elif isinstance(hook, SpectralNorm):
            yield hook.name, partial(remove_spectral_norm, module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name, partial(prune.remove, module, hook._tensor_name)
