"""Cheap tensor contractions: pairwise paths for any equation, and the chain that applies a block-term matrix."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import opt_einsum
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from btcompress.errors import ShapeError

Sizes = tuple[int, ...]

#: What torch hands to the methods of an autograd function; it has no type for it.
Context = Any

#: Time to read or write one number, in floating-point operations.
MOVE_COST = 16

#: A permuted copy costs about as much as this many moves of each number: one side of it is never contiguous.
_COPY_MOVES = 4

#: Largest tensor of one piece of rows, in bytes: on a CPU small enough to stay in its caches.
_PIECE_BYTES_CPU = 2**22
_PIECE_BYTES_GPU = 2**25

#: Intermediates of up to this many bytes are kept for the gradient; more are computed again.
_KEPT_BYTES = 2**26


@lru_cache(maxsize=1024)
def _path(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Pairwise steps ``(operand positions, equation)`` of the cheapest order found."""
    optimize = "optimal" if len(shapes) <= 6 else "auto"
    _, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    return tuple((tuple(step[0]), step[2]) for step in info.contraction_list)


def contract(equation: str, *operands: Tensor) -> Tensor:
    """``torch.einsum`` that contracts pair by pair in the cheapest order, which einsum alone does not.

    Args:
        equation: einsum's equation with an explicit output.
        operands: tensors of the shapes that the equation names.

    Returns:
        The contraction, differentiable in every operand.
    """
    remaining = list(operands)
    for positions, step in _path(equation, tuple(tuple(operand.shape) for operand in operands)):
        # opt_einsum lists positions from the last to the first, so that each pop leaves the others in place.
        taken = [remaining.pop(position) for position in positions]
        remaining.append(torch.einsum(step, *taken))
    return remaining[0]


@lru_cache
def letters(order: int) -> tuple[str, str, str, str, str]:
    """Index letters of a block-term form: batch and block, then inputs, outputs and ranks of each mode."""
    if 3 * order + 2 > len(string.ascii_letters):
        raise ShapeError(f"order {order} has more indices than einsum has letters. Use an order of at most 16.")
    batch, block, rest = string.ascii_letters[0], string.ascii_letters[1], string.ascii_letters[2:]
    return batch, block, rest[:order], rest[order : 2 * order], rest[2 * order : 3 * order]


@lru_cache
def operand_letters(order: int) -> tuple[str, ...]:
    """Index letters of the cores, then of each factor."""
    _, block, i, j, r = letters(order)
    return (block + r, *(block + i[k] + j[k] + r[k] for k in range(order)))


@dataclass(frozen=True, slots=True)
class Step:
    """One contraction of the running tensor with the cores, a factor, or the cores times a factor.

    Attributes:
        operands: positions among ``(cores, A_1..A_d)``; two are contracted with one another first.
        operand: index letters of what the running tensor meets.
        given: index letters of the running tensor.
        shared: those of both that stay: the block, or none.
        summed: those of both that disappear.
        kept: those of the running tensor alone.
        new: those of the operand alone.
        new_sizes: of the indices that ``new`` names.
        summed_last: whether the running tensor is laid out with ``summed`` after ``kept``, or before.
        copied: whether that layout takes a copy.
        last: whether this is the last step; its result has ``new`` after ``kept``, all others before.
    """

    operands: tuple[int, ...]
    operand: str
    given: str
    shared: str
    summed: str
    kept: str
    new: str
    new_sizes: Sizes
    summed_last: bool
    copied: bool
    last: bool

    @property
    def result(self) -> str:
        """Index letters of the next running tensor."""
        return self.shared + (self.kept + self.new if self.last else self.new + self.kept)


@dataclass(frozen=True, slots=True)
class Chain:
    """How to multiply rows by a block-term matrix without forming it.

    Attributes:
        steps: the contractions in order.
        cost: estimated time for one row, in floating-point operations.
        widest: numbers in the largest tensor on the way, for one row.
        saved: numbers that gradients need beside the rows themselves, for one row.
    """

    steps: tuple[Step, ...] = ()
    cost: int = 0
    widest: int = 0
    saved: int = 0


@lru_cache(maxsize=1024)
def plan_chain(n_blocks: int, in_modes: Sizes, out_modes: Sizes, ranks: Sizes) -> Chain:
    """A cheap order in which rows can meet the cores and factors.

    How many numbers the running tensor holds depends only on which operands it has met. So the cheapest
    way to each set of operands is kept, and extended by one operand, or by the cores and a factor at once.
    Among chains that need the same copies the result is the cheapest there is.

    Args:
        n_blocks: ``N``.
        in_modes: ``(I_1..I_d)``.
        out_modes: ``(J_1..J_d)``.
        ranks: ``(R_1..R_d)``.
    """
    order = len(ranks)
    batch, block, i, j, r = letters(order)
    terms = operand_letters(order)
    sizes = {batch: 1, block: n_blocks, **dict(zip(i + j + r, in_modes + out_modes + ranks, strict=True))}
    everything = frozenset(range(order + 1))
    ways: dict[frozenset[int], Chain] = {frozenset(): Chain()}
    for n_met in range(order + 1):
        for met in [met for met in ways if len(met) == n_met]:
            given = ways[met].steps[-1].result if met else batch + i
            for operands in _next_operands(met, order):
                waiting = everything - met.union(operands)
                needed = batch + j + "".join(terms[n] for n in waiting)
                step = _step(operands, terms, given, needed, last=not waiting, sizes=sizes)
                way = _extend(ways[met], step, sizes)
                after = everything - waiting
                if after not in ways or way.cost < ways[after].cost:
                    ways[after] = way
    return ways[everything]


def _next_operands(met: frozenset[int], order: int) -> Iterator[tuple[int, ...]]:
    """What may come next: a factor, the cores with a factor, or the cores once a factor was met."""
    factors = [n for n in range(1, order + 1) if n not in met]
    yield from ((n,) for n in factors)
    if 0 not in met:
        yield from ((0, n) for n in factors)
        if met:
            yield (0,)


def _step(
    operands: tuple[int, ...], terms: Sequence[str], given: str, needed: str, *, last: bool, sizes: dict[str, int]
) -> Step:
    """The contraction with these operands that sums every letter not needed afterwards."""
    found = dict.fromkeys("".join(terms[n] for n in operands))
    operand = "".join(letter for letter in found if letter in given or letter in needed)
    shared = "".join(letter for letter in given if letter in operand and letter in needed)
    summed = "".join(letter for letter in given if letter in operand and letter not in needed)
    kept = "".join(letter for letter in given if letter not in operand)
    new = "".join(letter for letter in operand if letter not in given)

    def moving(part: str) -> str:
        return "".join(letter for letter in part if sizes[letter] > 1)

    # The last index stays last, so that a copy moves runs of neighbours; both orders suit a matrix product.
    summed_last = moving(summed).endswith(moving(given)[-1:])
    arranged = shared + (kept + summed if summed_last else summed + kept)
    copied = moving(arranged) != moving(given)
    new_sizes = tuple(sizes[letter] for letter in new)
    return Step(operands, operand, given, shared, summed, kept, new, new_sizes, summed_last, copied, last)


def _extend(way: Chain, step: Step, sizes: dict[str, int]) -> Chain:
    given, new, result = (math.prod([sizes[letter] for letter in part]) for part in (step.given, step.new, step.result))
    moved = given + result + (_COPY_MOVES * given if step.copied else 0)
    return Chain(
        (*way.steps, step),
        way.cost + 2 * given * new + MOVE_COST * moved,
        max(way.widest, given, result),
        way.saved + (given if way.steps or step.copied else 0),
    )


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as ``torch.autocast`` hands them to a matrix product; unchanged where it is off."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def apply_chain(rows: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """Multiply rows by a block-term matrix without forming it.

    Args:
        rows: shape ``(n, I_1..I_d)``.
        operands: cores ``(N, R_1..R_d)``, then factors ``(N, I_k, J_k, R_k)``.

    Returns:
        Shape ``(n, J_1..J_d)``; differentiable as :meth:`Prepared.matmul` says.
    """
    prepared = prepare_chain(operands)
    return prepared.matmul(rows.flatten(1)).reshape(len(rows), *prepared.out_modes)


def prepare_chain(operands: Sequence[Tensor]) -> Prepared:
    """What rows meet on the way through a chain, of cores ``(N, R_1..R_d)`` and factors ``(N, I_k, J_k, R_k)``.

    Differentiable; what takes no forming are views.
    """
    in_modes, out_modes, ranks = zip(*(tuple(factor.shape[1:]) for factor in operands[1:]), strict=True)
    chain = plan_chain(operands[0].shape[0], in_modes, out_modes, ranks)
    terms = operand_letters(len(ranks))
    met = []
    for step in chain.steps:
        equation = f"{','.join(terms[n] for n in step.operands)}->{step.shared + step.summed + step.new}"
        operand = torch.einsum(equation, *[operands[n] for n in step.operands]).contiguous()
        n_shared, n_summed = len(step.shared), len(step.shared + step.summed)
        shape, sizes = operand.shape, (slice(n_shared), slice(n_shared, n_summed), slice(n_summed, None))
        met.append(operand.reshape([math.prod(shape[part]) for part in sizes]))
    return Prepared(chain, in_modes, out_modes, tuple(met))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """The operands of a chain as its steps take them.

    Attributes:
        chain: the steps.
        in_modes: ``(I_1..I_d)``.
        out_modes: ``(J_1..J_d)``.
        met: what each step multiplies by, contiguous, shape ``(shared, summed, new)``.
    """

    chain: Chain
    in_modes: Sizes
    out_modes: Sizes
    met: tuple[Tensor, ...]

    def matmul(self, rows: Tensor) -> Tensor:
        """Multiply rows by the matrix, a piece at a time.

        Intermediates may hold several times as many numbers as the rows. Those of the first rows are kept
        for the gradient; from a certain size on they live for one piece only, and are computed again.

        Args:
            rows: shape ``(n, prod_k I_k)``.

        Returns:
            Shape ``(n, prod_k J_k)``; differentiable in the rows and operands, and twice if all is kept.
        """
        rows, *met = autocast(rows, *self.met)
        rows = rows.reshape(-1, *self.in_modes)
        chain, item = self.chain, rows.element_size()
        piece_bytes = _PIECE_BYTES_CPU if rows.device.type == "cpu" else _PIECE_BYTES_GPU
        n_rows = max(1, max(piece_bytes, *(item * operand.numel() for operand in met)) // (item * chain.widest))
        n_kept = len(rows)
        if torch.is_grad_enabled() and item * chain.saved * len(rows) > _KEPT_BYTES:
            n_kept = _KEPT_BYTES // (item * chain.saved * n_rows) * n_rows
        products = [_follow(chain, piece, *met) for piece in rows[:n_kept].split(n_rows)]
        if n_kept < len(rows):
            products.append(_Recomputed.apply(chain, n_rows, rows[n_kept:], *met))  # type: ignore[no-untyped-call]
        return (products[0] if len(products) == 1 else torch.cat(products)).flatten(1)


def _follow(chain: Chain, rows: Tensor, *met: Tensor) -> Tensor:
    """Take all steps of the chain for one piece of rows."""
    running = rows
    for step, operand in zip(chain.steps, met, strict=True):
        running = _take(step, running, operand)
    batch, _, _, j, _ = letters(rows.dim() - 1)
    return _permute(running, chain.steps[-1].result, batch + j)


def _take(step: Step, given: Tensor, operand: Tensor) -> Tensor:
    """One contraction, as a batch of matrix products over the shared letters."""
    shared, summed, _ = operand.shape
    kept = given.numel() // (shared * summed)
    if step.summed_last:
        left = _permute(given, step.given, step.shared + step.kept + step.summed).reshape(shared, kept, summed)
    else:
        left = _permute(given, step.given, step.shared + step.summed + step.kept).reshape(shared, summed, kept).mT
    product: Tensor = left @ operand if step.last else _TransposedProduct.apply(left, operand)  # type: ignore[no-untyped-call]
    sizes = dict(zip(step.given + step.new, tuple(given.shape) + step.new_sizes, strict=True))
    return product.reshape([sizes[letter] for letter in step.result])


def _permute(tensor: Tensor, given: str, wanted: str) -> Tensor:
    return tensor.permute([given.index(letter) for letter in wanted])


class _Recomputed(torch.autograd.Function):
    """Pieces of rows through the chain, of which only rows and operands are kept for the gradient.

    Of ``torch.utils.checkpoint``, piece by piece, what stays behind between the pieces scatters the heap.
    """

    @staticmethod
    def forward(chain: Chain, n_rows: int, rows: Tensor, *met: Tensor) -> Tensor:
        return torch.cat([_follow(chain, piece, *met) for piece in rows.split(n_rows)])

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.chain, ctx.n_rows, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, *met = ctx.saved_tensors
        needs_rows, *needs_met = ctx.needs_input_grad[2:]
        leaves = [operand.detach().requires_grad_(need) for operand, need in zip(met, needs_met, strict=True)]
        row_gradients = []
        for piece, direction in zip(rows.split(ctx.n_rows), gradient.split(ctx.n_rows), strict=True):
            leaf = piece.detach().requires_grad_(needs_rows)
            with torch.enable_grad():
                product = _follow(ctx.chain, leaf, *leaves)
            product.backward(direction)
            row_gradients.append(leaf.grad)
        return None, None, torch.cat(row_gradients) if needs_rows else None, *(leaf.grad for leaf in leaves)


class _TransposedProduct(torch.autograd.Function):
    """``(left @ right).mT``, where neither the result nor any gradient has to be copied into order."""

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        return right.mT @ left.mT

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        return (
            gradient.mT @ right.mT if needs_left else None,
            left.mT @ gradient.mT if needs_right else None,
        )
