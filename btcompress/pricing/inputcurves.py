"""What a matrix costs and loses in many forms, told by its outputs: parameters against errors on sample inputs.

Plain low rank is priced exactly, all ranks at once. Forms with a core begin as fits to the entries of the matrix, which
say little about the outputs, and are fitted to the inputs by sweeps; those that fall behind what is known are given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.fit.blockfit import check_finite, zero_form
from btcompress.fit.inputfit import fit_to_inputs, low_rank_errors_on, weighted_size
from btcompress.fit.measures import largest
from btcompress.fit.samples import Samples
from btcompress.pricing.curves import Curve, FormsWithCore, Front, ParamFront, Point, SortedCore, front_of
from btcompress.shapes import BlockTermShape, MatrixShape

#: Sweeps, and between which shares of the known error a form goes on after them: above it is hopeless, as further
#: sweeps do not help that much; below it has won, and the final fit only betters what is foretold.
_ROUNDS = ((1, 0.0, 1.4), (2, 0.9, 1.1), (3, 0.0, 0.0))
#: So many larger forms in a row that are beaten end the search on their modes: the larger, the better low rank is. With
#: 3, planning takes up to twice as long, for at most 0.8 % less squared error (BeatNet's layers, and white noise).
_BEATEN_IN_A_ROW = 2
#: Forms with more parameters than this share of the matrix are not tried: low rank was better in all cases measured.
_LARGEST_SHARE = 1 / 12
#: Rows of inputs that a form of a matrix with many inputs is priced on.
_ROWS = 512
_MANY_INPUTS = 4096
#: Largest magnitudes of matrix and inputs whose products of four are well within float32.
_LIMITS = (1e-6, 1e6)


def price_on_inputs(
    matrix: Tensor,
    without_core: Sequence[MatrixShape],
    with_core: Sequence[FormsWithCore],
    samples: Samples,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Curve:
    """Price the forms of one matrix by their weighted activation errors on inputs held back.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        without_core: as for :func:`btcompress.pricing.price`; of these only plain low rank is priced.
        with_core: likewise; all are.
        samples: the inputs.
        seed: of the random starts of several blocks.
        device: where fits to the entries begin; sweeps on inputs run on the CPU.
        on_step: called with steps done and steps in all, after each choice of modes.

    Raises:
        BTCompressError: the matrix is not finite.
    """
    check_finite(matrix)
    low_rank = [shape for shape in without_core if shape.part.is_low_rank]
    n_steps = 1 + len(with_core)
    curves = [_every_rank(matrix, shape, samples) for shape in low_rank]
    front = ParamFront(front_of(point for curve in curves for point in curve))
    few = quick_samples(matrix, samples)
    device = torch.device(device)
    for step, forms in enumerate(with_core, 1):
        if on_step is not None:
            on_step(step, n_steps)
        offer_with_core_on(front, matrix, forms, few, device, seed)
    if on_step is not None:
        on_step(n_steps, n_steps)
    fused = curves[0] if curves else []
    stake = weighted_size(matrix, samples)
    return Curve(tuple(front.points), tuple(front_of(fused)), matrix.numel(), stake, on_inputs=True)


def quick_samples(matrix: Tensor, samples: Samples) -> Samples:
    """Samples to compare forms on: fewer of many inputs, and in float32 where that is precise enough."""
    few = _thinned(samples) if matrix.shape[1] > _MANY_INPUTS else samples
    if matrix.dtype != torch.float64 and all(_LIMITS[0] < largest(each) < _LIMITS[1] for each in (matrix, few.inputs)):
        # Sweeps take half the time, and which form wins does not hang on their last digits.
        few = replace(few, inputs=few.inputs.float(), held=few.held.float())
    return few


def _thinned(samples: Samples) -> Samples:
    """Every so many of the inputs to fit on, their sums of squares still means over the steps."""
    few = samples.inputs[:: max(1, len(samples.inputs) // _ROWS)]
    return replace(samples, inputs=few * (len(samples.inputs) / len(few)) ** 0.5)


def _every_rank(matrix: Tensor, shape: MatrixShape, samples: Samples) -> list[Point]:
    """Every rank of a low-rank form that has fewer parameters than the matrix."""
    points = []
    for rank, errors in enumerate(low_rank_errors_on(matrix, shape, samples), 1):
        form = replace(shape, part=replace(shape.part, ranks=(rank, rank)))
        if form.n_params >= matrix.numel():
            break
        points.append(Point(form, errors.weighted, errors.plain))
    return points


def offer_with_core_on(
    front: Front, matrix: Tensor, forms: FormsWithCore, samples: Samples, device: torch.device, seed: int
) -> None:
    """Fit the forms of one choice of modes to inputs, and offer those that come below their target.

    Args:
        front: what they compete with.
        matrix: ``W``, finite.
        forms: to be fitted, by rising size.
        samples: as :func:`quick_samples` gives them.
        device: where fits to the entries begin.
        seed: of the random starts of several blocks.
    """
    beaten = 0
    for shape, start in _starts(matrix, forms, device, seed):
        target = front.target(shape)
        if target <= 0:
            continue
        parts = start()
        for n_sweeps, won, lost in _ROUNDS:
            fitted = fit_to_inputs(matrix, parts, samples, n_sweeps)
            parts, errors = fitted.parts, fitted.errors
            if not won * target <= errors.weighted < lost * target:
                break
        if errors.weighted < target:
            front.offer(Point(shape, errors.weighted, errors.plain), partial(tuple, parts))
            beaten = 0
        else:
            beaten += 1
        if beaten == _BEATEN_IN_A_ROW:
            break


def _starts(
    matrix: Tensor, forms: FormsWithCore, device: torch.device, seed: int
) -> Iterator[tuple[MatrixShape, Callable[[], tuple[BlockTerm, ...]]]]:
    """Forms with a core, much smaller than the matrix, each with what roughly fits it to the entries."""
    shape, rows_each = forms.shape, forms.shape.part.out_size
    gates = [(rows, largest(rows)) for rows in matrix.detach().split(rows_each)]
    cores = [SortedCore(rows, shape.part, scale, device) if scale else None for rows, scale in gates]
    for n_blocks, rank in forms.ranks:
        part = replace(shape.part, n_blocks=n_blocks, ranks=(rank,) * shape.part.order).limited()
        form = replace(shape, part=part)
        if form.n_params <= _LARGEST_SHARE * matrix.numel():
            yield form, partial(_start, cores, part, seed, device)


def _start(
    cores: Sequence[SortedCore | None], part: BlockTermShape, seed: int, device: torch.device
) -> tuple[BlockTerm, ...]:
    forms = (zero_form(part, device) if core is None else core.form(core.start(part, seed), part) for core in cores)
    return tuple(form.to("cpu") for form in forms)
