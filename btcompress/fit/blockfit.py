"""Fit a block-term form to a dense matrix: compress, start, joint sweeps, expand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.devices import check_device
from btcompress.errors import BTCompressError, ShapeError
from btcompress.fit.demand import require_memory
from btcompress.fit.hosvd import Compression, compress, leading_corner
from btcompress.fit.lowrank import fit_without_core
from btcompress.fit.measures import frobenius_norm, largest, weight_error
from btcompress.fit.start import greedy_deflation, random_blocks
from btcompress.fit.sweeps import Blocks, SweepResult, expanded, sweep_until_stable
from btcompress.results import Sweep
from btcompress.seeds import check_seed
from btcompress.shapes import BlockTermShape, MatrixShape

#: Random starts tried on the small leading corner of the core, where a sweep costs next to nothing.
_CORNER_STARTS = 3
_CORNER_SWEEPS = 8
#: Sweeps after which only the best start goes on.
_RACE_SWEEPS = 5
#: A start whose error is this many times what another has after those sweeps is not raced.
_HOPELESS = 1.05
#: A fit this close is exact up to rounding.
_EXACT = 1e-12
#: Errors that differ by less than this share are one error: which of them is lower, rounding decides.
_SAME = 1e-10
#: Dtypes that matrices are fitted and stored in. Those of 8 and 4 bits have no arithmetic.
_FITTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Largest magnitudes of a matrix whose reciprocal and whose Frobenius norm are normal numbers of float64.
_RANGE = (2.0**-1000, 2.0**1000)

OnSweep = Callable[[Sweep], None]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How hard a fit tries, and where.

    Attributes:
        max_sweeps: most joint sweeps from each start.
        tolerance: a sweep that lowers the error by less than this share of it is the last.
        restarts: further starts from random blocks on the whole core; the best result is kept.
        seed: of every random draw.
        device: where to compute, as torch names devices.

    Raises:
        BTCompressError: a number is outside its range, or the device cannot compute here.
    """

    max_sweeps: int = 100
    tolerance: float = 1e-5
    restarts: int = 0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("max_sweeps", "restarts", "tolerance"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise BTCompressError(f"{name} must be a number of at least 0, but {value} was given.")
        check_seed(self.seed)
        check_device(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A block-term form fitted to a matrix.

    Attributes:
        value: the form, float64, scale spread evenly over each block's core and factors.
        weight_error: ``||W - W'||_F / ||W||_F`` including padding; 0 for a zero matrix.
        n_sweeps: joint sweeps of the start that won.
        converged: whether they stopped by themselves.
        norm: ``||W||_F``.
    """

    value: BlockTerm
    weight_error: float
    n_sweeps: int
    converged: bool
    norm: float


@dataclass(frozen=True, slots=True, eq=False)
class MatrixFit:
    """One matrix's block-term forms, one or one per gate.

    Attributes:
        parts: the forms, in the order of ``MatrixShape.part_names``.
        weight_error: ``||W - W'||_F / ||W||_F`` of the whole matrix.
    """

    parts: tuple[BlockTerm, ...]
    weight_error: float


def fit_matrix(
    matrix: Tensor, shape: MatrixShape, options: FitOptions = FitOptions(), on_sweep: OnSweep | None = None
) -> MatrixFit:
    """Fit a matrix, its gates together or each on its own.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        shape: block-term shape; ranks beyond what its modes hold are lowered.
        options: effort and device.
        on_sweep: called after each joint sweep.

    Raises:
        ShapeError: the matrix does not have the shape's size.
        BTCompressError: the matrix is not finite.
    """
    check_size(matrix, shape)
    stacked = matrix.detach().reshape(shape.n_parts, shape.part.out_size, shape.in_size)
    fits = [fit(part, shape.part, options, on_sweep) for part in stacked]
    return joined(fits)


def joined(fits: Sequence[Fit]) -> MatrixFit:
    """The fits of a matrix's parts as the fit of the matrix."""
    missed = math.hypot(*(each.weight_error * each.norm for each in fits))
    total = math.hypot(*(each.norm for each in fits))
    return MatrixFit(tuple(each.value for each in fits), missed / total if total else 0.0)


def fit(
    matrix: Tensor, shape: BlockTermShape, options: FitOptions = FitOptions(), on_sweep: OnSweep | None = None
) -> Fit:
    """Fit one block-term form, minimising ``||W - W'||_F``.

    Sequentially truncated HOSVD shrinks the paired-mode tensor; ALS Tucker, block after block, gives
    the start; joint least-squares sweeps over all blocks finish; the HOSVD bases expand the result. A form
    without a core is a truncated SVD instead, which no sweep can better.

    Args:
        matrix: ``W``, shape ``(out_size, in_size)``, any real floating dtype; read only.
        shape: mode sizes and ranks; ranks beyond what the modes hold are lowered.
        options: effort and device.
        on_sweep: called after each joint sweep.

    Raises:
        ShapeError: the shape has orders, which :func:`btcompress.orders.fit_ordered` finds.
        BTCompressError: the matrix is not finite, or the fit would take more memory than there is.
    """
    if shape.order_sizes:
        raise ShapeError("a shape with orders of rows or columns is for fit_ordered, which finds them. Leave them out.")
    shape = shape.limited()
    device = torch.device(options.device)
    scale = check_finite(matrix)
    if device.type == "cpu":
        require_memory(shape, matrix.dtype)
    if scale == 0:
        return Fit(zero_form(shape, device), 0.0, 0, converged=True, norm=0.0)
    if shape.core == "identity":
        form = balanced(BlockTerm.of(shape, fit_without_core(matrix, shape, scale, device)))
        return Fit(form, weight_error(matrix, (form,)), 0, converged=True, norm=frobenius_norm(matrix))
    compression = compress(matrix, shape, scale, device)
    best = _best_sweeps(compression.core, shape, options, on_sweep)
    return Fit(
        balanced(_form(best.blocks, compression, shape)),
        math.sqrt(compression.missed + (1 - compression.missed) * best.error**2),
        best.n_sweeps,
        best.converged,
        compression.norm,
    )


def check_size(matrix: Tensor, shape: MatrixShape) -> None:
    """Refuse a matrix of another size than its shape's.

    Raises:
        ShapeError: it has another size.
    """
    if tuple(matrix.shape) != (shape.out_size, shape.in_size):
        raise ShapeError(
            f"the matrix is {' x '.join(map(str, matrix.shape))}, but its block-term shape is for "
            f"{shape.out_size} x {shape.in_size}. Choose modes for the matrix's own size."
        )


def obstacle_of_dtype(dtype: torch.dtype) -> str:
    """Why a matrix of a dtype cannot be fitted, in words; empty where it can."""
    if dtype in _FITTED:
        return ""
    name = str(dtype).removeprefix("torch.")
    advice = "convert it to bfloat16 or float32 first" if dtype.is_floating_point else "weights are real numbers"
    return f"it has dtype {name}, which is not fitted; {advice}"


def check_finite(matrix: Tensor) -> float:
    """The largest magnitude in a matrix.

    Raises:
        BTCompressError: the matrix is not finite, or too large or small for float64, or of a
            dtype that is not fitted.
    """
    if obstacle := obstacle_of_dtype(matrix.dtype):
        raise BTCompressError(f"the matrix cannot be fitted: {obstacle}.")
    scale = largest(matrix)
    if not math.isfinite(scale):
        raise BTCompressError(
            "the matrix holds values that are not finite (NaN or infinity). "
            "Repair the checkpoint, leave this matrix out (--layer '!NAME'), or leave all such matrices dense "
            "(--allow-nonfinite)."
        )
    if scale and not _RANGE[0] <= scale <= _RANGE[1]:
        raise BTCompressError(
            f"the matrix's largest magnitude is {scale:.3g}, beyond what can be fitted in float64. Scale the "
            f"matrix to between {_RANGE[0]:.0e} and {_RANGE[1]:.0e}, or leave it out."
        )
    return scale


def balanced(form: BlockTerm) -> BlockTerm:
    """The same matrix with each block's scale spread evenly over its core, unless that is the identity, and factors.

    The product has a scale freedom; equal norms keep every tensor within the range of small dtypes and
    make gradient steps act alike on all of them.
    """
    tensors = form.tensors
    norms = torch.stack([_norms(tensor.flatten(1)) for tensor in tensors])
    usable = (norms > 0).all(dim=0)
    logs = torch.where(usable, norms, 1.0).log()
    gains = torch.where(usable, (logs.mean(dim=0) - logs).exp(), 1.0)
    scaled = [tensor * gain.reshape(-1, *[1] * (tensor.ndim - 1)) for tensor, gain in zip(tensors, gains, strict=True)]
    return BlockTerm.of(form.shape, scaled, form.orders)


def _norms(rows: Tensor) -> Tensor:
    """The norm of each row, whose squares may overflow: divided by a power of two first, which rounds nothing."""
    peaks = rows.abs().amax(dim=1)
    units = torch.where(peaks > 0, peaks / peaks.frexp().mantissa, 1.0)
    return (rows / units[:, None]).norm(dim=1) * units


def _best_sweeps(core: Tensor, shape: BlockTermShape, options: FitOptions, on_sweep: OnSweep | None) -> SweepResult:
    """Race greedy deflation against the best of cheap starts, let the winner finish, then try any restarts."""
    generator = torch.Generator().manual_seed(options.seed)
    ranks, n_blocks = shape.ranks, shape.n_blocks

    def sweep(tensor: Tensor, start: Blocks, max_sweeps: int = options.max_sweeps) -> SweepResult:
        return sweep_until_stable(tensor, start, max_sweeps, options.tolerance, on_sweep)

    leader = sweep(core, greedy_deflation(core, ranks, n_blocks), 0)
    if n_blocks > 1:  # A single block has no partner to be confused with, and its greedy start is good.
        corner, bases = leading_corner(core, tuple(n_blocks * rank for rank in ranks))
        draws = (random_blocks(corner, ranks, n_blocks, generator) for _ in range(_CORNER_STARTS))
        tries = (sweep(corner, draw, _CORNER_SWEEPS) for draw in draws)
        rival = sweep(core, expanded(reduce(_better, tries).blocks, bases), _RACE_SWEEPS)
        if leader.error > _HOPELESS * rival.error:
            leader = rival
        else:
            leader = _better(sweep(core, leader.blocks, _RACE_SWEEPS), rival)
    best = leader
    if not leader.converged:
        finished = sweep(core, leader.blocks)
        best = replace(finished, n_sweeps=leader.n_sweeps + finished.n_sweeps)
    for _ in range(options.restarts):
        if best.error < _EXACT:
            break
        best = _better(best, sweep(core, random_blocks(core, ranks, n_blocks, generator)))
    return best


def _better(first: SweepResult, second: SweepResult) -> SweepResult:
    """The result of lower error, the first where there is none: forms of one error may have quite different factors."""
    lower = second.error < (1 - _SAME) * first.error and first.error >= _EXACT
    return second if lower else first


def _form(blocks: Blocks, compression: Compression, shape: BlockTermShape) -> BlockTerm:
    whole = expanded(blocks, compression.bases)
    factors = (factor.reshape(size) for factor, size in zip(whole.factors, shape.factor_shapes, strict=True))
    return BlockTerm(shape, whole.cores * compression.scale, tuple(factors))


def zero_form(shape: BlockTermShape, device: torch.device) -> BlockTerm:
    """A form whose tensors are all zero."""
    sizes = shape.tensor_shapes
    return BlockTerm.of(shape, [torch.zeros(size, dtype=torch.float64, device=device) for size in sizes])
