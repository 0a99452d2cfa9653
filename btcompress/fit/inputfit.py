"""Fit forms of a matrix to what it gives on sample inputs, not to its entries: ``||S (W - W') X||_F`` is least.

A plain low-rank form is fitted exactly: ``W' = S^-1 V V^T S W`` with ``V`` the leading eigenvectors of
``S W X X^T W^T S`` keeps the directions in which the weighted outputs are largest (Eckart, Young, 1936). All other
forms go on from a fit to the entries, by alternating least squares: the outputs are linear in each factor given all
else, so the factors of one mode solve a least-squares problem for each ``j_k``, whose Gram matrices have
``N I_k R_k`` rows; the cores follow by conjugate gradients, through contractions with the inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from btcompress.blockterm import BlockTerm
from btcompress.contraction import apply_chain, contract, letters, operand_letters
from btcompress.fit.arranged import in_orders, pad_rows
from btcompress.fit.blockfit import balanced
from btcompress.fit.samples import OutputErrors, Samples, output_errors, product_by
from btcompress.fit.sweeps import conjugate_gradients
from btcompress.shapes import BlockTermShape, MatrixShape

#: Sweeps at most; the fall of the error on inputs held back that is worth another one.
MAX_SWEEPS = 50
_TOLERANCE = 1e-2
#: Steps of conjugate gradients for the cores in each sweep, of up to so many entries and of more.
_CORE_STEPS = (4, 10)
_MANY_CORE_ENTRIES = 1024
#: Each solution is held to the one before with this share of the Gram matrix's mean diagonal entry: directions that
#: the inputs never take stay as they were fitted to the entries.
_RIDGE = 1e-4
#: Entries of a piece of the features that a factor is fitted with.
_PIECE_ENTRIES = 2**23
#: Rows of a Gram matrix, and entries of all those of one mode; of larger ones the factor stays as it is.
_MOST_FEATURES = 1024
_MOST_GRAM_ENTRIES = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class InputFit:
    """A form fitted to inputs.

    Attributes:
        parts: the block terms, in the order of ``MatrixShape.part_names``, float64.
        errors: of the whole matrix, on inputs held back.
        n_sweeps: sweeps over all factors and cores that were kept; 0 for low rank.
    """

    parts: tuple[BlockTerm, ...]
    errors: OutputErrors
    n_sweeps: int


def fit_to_inputs(
    matrix: Tensor, start: Sequence[BlockTerm], samples: Samples, max_sweeps: int = MAX_SWEEPS
) -> InputFit:
    """Fit the form that ``start`` has to inputs; never worse than ``start`` on those held back.

    Args:
        matrix: ``W``, shape ``(J, I)``, any real floating dtype; read only.
        start: block terms whose rows are stacked, fitted to the entries of the matrix.
        samples: the inputs.
        max_sweeps: most sweeps of forms that are not plain low rank.
    """
    parts, n_sweeps, first = [], 0, 0
    for part in start:
        n = part.shape.out_size
        own, weight = samples.of_rows(first, n), matrix.detach()[first : first + n].to(samples.inputs.dtype)
        part = part.to(torch.float64)
        if part.shape.is_low_rank:
            fitted = _low_rank(weight, part.shape, own)
        else:
            fitted, used = _swept(weight, part, own, max_sweeps)
            n_sweeps = max(n_sweeps, used)
        parts.append(fitted)
        first += n
    before, after = (errors_on(matrix, forms, samples) for forms in (start, parts))
    if before.weighted < after.weighted:
        return InputFit(tuple(part.to(torch.float64) for part in start), before, 0)
    return InputFit(tuple(parts), after, n_sweeps)


def errors_on(matrix: Tensor, form: Sequence[BlockTerm] | Tensor, samples: Samples) -> OutputErrors:
    """The errors of a form on the inputs held back.

    Args:
        matrix: ``W``, shape ``(J, I)``.
        form: block terms whose rows are stacked, or a dense matrix.
        samples: the inputs.
    """
    held = samples.held
    wanted = held @ matrix.detach().to(held.dtype).T
    return output_errors(wanted, product_by(form, held.dtype)(held), samples.weights)


def low_rank_errors_on(matrix: Tensor, shape: MatrixShape, samples: Samples) -> list[OutputErrors]:
    """The errors, on inputs held back, of the low-rank form fitted to the others, for each rank ``1, 2, ..``.

    Args:
        matrix: ``W``, shape ``(J, I)``.
        shape: plain low rank, of the whole matrix or of each gate; its rank does not matter.
        samples: the inputs.
    """
    rows = shape.part.out_size
    n_ranks = min(shape.part.mode_sizes)
    missed, sizes = torch.zeros(2, n_ranks, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for n in range(shape.n_parts):
        own, weight = samples.of_rows(n * rows, rows), matrix.detach()[n * rows : (n + 1) * rows]
        vectors = _leading_outputs(weight.to(own.inputs.dtype), own)
        scale = own.weights.double()
        held = (own.held @ weight.to(own.held.dtype).T).double() * scale
        along = held @ vectors  # (S, J), what each direction holds, the leading one first
        moment = along.T @ along
        # Outputs are off by what the directions left out hold; their weights taken off, these are no longer at right
        # angles, and every pair of them counts.
        pairs = moment * (vectors.T @ (vectors / scale.square()[:, None]))
        left = pairs.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0)
        for row, tail in enumerate((moment.diagonal().flip(0).cumsum(0).flip(0), left)):
            missed[row] += torch.cat([tail[1:], tail.new_zeros(1)])[:n_ranks]
            sizes[row] += tail[0]
    weighted, plain = (missed / sizes.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).clamp_min(0).sqrt().tolist()
    return [OutputErrors(*pair) for pair in zip(weighted, plain, strict=True)]


def weighted_size(matrix: Tensor, samples: Samples) -> float:
    """``||S W X||_F`` on the inputs held back: what an error of 1 costs, in the units of the weights."""
    held = samples.held
    products = (held @ matrix.detach().to(held.dtype).T).double() * samples.weights.double()
    return float(torch.linalg.vector_norm(products))


def _leading_outputs(weight: Tensor, samples: Samples) -> Tensor:
    """The directions of the weighted outputs as columns, shape ``(J, J)``, float64; the largest first."""
    products = (samples.inputs @ weight.T).double() * samples.weights.double()
    return torch.linalg.eigh(products.T @ products).eigenvectors.flip(1)


def _low_rank(weight: Tensor, shape: BlockTermShape, samples: Samples) -> BlockTerm:
    scale = samples.weights.double()
    vectors = _leading_outputs(weight, samples)[:, : shape.ranks[0]]
    first, second = shape.factor_shapes
    projected = weight.T.double() @ (scale[:, None] * vectors)
    factors = (projected.reshape(first), (vectors / scale[:, None]).contiguous().reshape(second))
    return balanced(BlockTerm.of(shape, factors))


def _swept(weight: Tensor, start: BlockTerm, samples: Samples, max_sweeps: int) -> tuple[BlockTerm, int]:
    """Alternating least squares from a start; the form after the sweep that is best on the inputs held back."""
    orders = dict(zip(start.shape.order_sizes, start.orders, strict=True))
    shape = start.shape.ordered()
    fitting, held = (Outputs.of_part(weight, start, rows, samples.weights) for rows in (samples.inputs, samples.held))
    current = BlockTerm(shape, start.cores, start.factors).to(weight.dtype)
    best, best_error, n_best = current, held.error(current), 0
    for n in range(1, max_sweeps + 1):
        current = fitting.swept(current)
        error = held.error(current)
        enough = error >= (1 - _TOLERANCE) * best_error
        if error < best_error:
            best, best_error, n_best = current, error, n
        if enough:
            break
    return balanced(best.to(torch.float64)).ordered(orders), n_best


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """Inputs of one form without orders, and the outputs that it is to give.

    Attributes:
        inputs: shape ``(S, I_1..I_d)``.
        wanted: shape ``(S, J_1..J_d)``, weighted.
        weights: shape ``(J_1..J_d)``, 0 for rows that are padding.
    """

    inputs: Tensor
    wanted: Tensor
    weights: Tensor

    @classmethod
    def of_part(cls, weight: Tensor, part: BlockTerm, rows: Tensor, weights: Tensor) -> Outputs:
        """The problem of one part: rows and columns in its orders, padded as it is.

        Args:
            weight: what the part stands for, shape ``(out_size, in_size)``.
            part: its modes and orders; its cores and factors do not matter.
            rows: inputs, shape ``(S, in_size)``.
            weights: what its outputs count, shape ``(out_size,)``.
        """
        shape, orders = part.shape, dict(zip(part.shape.order_sizes, part.orders, strict=True))
        scale = weights.to(weight.dtype)[:, None]
        by_row = {name: order for name, order in orders.items() if name == "row_order"}
        outputs = (pad_rows(in_orders(each, by_row, shape.n_gates), shape) for each in (weight @ rows.T * scale, scale))
        wanted, scale = outputs
        if "column_order" in orders:
            rows = rows.index_select(1, orders["column_order"])
        rows = pad(rows, (0, shape.padded_in - shape.in_size))
        return cls(
            rows.reshape(-1, *shape.in_modes), wanted.T.reshape(-1, *shape.out_modes), scale.reshape(shape.out_modes)
        )

    def given(self, form: BlockTerm) -> Tensor:
        """The weighted outputs of a form, shape ``(S, J_1..J_d)``."""
        return apply_chain(self.inputs, (form.cores, *form.factors)) * self.weights

    def error(self, form: BlockTerm) -> float:
        """``||S (W - W') X||_F``."""
        return float(torch.linalg.vector_norm(self.given(form) - self.wanted))

    def swept(self, form: BlockTerm) -> BlockTerm:
        """The form after one update of each factor and of the cores; its error on these inputs is no larger."""
        for mode in range(form.shape.order):
            form = self.with_factor(form, mode)
        if form.shape.core == "full":
            form = self.with_cores(form)
        return balanced(form)

    def with_factor(self, form: BlockTerm, mode: int) -> BlockTerm:
        """The form with the best factors of one mode in all blocks, a problem for each ``j_k``."""
        shape = form.shape
        n_features = shape.n_blocks * shape.in_modes[mode] * shape.ranks[mode]
        n_others = shape.padded_out // shape.out_modes[mode]
        if n_features > _MOST_FEATURES or n_features**2 * n_others > _MOST_GRAM_ENTRIES:
            return form
        gram = self.inputs.new_zeros(n_others, n_features, n_features)
        right = self.inputs.new_zeros(n_others, n_features, shape.out_modes[mode])
        n_rows = max(1, _PIECE_ENTRIES // (n_others * n_features))
        for inputs, wanted in zip(self.inputs.split(n_rows), self.wanted.split(n_rows), strict=True):
            features = self._features(form, mode, inputs).reshape(n_others, len(inputs), n_features)
            gram.baddbmm_(features.mT, features)
            right.baddbmm_(features.mT, wanted.movedim(mode + 1, -1).flatten(1, -2).transpose(0, 1))
        weights = self.weights.movedim(mode, -1).reshape(n_others, -1)
        grams = torch.einsum("oc,opq->cpq", weights.square(), gram).double()
        old = form.factors[mode].permute(2, 0, 1, 3).reshape(shape.out_modes[mode], n_features).double()
        # `wanted` is weighted once already.
        wished = torch.einsum("oc,opc->cp", weights, right).double() - torch.einsum("cpq,cq->cp", grams, old)
        held = grams.diagonal(dim1=1, dim2=2)
        held.add_(_RIDGE * held.mean(1, keepdim=True) + torch.finfo(grams.dtype).tiny)
        # Not torch.linalg.solve: its LU of several matrices fails on some CPUs where there are several threads.
        triangle, failed = torch.linalg.cholesky_ex(grams)
        steps = torch.cholesky_solve(wished[..., None], triangle).squeeze(-1)
        new = torch.where(failed[:, None] == 0, old + steps, old).to(form.cores.dtype)
        n, i, j, r = form.factors[mode].shape
        factor = new.reshape(j, n, i, r).permute(1, 2, 0, 3).contiguous()
        return replace(form, factors=(*form.factors[:mode], factor, *form.factors[mode + 1 :]))

    def _features(self, form: BlockTerm, mode: int, inputs: Tensor) -> Tensor:
        """What the factors of one mode are multiplied with, shape ``(J_others.., S, N, I_k, R_k)``."""
        batch, block, i, j, r = letters(form.shape.order)
        terms = operand_letters(form.shape.order)
        others = [k for k in range(form.shape.order) if k != mode]
        equation = ",".join([batch + i, terms[0], *(terms[k + 1] for k in others)])
        result = "".join(j[k] for k in others) + batch + block + i[mode] + r[mode]
        return contract(f"{equation}->{result}", inputs, form.cores, *(form.factors[k] for k in others))

    def with_cores(self, form: BlockTerm) -> BlockTerm:
        """The form with better cores for these factors: a few steps of conjugate gradients towards the best."""
        leaf = form.cores.detach().clone().requires_grad_()
        with torch.enable_grad():
            outputs = self.given(replace(form, cores=leaf))

        def adjoint(direction: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(outputs, leaf, direction, retain_graph=True)
            return gradient

        def applied(cores: Tensor) -> Tensor:
            return adjoint(self.given(replace(form, cores=cores)))

        n_steps = _CORE_STEPS[form.cores.numel() > _MANY_CORE_ENTRIES]
        return replace(form, cores=conjugate_gradients(applied, adjoint(self.wanted), form.cores, n_steps))
