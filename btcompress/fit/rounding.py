"""Choose the integers that stand for a matrix in few bits: by its entries, or by what it gives on sample inputs.

By its entries, the scale and the zero point of each group are those of the least squared error that clipping and least
squares in turn find. On inputs, columns are rounded one after another and what each leaves wrong is taken up by those
that follow, as the second moments of the inputs say (Frantar et al. 2022, "GPTQ", eq. 2 and 3); then each code is
chosen anew for all others as they are, and scales are fitted to the codes, in turn.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from btcompress.packing import Integers, Packed, to_rows

#: Shares of a group's range that are tried as its clipping; one half step more, whatever the zero point is rounded to,
#: clips nothing.
_SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
#: Times that scales and zero points are fitted to the codes, and codes chosen anew.
_REFITS = 3
#: Share of the moments' mean that their diagonal is raised by.
_RIDGE = 0.01
#: Columns among which errors are fed back: a matrix with more inputs is cut into stretches of so many.
_STRETCH = 2048
#: Rows whose scales are fitted at a time.
_ROWS = 256
#: The largest float16, and the smallest scale that keeps its digits.
_MOST_SCALE, _LEAST_SCALE = 65504.0, 2.0**-14

#: Codes as floats, shape ``(rows, columns)``; scales, float16, and zero points, int16, shape ``(rows, groups)``.
Choice: TypeAlias = tuple[Tensor, Tensor, Tensor]


def obstacle_to_integers(tensor: Tensor) -> str:
    """Why a tensor cannot be stored as integers: its numbers are out of the range of float16 scales; else empty."""
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    if not largest <= _MOST_SCALE or (0 < largest < _LEAST_SCALE):
        return f"its largest number, {largest:g}, does not suit float16 scales"
    return ""


def nearest(tensor: Tensor, integers: Integers, weights: Tensor | None = None) -> Packed:
    """The integers of the least squared error in each group, as far as clipping and least squares find it.

    Args:
        tensor: what to round, any floating dtype and shape; read only.
        integers: bits and groups.
        weights: what the columns of :func:`btcompress.packing.to_rows` count, shape ``(columns,)``; all alike where
            left out.
    """
    rows = to_rows(tensor.detach()).float()
    weights = torch.ones(rows.shape[1]) if weights is None else weights.float()
    return with_scales(tensor, integers, *_scales_and_zeros(rows, integers, weights))


def with_scales(tensor: Tensor, integers: Integers, scales: Tensor, zeros: Tensor) -> Packed:
    """The nearest integers for scales and zero points that are given.

    Args:
        tensor: what to round.
        integers: bits and groups.
        scales: float16, shape ``(rows, groups)``.
        zeros: int16, likewise, in half codes.
    """
    rows = to_rows(tensor.detach()).float()
    wide, half = (integers.spread(each.float(), rows.shape[1]) for each in (scales, zeros))
    codes = _codes(rows, wide, half, integers)
    return Packed(integers, tuple(tensor.shape), tensor.dtype, codes.to(torch.uint8), scales, zeros)


def fed_back(matrix: Tensor, integers: Integers, inputs: Tensor, passes: int = 3) -> Packed:
    """Integers by which a matrix gives nearly what it gave on inputs.

    Args:
        matrix: ``W``, shape ``(J, I)``, any floating dtype; read only.
        integers: bits and groups.
        inputs: rows whose second moment is that of its inputs, shape ``(S, I)``, as :class:`btcompress.fit.Samples`
            has them.
        passes: times that each code is chosen anew for all others; 0 leaves it at the error feedback.
    """
    stretch = max(_STRETCH // integers.group, 1) * integers.group
    pieces = [
        _fed_back(part.float(), integers, _moments(rows), passes)
        for part, rows in zip(matrix.detach().split(stretch, dim=1), inputs.split(stretch, dim=1), strict=True)
    ]
    codes, scales, zeros = (torch.cat(each, dim=1) for each in zip(*pieces, strict=True))
    return Packed(integers, tuple(matrix.shape), matrix.dtype, codes.to(torch.uint8), scales, zeros)


def _moments(inputs: Tensor) -> Tensor:
    """Second moments with a raised diagonal, float64; the identity for inputs that are all zero."""
    moments = inputs.double().T @ inputs.double()
    moments.diagonal().add_(_RIDGE * float(moments.diagonal().mean()) or 1.0)
    return moments


def _fed_back(matrix: Tensor, integers: Integers, moments: Tensor, passes: int) -> Choice:
    """Column after column, each error taken up by those that follow; then each anew for all others."""
    left, n = matrix.clone(), matrix.shape[1]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True).float()
    codes = torch.empty_like(left)
    scales, zeros = [], []
    for first in range(0, n, integers.group):
        end = min(first + integers.group, n)
        scale, zero = _scale_and_zero(left[:, first:end], integers, upper.diagonal()[first:end] ** -2)
        scales.append(scale)
        zeros.append(zero)
        wide, half = scale.float(), zero.float()
        missed = torch.empty(len(left), end - first)
        for c in range(first, end):
            codes[:, c] = _codes(left[:, c], wide, half, integers)
            missed[:, c - first] = (left[:, c] - (codes[:, c] - half / 2) * wide) / upper[c, c]
            left[:, c + 1 : end].addr_(missed[:, c - first], upper[c, c + 1 : end], alpha=-1)
        left[:, end:].addmm_(missed, upper[first:end, end:], alpha=-1)
    choice = codes, torch.stack(scales, 1), torch.stack(zeros, 1)
    single = moments.float()
    for number in range(passes):
        choice = _descended(matrix, integers, single, choice, refit=number > 0)
    return choice


def _descended(matrix: Tensor, integers: Integers, moments: Tensor, choice: Choice, *, refit: bool) -> Choice:
    """Each column's codes chosen anew, the best for all others as they are; ``refit``: scales before them."""
    codes, scales, zeros = choice
    n = matrix.shape[1]
    half = integers.spread(zeros.float(), n) / 2
    if refit:
        scales = _best_scales(matrix, integers, moments, codes - half, scales)
    wide = integers.spread(scales.float(), n)
    codes, values = codes.clone(), (codes - half) * wide
    pull = (matrix - values) @ moments
    for c in range(n):
        wished = values[:, c] + pull[:, c] / moments[c, c]
        codes[:, c] = _codes(wished, wide[:, c], 2 * half[:, c], integers)
        new = (codes[:, c] - half[:, c]) * wide[:, c]
        pull.addr_(new - values[:, c], moments[c], alpha=-1)
        values[:, c] = new
    return codes, scales, zeros


def _best_scales(matrix: Tensor, integers: Integers, moments: Tensor, along: Tensor, scales: Tensor) -> Tensor:
    """The scales of least error for given codes, float16: a small linear system for each row.

    Args:
        matrix: shape ``(J, I)``.
        integers: bits and groups.
        moments: of its inputs.
        along: codes less half their zero points, likewise ``(J, I)``.
        scales: those before, which stay where the best would be another sign or size altogether.
    """
    n, n_groups = matrix.shape[1], scales.shape[1]
    owner = torch.arange(n_groups)[:, None] == torch.arange(n) // integers.group
    found = []
    for rows, own, old in zip(matrix.split(_ROWS), along.split(_ROWS), scales.float().split(_ROWS), strict=True):
        directions = own[:, None] * owner  # (rows, groups, I)
        given = directions @ moments
        system = (given @ directions.mT).double()
        system.diagonal(dim1=1, dim2=2).add_(1e-6 * system.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-30)
        wished = (given @ rows[..., None]).double()
        triangle, failed = torch.linalg.cholesky_ex(system)
        best = torch.cholesky_solve(wished, triangle).squeeze(-1).float()
        near = (failed[:, None] == 0) & (best > old / 2) & (best < 2 * old)
        found.append(torch.where(near, best, old).half())
    return torch.cat(found)


def fed_back_by_ranks(factor: Tensor, integers: Integers, moments: Tensor, weights: Tensor, passes: int = 3) -> Choice:
    """Integers for the second of two factors: errors of the row of one rank are taken up by those that follow.

    Args:
        factor: shape ``(R, J)``, with groups along its columns.
        integers: bits and groups.
        moments: of what its columns are multiplied with, shape ``(R, R)``.
        weights: what the columns count, shape ``(J,)``.
        passes: as for :func:`fed_back`.
    """
    left = factor.float().clone()
    raised = moments.double().clone()
    raised.diagonal().add_(_RIDGE * float(raised.diagonal().mean()) or 1.0)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(raised)), upper=True).float()
    codes, scales, zeros = torch.empty_like(left), [], []
    for r in range(len(left)):
        scale, zero = _scales_and_zeros(left[r : r + 1], integers, weights)
        wide, half = (integers.spread(each.float(), left.shape[1])[0] for each in (scale, zero))
        codes[r] = _codes(left[r], wide, half, integers)
        missed = (left[r] - (codes[r] - half / 2) * wide) / upper[r, r]
        left[r + 1 :].addr_(upper[r, r + 1 :], missed, alpha=-1)
        scales.append(scale)
        zeros.append(zero)
    scale, zero = torch.cat(scales), torch.cat(zeros)
    wide, half = (integers.spread(each.float(), left.shape[1]) for each in (scale, zero))
    single, values = raised.float(), (codes - half / 2) * wide
    pull = single @ (factor.float() - values)
    for _ in range(passes):
        for r in range(len(left)):
            codes[r] = _codes(values[r] + pull[r] / single[r, r], wide[r], half[r], integers)
            new = (codes[r] - half[r] / 2) * wide[r]
            pull.addr_(single[r], new - values[r], alpha=-1)
            values[r] = new
    return codes, scale, zero


def _codes(rows: Tensor, scales: Tensor, zeros: Tensor, integers: Integers) -> Tensor:
    """The nearest codes, float; scales and zero points broadcast over the rows."""
    return (rows / scales.clamp_min(torch.finfo(torch.float32).tiny) + zeros / 2).round_().clamp_(0, integers.most)


def _scales_and_zeros(rows: Tensor, integers: Integers, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and zero points of all groups, shape ``(rows, groups)``; ``weights`` are those of the columns."""
    whole = rows.shape[1] // integers.group
    end = whole * integers.group
    found = []
    if whole:
        groups = rows[:, :end].reshape(-1, integers.group)
        own = weights[:end].reshape(whole, integers.group).repeat(len(rows), 1)
        found.append([each.reshape(len(rows), whole) for each in _scale_and_zero(groups, integers, own)])
    if end < rows.shape[1]:
        found.append([each[:, None] for each in _scale_and_zero(rows[:, end:], integers, weights[end:])])
    scales, zeros = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
    return scales, zeros


def _scale_and_zero(group: Tensor, integers: Integers, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The scale, float16, and the zero point, int16 in half codes, of each row of a group, shape ``(rows,)``.

    ``weights`` are of the columns, shape ``(columns,)``, or of all entries.
    """
    weights = weights / weights.mean().clamp_min(1e-30)
    low, high = group.amin(1).clamp_max(0), group.amax(1).clamp_min(0)
    most = integers.most
    best, best_zero = _storable((high - low) / most), torch.zeros_like(low)
    best_error = torch.full_like(low, torch.inf)
    for share in (most / (most - 0.5), *_SHARES):
        scale = _storable((high - low) * (share / most))
        zero = (-2 * share * low / scale.clamp_min(1e-30)).round().clamp(0, 2 * most + 1)
        for refit in range(_REFITS + 1):
            codes = _codes(group, scale[:, None], zero[:, None], integers)
            error = (((codes - zero[:, None] / 2) * scale[:, None] - group).square() * weights).sum(1)
            better = error < best_error
            best, best_zero = torch.where(better, scale, best), torch.where(better, zero, best_zero)
            best_error = torch.where(better, error, best_error)
            if refit < _REFITS:
                scale, zero = _refitted(group, codes, weights, scale, zero, most)
    return best.half(), best_zero.to(torch.int16)


def _refitted(
    group: Tensor, codes: Tensor, weights: Tensor, scale: Tensor, zero: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that fit given codes best; those before where the codes are all one."""
    total = weights.sum(-1)
    mean_code, mean = (codes * weights).sum(1) / total, (group * weights).sum(1) / total
    away = codes - mean_code[:, None]
    square = (away.square() * weights).sum(1)
    slope = (away * group * weights).sum(1) / square.clamp_min(1e-30)
    usable = (square > 1e-12) & (slope > 0)
    new_zero = (2 * (mean_code - mean / slope.clamp_min(1e-30))).round().clamp(0, 2 * most + 1)
    new_zero = torch.where(usable, new_zero, zero)
    along = codes - new_zero[:, None] / 2
    new = (along * group * weights).sum(1) / (along.square() * weights).sum(1).clamp_min(1e-30)
    new = torch.where(usable & (new > 0), new, scale)
    return _storable(new), new_zero


def _storable(scale: Tensor) -> Tensor:
    return scale.half().float()
