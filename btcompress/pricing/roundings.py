"""Round a matrix, or a form of it, as it is to be stored, and measure what that loses: by entries, or on inputs.

All is done just as it is done once the form was chosen, so that what is measured here is what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from btcompress import memory
from btcompress.blockterm import BlockTerm
from btcompress.fit import Samples, balanced, fit_to_inputs, round_matrix, round_parts
from btcompress.fit.blockfit import zero_form
from btcompress.fit.inputfit import errors_on
from btcompress.fit.lowrank import fit_without_core
from btcompress.fit.measures import frobenius_norm, largest, weight_error
from btcompress.fit.samples import OutputErrors, output_errors
from btcompress.packing import Integers, Precision
from btcompress.shapes import MatrixShape

#: Rows that tell about what rounding a whole matrix loses.
_FEW_ROWS = 64
#: Bytes held at once for each entry of a matrix that is rounded whole: codes, and a few floats.
_COPIES = 32


@dataclass(frozen=True, slots=True)
class Loss:
    """What a form in a precision loses.

    Attributes:
        error: weight error; on inputs, the weighted activation error.
        activation_error: on inputs, without weights; else None.
    """

    error: float
    activation_error: float | None = None


class Rounder:
    """One matrix, whose forms are rounded and measured.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, finite; read only.
        samples: what it meets; None to go by its entries.
        device: where forms without a core are fitted to the entries.
    """

    def __init__(self, matrix: Tensor, samples: Samples | None, device: torch.device) -> None:
        self.matrix = matrix.detach()
        self.samples = samples
        self._device = device
        self._fitted: dict[MatrixShape, tuple[BlockTerm, ...]] = {}
        self._size = 0.0 if samples is not None else frobenius_norm(matrix)

    def dense(self, precision: Precision) -> Loss:
        """What is lost where the matrix stays dense.

        Raises:
            MemoryLimitError: rounding takes more memory than there is.
        """
        n_entries = self.matrix.numel()
        memory.require(_COPIES * n_entries, f"rounding {n_entries:,} entries", "Leave the matrix out.")
        return self._loss_of(self._rounded(self.matrix, precision, self.samples))

    def form(self, parts: Sequence[BlockTerm], precision: Precision) -> Loss:
        """What is lost in a form.

        Args:
            parts: its block terms, fitted to the entries or to the inputs.
            precision: of its cores and factors.
        """
        own = [part.to("cpu").to(self.matrix.dtype) for part in parts]
        rounded = round_parts(self.matrix, own, precision, self.samples).parts
        if self.samples is None:
            return _finite(Loss(weight_error(self.matrix, rounded, self.matrix.dtype)))
        return _of_outputs(errors_on(self.matrix, rounded, self.samples))

    def without_core(self, shape: MatrixShape, most: int) -> tuple[BlockTerm, ...]:
        """The best fit of a form of order 2 without a core.

        Args:
            shape: the form, without orders.
            most: the largest rank that any form of these modes will be asked for at.
        """
        key = replace(shape, part=replace(shape.part, ranks=(1, 1)))
        if key not in self._fitted:
            self._fitted[key] = self._at_rank(replace(key, part=replace(key.part, ranks=(most, most))))
        rank = shape.part.ranks[0]
        cut = ([factor[..., :rank] for factor in whole.factors] for whole in self._fitted[key])
        return tuple(balanced(BlockTerm.of(shape.part, factors)) for factors in cut)

    def share_lost(self, precision: Precision) -> float:
        """About the squared error that rounding the dense matrix to the nearest makes, told by some of its rows."""
        n_rows = len(self.matrix)
        rows = torch.arange(0, n_rows, max(1, n_rows // _FEW_ROWS))
        few = self.matrix[rows]
        missed = self._rounded(few, precision, None).double() - few.double()
        if self.samples is None:
            size = float(few.double().square().sum())
            return float(missed.square().sum()) / size if size else 0.0
        held, weights = self.samples.held.double(), self.samples.weights.double()[rows]
        lost, size = (float(((held @ each.T) * weights).square().sum()) for each in (missed, few.double()))
        return lost / size if size else 0.0

    def _rounded(self, matrix: Tensor, precision: Precision, samples: Samples | None) -> Tensor:
        if not isinstance(precision, Integers):
            return matrix.to(precision).to(matrix.dtype)
        return round_matrix(matrix, precision, samples).values()

    def _loss_of(self, values: Tensor) -> Loss:
        if self.samples is None:
            missed = values.double().sub_(self.matrix)
            return _finite(Loss(float(torch.linalg.vector_norm(missed)) / self._size if self._size else 0.0))
        held, weights = self.samples.held, self.samples.weights
        wanted, given = (held @ each.to(held.dtype).T for each in (self.matrix, values))
        return _of_outputs(output_errors(wanted, given, weights))

    def _at_rank(self, shape: MatrixShape) -> tuple[BlockTerm, ...]:
        part = shape.part
        if self.samples is not None:
            zeros = tuple(zero_form(part, torch.device("cpu")) for _ in range(shape.n_parts))
            return fit_to_inputs(self.matrix, zeros, self.samples).parts
        forms = []
        for rows in self.matrix.split(part.out_size):
            if scale := largest(rows):
                forms.append(BlockTerm.of(part, fit_without_core(rows, part, scale, self._device)).to("cpu"))
            else:
                forms.append(zero_form(part, torch.device("cpu")))
        return tuple(forms)


def _of_outputs(errors: OutputErrors) -> Loss:
    return _finite(Loss(errors.weighted, errors.plain))


def _finite(loss: Loss) -> Loss:
    """Infinite where numbers passed the range of a dtype."""
    return loss if math.isfinite(loss.error) else replace(loss, error=math.inf)
