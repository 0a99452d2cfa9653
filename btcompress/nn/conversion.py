"""Between a plain torch module and the one that takes its place, parameter by parameter."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from btcompress.fit import FitOptions, fit_matrix
from btcompress.nn.weight import BTWeight

Module = TypeVar("Module", bound=nn.Module)


def fill_factorized(module: Module, plain: nn.Module, options: FitOptions) -> Module:
    """Fit the plain module's matrices where ``module`` has block-term weights, and copy all other parameters.

    Training and gradient flags are carried over.

    Raises:
        BTCompressError: a matrix is not finite.
    """
    for name, source in plain.named_parameters():
        target = getattr(module, name)
        if isinstance(target, BTWeight):
            target.load(fit_matrix(source, target.shape, options).parts)
        else:
            _copy(target, source)
        target.requires_grad_(source.requires_grad)
    return module.train(plain.training)


def fill_dense(plain: Module, module: nn.Module) -> Module:
    """Form the block-term weights of ``module`` in the plain module, and copy all other parameters.

    Training and gradient flags are carried over.
    """
    for name, target in plain.named_parameters():
        source = getattr(module, name)
        if isinstance(source, BTWeight):
            _copy(target, source.to_dense())
            target.requires_grad_(any(parameter.requires_grad for parameter in source.parameters()))
        else:
            _copy(target, source)
            target.requires_grad_(source.requires_grad)
    return plain.train(module.training)


@torch.no_grad()
def _copy(target: nn.Parameter, source: torch.Tensor) -> None:
    target.copy_(source)
