"""Between a plain torch module and the one that takes its place, parameter by parameter."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from btcompress.errors import BTCompressError
from btcompress.fit import FitOptions, fit_matrix
from btcompress.nn.weight import BTWeight

Module = TypeVar("Module", bound=nn.Module)


def fill_factorized(module: Module, plain: nn.Module, options: FitOptions) -> Module:
    """Fit the plain module's matrices where ``module`` has block-term weights, and copy all other parameters.

    Training and gradient flags are carried over.

    Raises:
        BTCompressError: a matrix is not finite, or what its block terms form is not, in its dtype.
    """
    for name, source in plain.named_parameters():
        target = getattr(module, name)
        if isinstance(target, BTWeight):
            target.load(fit_matrix(source, target.shape, options).parts)
            _formed(name, target)
        else:
            _copy(target, source)
        target.requires_grad_(source.requires_grad)
    return module.train(plain.training)


def fill_dense(plain: Module, module: nn.Module) -> Module:
    """Form the block-term weights of ``module`` in the plain module, and copy all other parameters.

    Training and gradient flags are carried over.

    Raises:
        BTCompressError: a matrix formed is not finite.
    """
    for name, target in plain.named_parameters():
        source = getattr(module, name)
        if isinstance(source, BTWeight):
            _copy(target, _formed(name, source))
            target.requires_grad_(any(parameter.requires_grad for parameter in source.parameters()))
        else:
            _copy(target, source)
            target.requires_grad_(source.requires_grad)
    return plain.train(module.training)


@torch.no_grad()
def _formed(name: str, weight: BTWeight) -> torch.Tensor:
    """The dense matrix, once it is sure that it is finite."""
    formed = weight.to_dense()
    if not torch.isfinite(formed).all():
        raise BTCompressError(
            f"{name}: the matrix that its block terms form holds values that are not finite in {formed.dtype}. "
            "Convert the module to float32 or float64, or scale its weights down."
        )
    return formed


@torch.no_grad()
def _copy(target: nn.Parameter, source: torch.Tensor) -> None:
    target.copy_(source)
