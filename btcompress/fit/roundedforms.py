"""Round the cores and factors of a form, so that the errors of each tensor are taken up by those after it.

Of a plain low-rank matrix ``L R`` the right factor is rounded as a matrix of its own, the left one is fitted to what
that gives, and rounded with the errors of each rank fed back to the next. Of any other form factors and cores are
rounded in turn, and after each of them those that follow are fitted anew by least squares. Both go by sample inputs;
where there are none, by inputs of which all directions are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.fit.inputfit import Outputs, errors_on
from btcompress.fit.rounding import fed_back, fed_back_by_ranks, nearest
from btcompress.fit.samples import Samples
from btcompress.packing import Integers, Packed, Precision

#: How the tensors of a form are stored, in the order of :attr:`BlockTerm.tensors`.
Stored: TypeAlias = tuple[Packed | torch.dtype, ...]

#: Inputs that stand for all directions alike: each once up to so many, else so many random ones.
_MOST_DIRECTIONS = 512
#: Share of the mean moment that keeps a least-squares solution of few ranks in bounds.
_RIDGE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class RoundedForm:
    """A form in few bits.

    Attributes:
        parts: its block terms, with the values that are stored, in the matrix's dtype.
        stored: how the tensors of each are stored.
    """

    parts: tuple[BlockTerm, ...]
    stored: tuple[Stored, ...]


def round_parts(
    matrix: Tensor, parts: Sequence[BlockTerm], precision: Precision, samples: Samples | None = None
) -> RoundedForm:
    """Store a form of a matrix in a precision, with as little lost as can be.

    Args:
        matrix: ``W``, shape ``(J, I)``, any real floating dtype; read only.
        parts: block terms whose rows are stacked, fitted to it.
        precision: of all their cores and factors.
        samples: what the matrix meets; where left out, all inputs and outputs count alike.
    """
    if not isinstance(precision, Integers):
        cast = tuple(part.to(precision).to(matrix.dtype) for part in parts)
        return RoundedForm(cast, tuple((precision,) * len(part.tensors) for part in parts))
    samples = alike(matrix) if samples is None else samples
    plain = _form(parts, [[nearest(each, precision) for each in part.tensors] for part in parts], matrix.dtype)
    packed, first = [], 0
    for part in parts:
        n = part.shape.out_size
        own, rows = samples.of_rows(first, n), matrix.detach()[first : first + n]
        rounds = _low_rank if part.shape.is_low_rank else _in_turn
        packed.append(rounds(rows, part.to(torch.float64), precision, own))
        first += n
    careful = _form(parts, packed, matrix.dtype)
    before, after = (errors_on(matrix, form.parts, samples).weighted for form in (plain, careful))
    return careful if after <= before else plain


def round_matrix(matrix: Tensor, integers: Integers, samples: Samples | None = None) -> Packed:
    """The integers of a dense matrix: with errors fed back, unless the nearest do better on inputs held back.

    They do where few inputs tell of many columns.

    Args:
        matrix: ``W``, shape ``(J, I)``, any real floating dtype; read only.
        integers: bits and groups.
        samples: what the matrix meets; where left out, each number becomes the nearest.
    """
    plain = nearest(matrix, integers)
    if samples is None:
        return plain
    careful = fed_back(matrix, integers, samples.inputs)
    before, after = (errors_on(matrix, each.values(), samples).weighted for each in (plain, careful))
    return careful if after <= before else plain


def alike(matrix: Tensor) -> Samples:
    """Inputs of a matrix that all count alike: the error of its outputs is, or is nearly, the weight error."""
    n_inputs = matrix.shape[1]
    inputs = torch.eye(n_inputs)
    if n_inputs > _MOST_DIRECTIONS:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(_MOST_DIRECTIONS, n_inputs, generator=generator) / _MOST_DIRECTIONS**0.5
    return Samples(inputs, inputs, torch.ones(len(matrix), dtype=torch.float64))


def _form(parts: Sequence[BlockTerm], packed: Sequence[Sequence[Packed]], dtype: torch.dtype) -> RoundedForm:
    stored = tuple(tuple(replace(each, dtype=dtype) for each in own) for own in packed)
    values = ([each.values() for each in own] for own in stored)
    forms = (BlockTerm.of(part.shape, own, part.orders) for part, own in zip(parts, values, strict=True))
    return RoundedForm(tuple(forms), stored)


def _low_rank(matrix: Tensor, part: BlockTerm, integers: Integers, samples: Samples) -> list[Packed]:
    """Packed factors of a plain low-rank part, float64, without padding as it has none."""
    shape = part.shape
    left, right = part.low_rank_factors()
    inputs, weights = samples.inputs.double(), samples.weights.double()
    # With orthonormal columns on the left, every entry of the right factor's error counts the same.
    _, triangle = torch.linalg.qr(weights[:, None] * left)
    packed = fed_back(triangle @ right, integers, inputs)
    right = packed.values()
    given = inputs @ right.T
    moments = given.T @ given
    moments.diagonal().add_(_RIDGE * float(moments.diagonal().mean()) + torch.finfo(moments.dtype).tiny)
    wished = (inputs @ matrix.double().T).T @ given
    best = torch.linalg.solve(moments, wished.T)  # (R, J)
    scale = weights.square() / weights.square().mean()
    chosen = fed_back_by_ranks(best, integers, moments, scale.float())
    first, second = shape.factor_shapes
    codes = (packed.codes, packed.scales, packed.zeros), (chosen[0].to(torch.uint8), *chosen[1:])
    return [Packed(integers, size, torch.float64, *own) for size, own in zip((first, second), codes, strict=True)]


def _in_turn(matrix: Tensor, part: BlockTerm, integers: Integers, samples: Samples) -> list[Packed]:
    """Packed cores and factors of a part: the factors in turn, then the cores."""
    problem = Outputs.of_part(matrix.to(samples.inputs.dtype), part, samples.inputs, samples.weights)
    shape = part.shape.ordered()
    form = BlockTerm(shape, part.cores, part.factors).to(samples.inputs.dtype)
    factors: list[Packed] = []
    for mode in range(shape.order):
        factors.append(nearest(form.factors[mode], integers))
        form = _with_factor(form, mode, factors[-1].values())
        for later in range(mode + 1, shape.order):
            form = problem.with_factor(form, later)
        if shape.core == "full":
            form = problem.with_cores(form)
    return [nearest(form.cores, integers), *factors] if shape.core == "full" else factors


def _with_factor(form: BlockTerm, mode: int, factor: Tensor) -> BlockTerm:
    return replace(form, factors=(*form.factors[:mode], factor, *form.factors[mode + 1 :]))
