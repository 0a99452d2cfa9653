"""How the tensors of a chain lie in memory, so that its steps are matrix products and few numbers are copied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from btcompress.contraction.chain import MOVE_COST, Sizes, Step, index_sizes, plan_chain
from btcompress.contraction.letters import letters, operand_letters

#: A permuted copy costs about as much as this many moves of each number: one side of it is never contiguous.
_COPY_MOVES = 4

#: What a call costs, and each matrix of a batch, in floating-point operations; and what sides of matrices are rounded
#: up to, since a small one takes as long. Measured on two cores of a CPU; not sharp.
_CALL_COST = 600_000
_MATRIX_COST = 8_000
_SIDE = 8

#: Numbers of the largest tensor on the way for one piece of rows: on a CPU so few that they stay in its caches.
PIECE_NUMBERS = 2**19
#: A piece on a GPU is so much larger.
_GPU_PIECES = 16

#: Layouts of a tensor on the way that are gone on with.
_BEAM = 64


@dataclass(frozen=True, slots=True)
class Permutation:
    """A copy of a tensor in which its indices stand in another order.

    Attributes:
        sizes: of the indices as they are, -1 for that of the rows.
        order: of the indices as they shall be.
    """

    sizes: Sizes
    order: Sizes

    @property
    def inverse(self) -> Permutation:
        """The copy back."""
        return Permutation(
            tuple(self.sizes[n] for n in self.order), tuple(self.order.index(n) for n in range(len(self.order)))
        )


@dataclass(frozen=True, slots=True)
class Multiplication:
    """A step of the chain as a product of matrices, or a batch of such: the running tensor, ``left``, with ``right``.

    Attributes:
        equation: how ``right`` is made of the operands.
        operands: which they are, positions among ``(cores, A_1..A_d)``.
        right: shape of ``right``, ``(summed, new)``, or ``(new, summed)`` with ``new_first``; the block before these,
            where there is a product for each block.
        copied: how to copy the running tensor first; None where no copy is needed.
        sizes: of the running tensor's groups of indices in memory, -1 for that of the rows.
        order: of these groups in ``left``: ``([block], [batch], kept, summed)``.
        by_block: whether there is a call for each block.
        new_first: whether the result is ``(.., new, kept)``, or ``(.., kept, new)``.
        result: sizes of the result, -1 for that of the rows.
        n_given: numbers in the running tensor, for one row.
        n_result: numbers in the result, for one row.
    """

    equation: str
    operands: tuple[int, ...]
    right: Sizes
    copied: Permutation | None
    sizes: Sizes
    order: Sizes
    by_block: bool
    new_first: bool
    result: Sizes
    n_given: int
    n_result: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A chain in matrix products.

    Attributes:
        steps: one product after another.
        last: how to copy the last result, so that its indices stand in order; None where they do.
        cost: estimated time for one row of a piece, in floating-point operations.
        n_rows: rows of a piece on a CPU.
        widest: numbers in the largest tensor on the way, for one row.
        saved: numbers in all tensors on the way but the rows and the result, for one row.
    """

    steps: tuple[Multiplication, ...]
    last: Permutation | None
    cost: int
    n_rows: int
    widest: int
    saved: int

    @property
    def n_kept(self) -> int:
        """Numbers in all results and copies, for one row."""
        return sum(step.n_result + (0 if step.copied is None else step.n_given) for step in self.steps)

    def rows_of_piece(self, device: torch.device) -> int:
        """Rows that are taken through the chain at once."""
        return self.n_rows * (1 if device.type == "cpu" else _GPU_PIECES)


@dataclass(frozen=True, slots=True)
class _View:
    """A running tensor as a batch of matrices: groups of letters in memory, and which of them is what."""

    groups: tuple[str, ...]
    batch: str
    kept: str
    by_block: bool = False


@dataclass(frozen=True, slots=True)
class _Product:
    """A step as it is tried: the letters of the tensor given, copied and viewed, and those of the result."""

    given: str
    copied: str
    view: _View
    step: Step
    new_first: bool
    result: str


#: What products so far cost, for a piece of rows, and these.
_Way = tuple[int, tuple[_Product, ...]]


def plan_layout(n_blocks: int, in_modes: Sizes, out_modes: Sizes, ranks: Sizes) -> Layout:
    """The cheapest layouts found for the chain of :func:`plan_chain`.

    Step by step, each way to view the running tensor as matrices without a copy is tried, and some with a copy; the
    cheapest ways to each of a few layouts of the result are gone on with.

    Args:
        n_blocks: ``N``.
        in_modes: ``(I_1..I_d)``.
        out_modes: ``(J_1..J_d)``.
        ranks: ``(R_1..R_d)``.
    """
    return _planned(n_blocks, in_modes, out_modes, ranks, PIECE_NUMBERS)


#: A compiler takes the outcome and does not look into the search. This is what torch.compiler.assume_constant_result
#: sets, which would import the compiler.
plan_layout._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def _planned(n_blocks: int, in_modes: Sizes, out_modes: Sizes, ranks: Sizes, piece_numbers: int) -> Layout:
    chain = plan_chain(n_blocks, in_modes, out_modes, ranks)
    batch, _, i, j, _ = letters(len(ranks))
    sizes = index_sizes(n_blocks, in_modes, out_modes, ranks)
    n_rows = max(1, piece_numbers // chain.widest)
    wanted = batch + "".join(letter for letter in j if sizes[letter] > 1)
    start = batch + "".join(letter for letter in i if sizes[letter] > 1)
    ways: dict[str, _Way] = {start: (0, ())}
    for step in chain.steps:
        found: dict[str, _Way] = {}
        for given, (cost, before) in sorted(ways.items(), key=lambda way: way[1][0])[:_BEAM]:
            for copied in dict.fromkeys(_copies(given, step, wanted)):
                for view in _views(copied, step):
                    reached = cost + _cost(view, step, sizes, n_rows, is_copied=copied != given)
                    for new_first, result in _results(view, step):
                        if result not in found or reached < found[result][0]:
                            found[result] = (reached, (*before, _Product(given, copied, view, step, new_first, result)))
        ways = found
    n_results = math.prod(out_modes) * n_rows

    def total(result: str) -> int:
        return ways[result][0] + (result != wanted) * (_CALL_COST + _COPY_MOVES * MOVE_COST * n_results)

    best = min(ways, key=total)
    last = None if best == wanted else _permutation(best, wanted, sizes)
    steps = tuple(_multiplication(product, sizes) for product in ways[best][1])
    return Layout(steps, last, total(best) // n_rows, n_rows, chain.widest, chain.saved)


def _copies(given: str, step: Step, wanted: str) -> Iterator[str]:
    """The running tensor's letters as they are, and as they may be copied."""
    summed = "".join(letter for letter in given if letter in step.summed)
    kept = [letter for letter in given if letter in step.kept]
    yield given
    yield step.shared + "".join(kept) + summed
    yield step.shared + "".join(sorted(kept, key=lambda letter: f"{wanted}{letter}".index(letter))) + summed


def _results(view: _View, step: Step) -> Iterator[tuple[bool, str]]:
    """Whether new indices stand before those kept, and the result's letters."""
    before = step.shared + view.batch
    for new in map("".join, itertools.permutations(step.new) if len(step.new) <= 3 else [step.new]):
        yield True, before + new + view.kept
        yield False, before + view.kept + new


def _views(given: str, step: Step) -> Iterator[_View]:
    """Ways to see a tensor as matrices to be multiplied: batch, kept and summed letters in one group each."""
    groups = _groups(given, step)
    kinds = [_kind(group, step) for group in groups]
    others = [group for group, kind in zip(groups, kinds, strict=True) if kind == "kept"]
    if kinds.count("summed") > 1 or len(others) > 2 or kinds[-1] == "shared":
        return
    by_block = bool(step.shared)
    if len(others) == 2:
        yield _View(groups, others[0], others[1], by_block)
        return
    (kept,) = others
    at = groups.index(kept)
    yield _View(groups, "", kept)
    for cut in range(1, len(kept)):
        first, second = kept[:cut], kept[cut:]
        parted = (*groups[:at], first, second, *groups[at + 1 :])
        yield _View(parted, first, second, by_block)
        if at < len(groups) - 1:
            yield _View(parted, second, first, by_block)


def _groups(given: str, step: Step) -> tuple[str, ...]:
    """Runs of letters of one kind; at the end an empty one where no letter is summed."""
    runs = tuple("".join(run) for _, run in itertools.groupby(given, key=lambda letter: _kind(letter, step)))
    return runs if step.summed else (*runs, "")


def _kind(group: str, step: Step) -> str:
    if group and group[0] in step.shared:
        return "shared"
    return "kept" if group and group[0] in step.kept else "summed"


def _cost(view: _View, step: Step, sizes: dict[str, int], n_rows: int, *, is_copied: bool) -> int:
    """Of one product, for a piece of rows."""

    def size(part: str) -> int:
        return math.prod(sizes[letter] for letter in part) * (n_rows if "a" in part else 1)

    def side(part: str) -> int:
        return -(-size(part) // _SIDE) * _SIDE

    blocks, batch = size(step.shared), size(view.batch)
    given, result = blocks * batch * size(view.kept + step.summed), blocks * batch * size(view.kept + step.new)
    operations = 2 * blocks * batch * size(step.summed) * side(view.kept) * side(step.new)
    calls = (blocks if view.by_block else 1) + is_copied
    moves = given + result + is_copied * _COPY_MOVES * given
    return operations + MOVE_COST * moves + _MATRIX_COST * blocks * batch + _CALL_COST * calls


def _multiplication(product: _Product, sizes: dict[str, int]) -> Multiplication:
    view, step = product.view, product.step
    terms = operand_letters((len(sizes) - 2) // 3)
    summed = "".join(letter for letter in product.copied if letter in step.summed)
    new = "".join(letter for letter in product.result if letter in step.new)
    outer = [*step.shared, *([view.batch] if view.batch else [])]
    right = (new, summed) if product.new_first else (summed, new)
    return Multiplication(
        equation=f"{','.join(terms[n] for n in step.operands)}->{step.shared}{right[0]}{right[1]}",
        operands=step.operands,
        right=_sizes([*step.shared, *right], sizes),
        copied=None if product.copied == product.given else _permutation(product.given, product.copied, sizes),
        sizes=_sizes(view.groups, sizes),
        order=tuple(view.groups.index(group) for group in (*outer, view.kept, summed)),
        by_block=view.by_block,
        new_first=product.new_first,
        result=_sizes([*outer, *((new, view.kept) if product.new_first else (view.kept, new))], sizes),
        n_given=math.prod(sizes[letter] for letter in product.given),
        n_result=math.prod(sizes[letter] for letter in product.result),
    )


def _permutation(given: str, wanted: str, sizes: dict[str, int]) -> Permutation:
    return Permutation(_sizes(list(given), sizes), tuple(given.index(letter) for letter in wanted))


def _sizes(groups: Sequence[str], sizes: dict[str, int]) -> Sizes:
    """Sizes of groups of letters, -1 for the one with the rows."""
    return tuple(-1 if "a" in group else math.prod(sizes[letter] for letter in group) for group in groups)
