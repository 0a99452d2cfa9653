"""Choosing mode sizes: factor a matrix's rows and columns into modes that pair up cheaply."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal, get_args

from btcompress.errors import ShapeError
from btcompress.shapes import MAX_SIZE, BlockTermShape, Gates, MatrixShape, check_order

Modes = tuple[int, ...]

#: What matters beside errors: how small a form is, or also how long a product with it takes.
Objective = Literal["size", "speed"]

#: Input modes of about this many bits each: 256 inputs give order 2, 57,600 order 4.
_BITS_PER_MODE = 4
_MAX_CHOSEN_ORDER = 4

#: Every pairing of input and output modes is priced where there are no more than this; else those that sorting finds.
_MOST_PAIRINGS = 2**15
#: Cuts along axes are all tried where there are no more than this; else the most equal ones.
_MOST_CUTS = 2**12
#: Places where an input can be cut, more than any size below 2^31 has.
_MOST_BOUNDARIES = 1536

#: With speed for the objective, modes of up to this times the parameters count as equals, and of so many choices, those
#: with the fewest parameters, the time is estimated.
_SPEED_TOLERANCE = 1.1
_MOST_TIMED = 64

#: Modes along an input shape may cost this much more than the cheapest if they keep more of its axes whole.
_AXIS_TOLERANCE = 1.5


@dataclass(frozen=True, slots=True)
class ShapeRequest:
    """What a user asks of every matrix's block-term form; ``None`` means chosen for each matrix.

    Attributes:
        cp_rank: ``N``, the number of blocks.
        tucker_rank: ``R`` for every mode, or one rank per mode.
        in_modes: ``(I_1..I_d)``, for the matrices whose number of inputs they multiply to.
        out_modes: ``(J_1..J_d)``, for the matrices whose number of rows they multiply to (all four
            gates included when they are fused).
        order: ``d``.
        input_shape: the shape whose flattening (C order) is the input, for the matrices whose
            number of inputs it multiplies to.
        gates: fit the gates as one matrix or each on its own.
        objective: with ``"speed"``, of the modes to choose from that take up to a tenth more parameters those are
            taken with which a product costs least, as :func:`btcompress.contraction.plan_chain` estimates it.
    """

    cp_rank: int = 1
    tucker_rank: int | Modes = 4
    in_modes: Modes | None = None
    out_modes: Modes | None = None
    order: int | None = None
    input_shape: Modes | None = None
    gates: Gates = "fused"
    objective: Objective = "size"

    def __post_init__(self) -> None:
        if self.gates not in ("fused", "separate"):
            raise ShapeError(f"gates must be 'fused' or 'separate', but {self.gates!r} was given.")
        if self.objective not in get_args(Objective):
            raise ShapeError(f"objective must be 'size' or 'speed', but {self.objective!r} was given.")
        if self.cp_rank < 1:
            raise ShapeError(f"the CP rank must be at least 1, but {self.cp_rank} was given.")
        if self.cp_rank > MAX_SIZE:
            raise ShapeError(f"the CP rank must be at most {MAX_SIZE}, but a larger one was given. Use a smaller one.")
        for name in ("tucker_rank", "in_modes", "out_modes", "input_shape", "order"):
            value = getattr(self, name)
            if value is None:
                continue
            numbers = (value,) if isinstance(value, int) else tuple(value)
            check_order(value if name == "order" else len(numbers))
            if numbers and max(numbers) > MAX_SIZE:
                raise ShapeError(f"{name} must be at most {MAX_SIZE}, but more was given. Use smaller numbers.")
            if not numbers or min(numbers) < 1:
                raise ShapeError(f"{name} must be whole numbers of at least 1, but {value} was given.")
            if not isinstance(value, int):
                object.__setattr__(self, name, numbers)
        lengths = {
            name: len(value)
            for name in ("in_modes", "out_modes", "tucker_rank")
            if isinstance(value := getattr(self, name), tuple)
        }
        if self.order is not None:
            lengths["order"] = self.order
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{name} of {length}" for name, length in lengths.items())
            raise ShapeError(f"one order was expected, but {given} were given. Make their lengths agree.")

    @property
    def fixed_order(self) -> int | None:
        """The order, if any part of the request decides it."""
        for value in (self.in_modes, self.out_modes, self.tucker_rank):
            if isinstance(value, tuple):
                return len(value)
        return self.order


@dataclass(frozen=True, slots=True)
class ChosenShape:
    """A shape for one matrix and what a user should know about how it came about."""

    shape: MatrixShape
    notices: tuple[str, ...] = ()


def choose_shape(request: ShapeRequest, name: str, out_size: int, in_size: int, n_gates: int = 4) -> ChosenShape:
    """Choose the block-term shape of the ``(out_size, in_size)`` matrix ``name``.

    Modes that the request gives are used where they fit; the rest are chosen as equal as the integers
    allow, the gates on the smallest input mode, sizes padded where that costs fewer parameters. Ranks
    are lowered to what the modes can hold.

    Args:
        request: what was asked for.
        name: the matrix, for messages.
        out_size: rows, all gates together.
        in_size: columns.
        n_gates: row groups: 4 for an LSTM, 3 for a GRU, 1 for a plain RNN or a linear layer.

    Raises:
        ShapeError: given modes or an input shape fit neither the matrix exactly nor as its smallest
            padding, per-mode ranks do not match the order, or the matrix is larger than any can be.
    """
    if max(out_size, in_size) > MAX_SIZE:
        raise ShapeError(f"{name} has a side of more than {MAX_SIZE} rows or columns. Leave this matrix out.")
    separate, part_out, part_gates = _part(request, out_size, n_gates)
    if request.in_modes is not None:
        _check_cover("in_modes", request.in_modes, in_size, f"{name} has {in_size} inputs")
    if request.out_modes is not None:
        rows = f"each gate of {name} has {part_out} rows" if separate else f"{name} has {out_size} rows"
        _check_cover("out_modes", request.out_modes, part_out, rows, part_gates)
    if request.input_shape is not None and math.prod(request.input_shape) != in_size:
        raise ShapeError(
            f"input_shape {_text(request.input_shape)} multiplies to {math.prod(request.input_shape)}, "
            f"but {name} has {in_size} inputs. Give the shape whose flattening is that input."
        )
    order = request.fixed_order or suggest_order(in_size)
    rank = request.tucker_rank
    asked = rank if isinstance(rank, tuple) else (rank,) * order

    def build(in_modes: Modes, out_modes: Modes) -> BlockTermShape:
        return BlockTermShape(in_modes, out_modes, asked, request.cp_rank, in_size, part_out, part_gates)

    pairings = _pairings(request, in_size, part_out, part_gates, asked)
    priced = [(_cost(shape), shape) for shape in itertools.starmap(build, pairings)]
    (least, *_), chosen = min(priced, key=lambda each: each[0])
    equals = priced
    if request.in_modes is None and request.input_shape is not None:
        axes, limit = request.input_shape, least * _AXIS_TOLERANCE
        affordable = [each for each in priced if each[0][0] <= limit]
        _, chosen = min(affordable, key=lambda each: (-_axes_kept(each[1].in_modes, axes), each[0]))
        kept = _axes_kept(chosen.in_modes, axes)
        equals = [each for each in affordable if _axes_kept(each[1].in_modes, axes) == kept]
    if request.objective == "speed":
        chosen = _fastest(equals)
    limited = chosen.limited()
    shape = MatrixShape.of_gates(limited, "separate" if separate else "fused", n_gates)
    return ChosenShape(shape, tuple(_notices(name, chosen, limited)))


def _fastest(priced: Sequence[tuple[_Cost, BlockTermShape]]) -> BlockTermShape:
    """Of shapes with their costs the one with the fastest product, among those with about as few parameters as any."""
    from btcompress.contraction import plan_chain

    ordered = sorted(priced, key=lambda each: each[0])[:_MOST_TIMED]
    limit = ordered[0][0][0] * _SPEED_TOLERANCE

    def time(each: tuple[_Cost, BlockTermShape]) -> tuple[int, _Cost]:
        limited = each[1].limited()
        return plan_chain(limited.n_blocks, limited.in_modes, limited.out_modes, limited.ranks).cost, each[0]

    return min((each for each in ordered if each[0][0] <= limit), key=time)[1]


def fits(request: ShapeRequest, out_size: int, in_size: int, n_gates: int = 4) -> ShapeRequest:
    """The request without the modes and input shape that are not this matrix's size.

    A checkpoint's layers differ in size; given modes are meant for the ones they multiply to.
    """
    _, part_out, part_gates = _part(request, out_size, n_gates)
    keep_in = request.in_modes is None or _covers(request.in_modes, in_size)
    keep_out = request.out_modes is None or _covers(request.out_modes, part_out, part_gates)
    keep_shape = request.input_shape is None or math.prod(request.input_shape) == in_size
    return replace(
        request,
        in_modes=request.in_modes if keep_in else None,
        out_modes=request.out_modes if keep_out else None,
        order=request.fixed_order,
        input_shape=request.input_shape if keep_shape else None,
    )


def choose_shapes(request: ShapeRequest, sizes: Mapping[str, tuple[int, int, int]]) -> dict[str, ChosenShape]:
    """Choose the shapes of several matrices, given modes for the ones they multiply to.

    Args:
        request: what was asked for.
        sizes: ``(rows, inputs, row groups)`` of each matrix by name, as :func:`choose_shape` takes them.

    Raises:
        ShapeError: as :func:`choose_shape`; given modes or an input shape fit none of the matrices.
    """
    fitting = {name: fits(request, *size) for name, size in sizes.items()}
    given = [name for name in ("in_modes", "out_modes", "input_shape") if getattr(request, name) is not None]
    used = all(any(getattr(each, name) is not None for each in fitting.values()) for name in given)
    # Modes that fit no matrix are asked of every matrix, and refused by the first.
    return {name: choose_shape(fitting[name] if used else request, name, *size) for name, size in sizes.items()}


def _part(request: ShapeRequest, out_size: int, n_gates: int) -> tuple[bool, int, int]:
    """Whether each gate gets a form of its own, and the rows and gates of each form."""
    if request.gates == "separate" and n_gates > 1:
        return True, out_size // n_gates, 1
    return False, out_size, n_gates


def suggest_order(in_size: int) -> int:
    """The order that gives input modes of about 16 each, from 2 to 4."""
    return max(2, min(_MAX_CHOSEN_ORDER, round(math.log2(max(in_size, 2)) / _BITS_PER_MODE)))


def _pairings(
    request: ShapeRequest, in_size: int, out_size: int, n_gates: int, ranks: Modes
) -> Iterator[tuple[Modes, Modes]]:
    """Input modes with output modes, mode for mode, worth pricing."""
    order, rows = len(ranks), out_size // n_gates
    if request.in_modes is not None:
        in_choices = [request.in_modes]
    elif request.input_shape is not None:
        in_choices = list(cuts_along_axes(request.input_shape, order))
    else:
        in_choices = [equal_modes(in_size, order), smallest_cover(in_size, order)]
    if request.out_modes is not None:
        yield from ((in_modes, request.out_modes) for in_modes in in_choices)
        return
    choices = sorted({equal_modes(rows, order), smallest_cover(rows, order)})
    every = len(in_choices) * sum(map(_n_arrangements, choices)) <= _MOST_PAIRINGS
    for choice in choices:
        arranged = list(_arrangements(choice)) if every else []
        for in_modes in in_choices:
            weights = [size * rank for size, rank in zip(in_modes, ranks, strict=True)]
            for modes in arranged or _sorted_arrangements(choice, weights):
                yield in_modes, (n_gates * modes[0], *modes[1:])


def _n_arrangements(modes: Modes) -> int:
    """Different orders of these modes."""
    return math.factorial(len(modes)) // math.prod(math.factorial(count) for count in Counter(modes).values())


def _arrangements(modes: Modes) -> Iterator[Modes]:
    """Every different order of these modes."""
    if not modes:
        yield ()
    for k, mode in enumerate(modes):
        if mode not in modes[:k]:
            yield from ((mode, *rest) for rest in _arrangements(modes[:k] + modes[k + 1 :]))


def _sorted_arrangements(modes: Modes, weights: Sequence[int]) -> Iterator[Modes]:
    """Orders of ascending modes, the cheapest among them: the least sum of weights times modes for each first mode.

    By the rearrangement inequality the largest mode stands at the least weight. The first is tried apart, since the
    gates multiply it. Where ranks are lowered the sum is not all that counts, and another order may cost a little less.
    """
    by_weight = sorted(range(1, len(modes)), key=lambda k: -weights[k])
    for k, first in enumerate(modes):
        if first not in modes[:k]:
            rest = dict(zip(by_weight, modes[:k] + modes[k + 1 :], strict=True))
            yield (first, *(rest[at] for at in range(1, len(modes))))


#: What makes one choice of modes better than another.
_Cost = tuple[int, int, Modes, Modes]


def _cost(shape: BlockTermShape) -> _Cost:
    """Parameters first; then the less padded; then anything that settles ties for good."""
    limited = shape.limited()
    return limited.n_params, shape.padded_in * shape.padded_out, shape.in_modes, shape.out_modes


@lru_cache
def equal_modes(size: int, order: int) -> Modes:
    """Factor ``size`` into ``order`` ascending integers as equal as they can be (smallest sum)."""
    every = divisors(size)

    @cache
    def best(left: int, count: int) -> tuple[int, Modes]:
        """Sum of the modes, and these from the largest to the smallest: of equal sums the least counts."""
        if count == 1:
            return left, (left,)
        tries = []
        # The smallest mode is no larger than the root, and of two the most equal are those next to it.
        smallest = [d for d in every[: bisect_right(every, _floor_root(left, count))] if left % d == 0]
        for first in smallest[-1:] if count == 2 else smallest:
            total, others = best(left // first, count - 1)
            tries.append((first + total, tuple(sorted((first, *others), reverse=True))))
        return min(tries)

    return best(size, order)[1][::-1]


@lru_cache
def smallest_cover(size: int, order: int) -> Modes:
    """Ascending modes of two neighbouring sizes whose product is the least at or above ``size``."""
    low = _floor_root(size, order)
    n_high = next(n for n in range(order + 1) if (low + 1) ** n * low ** (order - n) >= size)
    return (low,) * (order - n_high) + (low + 1,) * n_high


def _floor_root(size: int, order: int) -> int:
    root = round(size ** (1 / order))
    return root - 1 if root**order > size else root


def cuts_along_axes(input_shape: Modes, order: int) -> Iterator[Modes]:
    """Mode sizes that each split an axis evenly, or hold whole axes and at most the last part of one before them.

    A boundary is the number of entries behind it. Every boundary and every axis must divide one another,
    so that a common finer cut exists; a mode that crosses the start of an axis must end where an axis does.
    Where there are very many, those of the smallest sums alone, for each number of axes that they keep.

    Raises:
        ShapeError: there are more places to cut than can be tried.
    """
    size, axes = math.prod(input_shape), _boundaries(input_shape)
    allowed = [b for b in divisors(size) if all(b % axis == 0 or axis % b == 0 for axis in axes)]
    if len(allowed) > _MOST_BOUNDARIES:
        raise ShapeError(
            f"input_shape {_text(input_shape)} can be cut in {len(allowed):,} places. Give in_modes instead."
        )

    @cache
    def next_boundaries(remaining: int) -> list[int]:
        crossed = [axis for axis in axes if axis < remaining]
        within = allowed[: bisect_right(allowed, remaining)]
        return [b for b in within if remaining % b == 0 and (b in axes or not any(b < axis for axis in crossed))]

    cuts = _Cuts(next_boundaries, frozenset(axes), smallest=2)
    if not cuts.count(size, order):
        cuts = _Cuts(next_boundaries, frozenset(axes), smallest=1)
    return cuts.every(size, order) if cuts.count(size, order) <= _MOST_CUTS else cuts.most_equal(size, order)


class _Cuts:
    """Ways to cut ``remaining`` entries into ``count`` modes, none below a smallest size."""

    def __init__(self, next_boundaries: Callable[[int], list[int]], axes: frozenset[int], smallest: int) -> None:
        self._next_boundaries = next_boundaries
        self._axes = axes
        self._smallest = smallest
        self._counts: dict[tuple[int, int], int] = {}
        self._best: dict[tuple[int, int], dict[int, tuple[int, Modes]]] = {}

    def count(self, remaining: int, count: int) -> int:
        """How many ways there are."""
        if count == 1:
            return int(remaining >= self._smallest)
        if (remaining, count) not in self._counts:
            self._counts[remaining, count] = sum(self.count(b, count - 1) for b in self._boundaries(remaining))
        return self._counts[remaining, count]

    def every(self, remaining: int, count: int) -> Iterator[Modes]:
        """All ways."""
        if count == 1:
            yield from [(remaining,)] if remaining >= self._smallest else []
            return
        for boundary in self._boundaries(remaining):
            if self.count(boundary, count - 1):
                yield from ((remaining // boundary, *rest) for rest in self.every(boundary, count - 1))

    def most_equal(self, remaining: int, count: int) -> Iterator[Modes]:
        """The way of the smallest sum of modes, for each number of axes that it keeps."""
        yield from (modes for _, modes in self._most_equal(remaining, count).values())

    def _most_equal(self, remaining: int, count: int) -> dict[int, tuple[int, Modes]]:
        """By the number of axes kept, the smallest sum and its modes."""
        if count == 1:
            return {0: (remaining, (remaining,))} if remaining >= self._smallest else {}
        if (remaining, count) not in self._best:
            best: dict[int, tuple[int, Modes]] = {}
            for boundary in self._boundaries(remaining):
                mode = remaining // boundary
                for kept, (total, rest) in self._most_equal(boundary, count - 1).items():
                    n_kept, way = kept + (boundary in self._axes), (mode + total, (mode, *rest))
                    best[n_kept] = min(best.get(n_kept, way), way)
            self._best[remaining, count] = best
        return self._best[remaining, count]

    def _boundaries(self, remaining: int) -> list[int]:
        return [b for b in self._next_boundaries(remaining) if remaining // b >= self._smallest]


def _boundaries(modes: Modes) -> list[int]:
    return [math.prod(modes[k:]) for k in range(1, len(modes))]


def _axes_kept(modes: Modes, input_shape: Modes) -> int:
    return len(set(_boundaries(modes)) & set(_boundaries(input_shape)))


def divisors(size: int) -> list[int]:
    """Every divisor of a number, ascending."""
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    return sorted({*small, *(size // n for n in small)})


def _covers(modes: Modes, size: int, n_gates: int = 1) -> bool:
    """Whether modes multiply to ``size``, or, gate by gate, to more with none that could be smaller."""
    if math.prod(modes) == size:
        return True
    if modes[0] % n_gates or size % n_gates:
        return False
    own, rows = (modes[0] // n_gates, *modes[1:]), size // n_gates
    product = math.prod(own)
    return product > rows and all(product // mode * (mode - 1) < rows for mode in own)


def _check_cover(option: str, modes: Modes, size: int, fact: str, n_gates: int = 1) -> None:
    if not _covers(modes, size, n_gates):
        raise ShapeError(
            f"{option} {_text(modes)} multiplies to {math.prod(modes)}, but {fact}. Choose sizes whose product "
            f"is {size}, or leave the option out to have them chosen."
        )


def _text(modes: Modes) -> str:
    return ",".join(map(str, modes))


def _notices(name: str, asked: BlockTermShape, limited: BlockTermShape) -> Iterator[str]:
    if limited.ranks != asked.ranks:
        yield (
            f"{name}: Tucker rank {_text(asked.ranks)} lowered to {_text(limited.ranks)}, "
            "the most that its modes can hold."
        )
    if asked.padded_in != asked.in_size:
        yield f"{name}: inputs padded from {asked.in_size} to {asked.padded_in} = {'x'.join(map(str, asked.in_modes))}."
    if asked.padded_out != asked.out_size:
        modes = "x".join(map(str, asked.out_modes))
        yield f"{name}: rows padded from {asked.out_size} to {asked.padded_out} = {modes}."
