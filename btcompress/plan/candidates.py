"""Which forms of a matrix a planner prices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from btcompress.modes import ShapeRequest, choose_shape, cuts_along_axes, divisors, fits, suggest_order
from btcompress.pricing import FormsWithCore
from btcompress.shapes import BlockTermShape, Gates, MatrixShape

#: CP ranks, and Tucker ranks for all modes, tried on every choice of modes with a core.
_CP_RANKS = (1, 2, 4)
_TUCKER_RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
#: Most entries of all cores together: of one block, and of several, whose cores take a linear system.
_MOST_CORE_ENTRIES = {1: 2**15, 2: 2**10, 4: 2**10}
#: Larger matrices are priced in fewer choices of modes, each of which reads them twice.
_LARGE = 2**22
#: Sums of Kronecker products tried.
_N_KRONECKER = 12

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The forms to price for one matrix, as :func:`btcompress.pricing.price` takes them.

    Attributes:
        without_core: low rank first, then sums of Kronecker products; each at all ranks.
        with_core: choices of modes with the ranks to try.
    """

    without_core: tuple[MatrixShape, ...]
    with_core: tuple[FormsWithCore, ...]


def candidates(name: str, out_size: int, in_size: int, n_gates: int, request: ShapeRequest) -> Candidates:
    """The forms to price for the ``(out_size, in_size)`` matrix ``name``.

    Low rank is always among them, of all gates together and, up to a size, of each gate; sums of Kronecker
    products and forms with a core are those of the modes asked for, where they fit, or else of some choices.

    Args:
        name: the matrix, for messages.
        out_size: rows, all gates together.
        in_size: columns.
        n_gates: row groups: 4 for an LSTM, 3 for a GRU, 1 for a plain RNN or a linear layer.
        request: modes, order, input shape and gates asked for; its ranks do not matter.

    Raises:
        ShapeError: as :func:`btcompress.modes.choose_shape`.
    """
    request = replace(fits(request, out_size, in_size, n_gates), cp_rank=1, tucker_rank=4)
    large = out_size * in_size > _LARGE
    separate = request.gates == "separate" and n_gates > 1
    gates: Gates = "separate" if separate else "fused"
    rows, groups = (out_size // n_gates, 1) if separate else (out_size, n_gates)
    low_rank = [MatrixShape(BlockTermShape.low_rank(out_size, in_size, 1, n_gates))]
    if separate or (n_gates > 1 and not large):
        low_rank.append(MatrixShape(BlockTermShape.low_rank(out_size // n_gates, in_size, 1), "separate", n_gates))
    pairs = [] if separate or large else _kronecker_modes(request, rows, in_size)
    kronecker = [
        MatrixShape.of_gates(BlockTermShape(i, j, (1, 1), n_gates=groups, core="identity"), gates, n_gates)
        for i, j in pairs
    ]
    shapes = [
        choose_shape(replace(request, order=order), name, out_size, in_size, n_gates).shape
        for order in _orders(request, in_size, large=large)
    ]
    with_core = [FormsWithCore(shape, tuple(_ranks(shape.part))) for shape in shapes]
    return Candidates((*low_rank, *kronecker), tuple(with_core))


def _orders(request: ShapeRequest, in_size: int, *, large: bool) -> list[int]:
    """Orders to try with a core, which at order 2 with equal ranks adds nothing."""
    if request.fixed_order is not None:
        return [request.fixed_order] if request.fixed_order > 2 else []
    return [max(3, suggest_order(in_size))] if large else [3, 4]


def _ranks(part: BlockTermShape) -> Iterator[Pair]:
    """CP rank and Tucker rank, the cheaper first."""

    def n_params(pair: Pair) -> int:
        n_blocks, rank = pair
        return n_blocks * (sum(part.mode_sizes) * rank + rank**part.order)

    pairs = [
        (n_blocks, rank)
        for n_blocks in _CP_RANKS
        for rank in _TUCKER_RANKS
        if n_blocks * rank**part.order <= _MOST_CORE_ENTRIES[n_blocks] and n_blocks * rank <= max(part.mode_sizes)
    ]
    yield from sorted(pairs, key=n_params)


def _kronecker_modes(request: ShapeRequest, out_size: int, in_size: int) -> list[tuple[Pair, Pair]]:
    """Input and output modes of order 2, those with the fewest parameters per rank first; none is plain low rank."""
    if request.fixed_order not in (None, 2):
        return []
    ins, outs = request.in_modes, request.out_modes
    if ins is not None:
        in_choices = [(ins[0], ins[1])] if math.prod(ins) == in_size else []
    elif request.input_shape is not None:
        in_choices = [(first, second) for first, second in cuts_along_axes(request.input_shape, 2)]
    else:
        in_choices = [(n, in_size // n) for n in divisors(in_size)]
    if outs is not None:
        out_choices = [(outs[0], outs[1])] if math.prod(outs) == out_size else []
    else:
        out_choices = [(n, out_size // n) for n in divisors(out_size)]

    def sizes(pair: tuple[Pair, Pair]) -> Pair:
        (i_1, i_2), (j_1, j_2) = pair
        return i_1 * j_1, i_2 * j_2

    low_rank = {(1, in_size), (in_size, 1)}, {(1, out_size), (out_size, 1)}
    pairs = [(i, j) for i in in_choices for j in out_choices if not (i in low_rank[0] and j in low_rank[1])]
    return sorted(pairs, key=lambda pair: (sum(sizes(pair)), pair))[:_N_KRONECKER]
