"""What rounding alone makes of each matrix, and 8 bits of its block terms: worked out, measured and recorded."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, CompressedMatrix, RoundedMatrix
from btcompress.fit import OutputErrors, Samples, weight_error
from btcompress.fit.measures import difference_error
from btcompress.fit.samples import Form, Forms, output_errors, product_by
from btcompress.reporting.rows import matrix_of, svd_yardstick, with_matrices
from btcompress.results import RoundingReport
from btcompress.yardsticks import (
    QUICK_ENTRIES,
    Rounding,
    fed_back_rounding,
    parts_in_8_bits,
    rounded_alone,
    roundings_of,
)

#: Entries of second moments that are formed for a yardstick: half a gigabyte.
_QUICK_MOMENTS = 2**26


class Measure(Protocol):
    """Measures forms on inputs."""

    def __call__(self, forms: Forms, /) -> Mapping[str, tuple[OutputErrors, ...]]:
        """The errors of several forms of each matrix, by its key."""

    def samples(self, key: str, /) -> Samples | None:
        """What a matrix meets; None for one that has no inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class OnSamples:
    """Measures on the samples held back while a plan or a fit was made.

    Attributes:
        dense: holds the matrices.
        by_key: the samples of each.
    """

    dense: Checkpoint
    by_key: Mapping[str, Samples]

    def __call__(self, forms: Forms, /) -> Mapping[str, tuple[OutputErrors, ...]]:
        """See :class:`Measure`."""
        return {key: tuple(self._errors(key, each)) for key, each in forms.items() if key in self.by_key}

    def samples(self, key: str, /) -> Samples | None:
        """See :class:`Measure`."""
        return self.by_key.get(key)

    def _errors(self, key: str, forms: Sequence[Form]) -> Iterator[OutputErrors]:
        samples = self.by_key[key]
        held = samples.held.double()
        wanted = held @ self.dense.tensors[key].detach().double().T
        for form in forms:
            yield output_errors(wanted, product_by(form, torch.float64)(held), samples.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """A matrix in integers.

    Attributes:
        report: what it takes, and how far it is off.
        form: it, to be measured on inputs; None where there are no inputs of it.
    """

    report: RoundingReport
    form: Form | None = None

    def on(self, errors: OutputErrors | None) -> RoundingReport:
        """With what was measured on inputs."""
        if errors is None:
            return self.report
        plain, weighted = (each if math.isfinite(each) else None for each in (errors.plain, errors.weighted))
        return replace(self.report, activation_error=plain, weighted_activation_error=weighted)


@dataclass(frozen=True, slots=True, eq=False)
class Alternatives:
    """What a matrix might be in integers instead.

    Attributes:
        alone: the dense matrix rounded alone.
        in_8_bits: its block terms, where they are floats.
    """

    alone: tuple[Alternative, ...] = ()
    in_8_bits: Alternative | None = None

    @property
    def forms(self) -> tuple[Form, ...]:
        """All that can be measured on inputs."""
        every = self.alone if self.in_8_bits is None else (*self.alone, self.in_8_bits)
        return tuple(each.form for each in every if each.form is not None)

    def recorded_in(
        self, matrix: CompressedMatrix | RoundedMatrix, errors: Iterator[OutputErrors]
    ) -> CompressedMatrix | RoundedMatrix:
        """A matrix with them in its record.

        Args:
            matrix: what is recorded now; errors on inputs that were not measured again stay.
            errors: of :attr:`forms`, in their order, or none.
        """
        known = {(each.precision, each.fed_back): each for each in matrix.roundings}
        alone = []
        for each in self.alone:
            found = each.on(None if each.form is None else next(errors, None))
            before = known.pop((found.precision, found.fed_back), None)
            if before is not None and found.activation_error is None:
                kept = (before.activation_error, before.weighted_activation_error)
                found = replace(found, activation_error=kept[0], weighted_activation_error=kept[1])
            alone.append(found)
        alone += [each for each in known.values() if each.fed_back]
        if isinstance(matrix, RoundedMatrix):
            return replace(matrix, roundings=tuple(alone))
        eight = None
        if self.in_8_bits is not None:
            eight = self.in_8_bits.on(None if self.in_8_bits.form is None else next(errors, None))
        return replace(matrix, roundings=tuple(alone), in_8_bits=eight)


def alternatives(compressed: CompressedCheckpoint, key: str, matrix: Tensor, measure: Measure | None) -> Alternatives:
    """What a chosen matrix might be in integers: rounded alone, to the nearest and, where there are inputs of it, with
    errors fed back as well; and its block terms in 8 bits.

    Args:
        compressed: the result.
        key: of the matrix.
        matrix: dense.
        measure: has its inputs.
    """
    samples = None if measure is None else measure.samples(key)
    every = roundings_of(matrix, compressed.bytes_of_matrix(key))
    if samples is None:
        alone = [Alternative(_report(each)) for each in every]
    else:
        alone = [Alternative(_report(each), rounded_alone(matrix, each.integers)) for each in every]
        if matrix.numel() <= QUICK_ENTRIES:
            quick = (each for each in every if _has_quick_moments(each, matrix))
            again = (fed_back_rounding(matrix, each, samples.inputs) for each in quick)
            alone += [Alternative(_report(each), values) for each, values in again]
    return Alternatives(tuple(alone), _in_8_bits(compressed, key, matrix, to_measure=samples is not None))


def _has_quick_moments(rounding: Rounding, matrix: Tensor) -> bool:
    """Whether the second moments of the inputs of a group are small enough, which has all of a row's or fewer."""
    return min(rounding.integers.group, matrix.shape[1]) ** 2 <= _QUICK_MOMENTS


def _report(rounding: Rounding) -> RoundingReport:
    return RoundingReport(str(rounding.integers), rounding.n_bytes, rounding.error, fed_back=rounding.fed_back)


def _in_8_bits(compressed: CompressedCheckpoint, key: str, matrix: Tensor, *, to_measure: bool) -> Alternative | None:
    """The block terms of a matrix in 8 bits; None where they are in fewer bits than their own, or cannot be."""
    own = compressed.matrices.get(key)
    if own is None or compressed.has_fewer_bits(key):
        return None
    rounded = parts_in_8_bits(compressed.parts(key))
    if rounded is None:
        return None
    parts, integers, saved = rounded
    error = weight_error(matrix, parts, own.dtype)
    report = RoundingReport(str(integers), compressed.bytes_of_matrix(key) - saved, error)
    return Alternative(report, parts if to_measure else None) if math.isfinite(error) else None


def with_yardsticks(
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    samples: Mapping[str, Samples] | None = None,
    keys: Collection[str] | None = None,
    device: torch.device | str = "cpu",
) -> CompressedCheckpoint:
    """A finished result with what its matrices are held against, measured while the dense ones are at hand.

    Of a matrix in fewer bits that is its weight error and the truncated SVD of as many bytes, anew; of each matrix the
    roundings, and of block terms that are floats what 8 bits make of them. Large matrices are left out of the
    roundings, which would take longer than a fit.

    Args:
        compressed: the result, on which no other step of this job follows.
        dense: what it was made from.
        samples: what matrices meet, by their keys; errors on inputs are those on the samples held back.
        keys: of the matrices to measure; all that were chosen where left out.
        device: where to work out the SVD.
    """
    changed = {}
    measure = OnSamples(dense, samples or {})
    for key in compressed.chosen if keys is None else keys:
        matrix, own = dense.tensors[key], matrix_of(compressed, key)
        if compressed.has_fewer_bits(key):
            own = measured_anew(compressed, key, matrix, device)
        if matrix.numel() <= QUICK_ENTRIES:
            every = alternatives(compressed, key, matrix, measure)
            own = every.recorded_in(own, iter(measure({key: every.forms}).get(key, ())))
        changed[key] = own
    return with_matrices(compressed, changed)


def measured_anew(
    compressed: CompressedCheckpoint, key: str, matrix: Tensor, device: torch.device | str = "cpu"
) -> CompressedMatrix | RoundedMatrix:
    """What is recorded of a matrix, with its weight error and that of the truncated SVD as they are now."""
    own, svd = matrix_of(compressed, key), svd_yardstick(compressed, key, matrix, device)
    if isinstance(own, RoundedMatrix):
        error = difference_error(matrix, compressed.tensors[key])
    else:
        error = weight_error(matrix, compressed.parts(key), own.dtype)
    return replace(own, weight_error=error, svd_rank=svd.rank, svd_error=svd.error)
