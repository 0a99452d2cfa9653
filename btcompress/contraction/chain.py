"""The chain that applies a block-term matrix: in which order rows meet cores and factors, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from btcompress.contraction.letters import letters, operand_letters

Sizes = tuple[int, ...]

#: Time to read or write one number, in floating-point operations.
MOVE_COST = 16


@dataclass(frozen=True, slots=True)
class Step:
    """One contraction of the running tensor with the cores, a factor, or the cores times a factor.

    Of indices of size 1 no letter is named, but that of the rows.

    Attributes:
        operands: positions among ``(cores, A_1..A_d)``; two are contracted with one another first.
        shared: index letters of the running tensor and of what it meets that stay: the block, or none.
        summed: those of both that disappear.
        kept: those of the running tensor alone.
        new: those of the operand alone.
    """

    operands: tuple[int, ...]
    shared: str
    summed: str
    kept: str
    new: str


@dataclass(frozen=True, slots=True)
class Chain:
    """How to multiply rows by a block-term matrix without forming it.

    Attributes:
        steps: the contractions in order.
        cost: estimated time for one row, in floating-point operations.
        widest: numbers in the largest tensor on the way, for one row.
        saved: numbers in all tensors on the way but the rows and the result, for one row.
    """

    steps: tuple[Step, ...] = ()
    cost: int = 0
    widest: int = 0
    saved: int = 0


def index_sizes(n_blocks: int, in_modes: Sizes, out_modes: Sizes, ranks: Sizes) -> dict[str, int]:
    """The size of each index by its letter, one row."""
    batch, block, i, j, r = letters(len(ranks))
    return {batch: 1, block: n_blocks, **dict(zip(i + j + r, in_modes + out_modes + ranks, strict=True))}


def plan_chain(n_blocks: int, in_modes: Sizes, out_modes: Sizes, ranks: Sizes) -> Chain:
    """The cheapest order in which rows can meet the cores and factors.

    How many numbers the running tensor holds depends only on which operands it has met. So the cheapest
    way to each set of operands is kept, and extended by one operand, or by the cores and a factor at once.

    Args:
        n_blocks: ``N``.
        in_modes: ``(I_1..I_d)``.
        out_modes: ``(J_1..J_d)``.
        ranks: ``(R_1..R_d)``.
    """
    return _planned(n_blocks, in_modes, out_modes, ranks)


#: As of :func:`btcompress.contraction.layout.plan_layout`, a compiler takes the outcome.
plan_chain._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=1024)
def _planned(n_blocks: int, in_modes: Sizes, out_modes: Sizes, ranks: Sizes) -> Chain:
    order = len(ranks)
    sizes = index_sizes(n_blocks, in_modes, out_modes, ranks)
    batch, _, i, j, _ = letters(order)
    terms = operand_letters(order)
    everything = frozenset(range(order + 1))
    ways: dict[frozenset[int], Chain] = {frozenset(): Chain()}
    for n_met in range(order + 1):
        for met in [met for met in ways if len(met) == n_met]:
            last = ways[met].steps[-1] if met else None
            given = last.shared + last.kept + last.new if last else batch + i
            for operands in _next_operands(met, order):
                waiting = everything - met.union(operands)
                needed = batch + j + "".join(terms[n] for n in waiting)
                step = _step(operands, terms, given, needed, sizes)
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


def _step(operands: tuple[int, ...], terms: tuple[str, ...], given: str, needed: str, sizes: dict[str, int]) -> Step:
    """The contraction with these operands that sums every letter not needed afterwards."""
    found = dict.fromkeys("".join(terms[n] for n in operands))
    operand = [letter for letter in found if sizes[letter] > 1 and (letter in given or letter in needed)]
    kept = [letter for letter in given if letter not in found and (sizes[letter] > 1 or letter == needed[0])]
    both = [letter for letter in operand if letter in given]
    return Step(
        operands,
        shared="".join(letter for letter in both if letter in needed),
        summed="".join(letter for letter in both if letter not in needed),
        kept="".join(kept),
        new="".join(letter for letter in operand if letter not in given),
    )


def _extend(way: Chain, step: Step, sizes: dict[str, int]) -> Chain:
    def size(part: str) -> int:
        return math.prod(sizes[letter] for letter in part)

    given, result = size(step.shared + step.summed + step.kept), size(step.shared + step.kept + step.new)
    return Chain(
        (*way.steps, step),
        way.cost + 2 * given * size(step.new) + MOVE_COST * (given + result),
        max(way.widest, given, result),
        way.saved + (given if way.steps else 0),
    )
