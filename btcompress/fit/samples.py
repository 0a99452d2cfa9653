"""What a matrix meets in a model: sample inputs, and how much each of its outputs counts there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.contraction import plan_chain

#: A form of a matrix: block terms whose rows are stacked, or a dense matrix in its place.
Form: TypeAlias = tuple[BlockTerm, ...] | Tensor
#: Several forms of each matrix by its key.
Forms: TypeAlias = Mapping[str, Sequence[Form]]

#: Entries of a matrix up to which it is formed where that makes its products cheaper.
_FORMED_ENTRIES = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Inputs of one matrix, and how much its outputs count.

    Attributes:
        inputs: to fit on, shape ``(S, I)``; the sum over them of any square of a product is the mean over the steps
            that they stand for.
        held: likewise, never fitted on: predicted errors are measured on them.
        weights: ``s_j``, shape ``(J,)``, above 0: what a small error of output ``j`` adds to the model's own.
    """

    inputs: Tensor
    held: Tensor
    weights: Tensor

    def of_rows(self, first: int, n: int) -> Samples:
        """The same for ``n`` rows of the matrix from ``first`` on."""
        return replace(self, weights=self.weights[first : first + n])


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """How far a form is off on inputs.

    Attributes:
        weighted: ``||S (W - W') X||_F / ||S W X||_F``, ``S`` with the weights on its diagonal.
        plain: ``||(W - W') X||_F / ||W X||_F``.
    """

    weighted: float
    plain: float


def output_errors(wanted: Tensor, given: Tensor, weights: Tensor) -> OutputErrors:
    """The errors of outputs; 0 where there is nothing to give and nothing is given.

    Args:
        wanted: ``W x``, shape ``(n, J)``.
        given: ``W' x``, likewise.
        weights: ``s_j``, shape ``(J,)``.
    """
    missed = (wanted - given).double()
    size, scale = wanted.double(), weights.double()
    return OutputErrors(_ratio(missed * scale, size * scale), _ratio(missed, size))


def _ratio(missed: Tensor, size: Tensor) -> float:
    above, below = float(torch.linalg.vector_norm(missed)), float(torch.linalg.vector_norm(size))
    if not below:
        return math.inf if above else 0.0
    return above / below


def product_by(form: Sequence[BlockTerm] | Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Multiplies inputs, shape ``(n, I)``, by a matrix: by its factors, or formed once where that is cheaper.

    Args:
        form: of the matrix.
        dtype: to compute in.
    """
    if isinstance(form, Tensor):
        transposed = form.to(dtype).T
        return lambda inputs: inputs @ transposed
    own = [part.to(dtype) for part in form]
    shapes = [part.shape for part in form]
    cost = sum(plan_chain(shape.n_blocks, shape.in_modes, shape.out_modes, shape.ranks).cost for shape in shapes)
    entries = sum(shape.dense_params for shape in shapes)
    if cost > 2 * entries and entries <= _FORMED_ENTRIES:
        formed = torch.cat([part.to(torch.float64).to_dense() for part in form]).to(dtype)
        return lambda inputs: inputs @ formed.T
    return lambda inputs: torch.cat([part.matmul(inputs) for part in own], dim=-1)
