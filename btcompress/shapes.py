"""Shapes of block-term forms: pure integers, parameter counts and ratios."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from btcompress.errors import ShapeError

Gates = Literal["fused", "separate"]

#: Most modes of a form. The fit names every mode, its rank and a second rank by one letter each, blocks by two
#: more, of 52; and a product with the form is planned over ``2^(d + 1)`` sets of tensors, which takes a second here.
MAX_ORDER = 12
#: Largest mode, rank, CP rank, or number of rows or columns, so that arithmetic on shapes stays quick.
MAX_SIZE = 2**40

#: A full core holds ``prod_k R_k`` parameters; an identity core holds none and is not stored.
Core = Literal["full", "identity"]

#: What a recurrent layer computes at each step.
Cell = Literal["lstm", "gru", "rnn"]

#: What a plain RNN applies to its sums.
Nonlinearity = Literal["tanh", "relu"]

#: The gates of each cell in PyTorch's row order: input, forget, cell, output; reset, update, new. A plain RNN has the
#: rows of its hidden units alone.
GATES: dict[Cell, tuple[str, ...]] = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn": ("h",)}

#: Names of gates that can be separate, by how many there are.
_SEPARATE = {len(names): names for names in GATES.values() if len(names) > 1}


def check_order(order: int) -> None:
    """Refuse an order that no form can have.

    Raises:
        ShapeError: it is above :data:`MAX_ORDER`.
    """
    if order > MAX_ORDER:
        given = f"{order}" if order <= MAX_SIZE else "a larger one"
        raise ShapeError(f"an order of at most {MAX_ORDER} is possible, but {given} was given. Use fewer modes.")


def limit_ranks(mode_sizes: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Lower Tucker ranks to what an order-``d`` tensor of these mode sizes can hold.

    ``R_k`` can exceed neither ``mode_sizes[k]`` nor the product of the other ranks; beyond that a
    larger rank changes nothing. The result is the largest vector of ranks under both bounds.
    """
    limited = [min(rank, size) for rank, size in zip(ranks, mode_sizes, strict=True)]
    while True:
        for k, rank in enumerate(limited):
            others = math.prod(limited[:k] + limited[k + 1 :])
            if rank > others:
                limited[k] = others
                break
        else:
            return tuple(limited)


@dataclass(frozen=True, slots=True)
class BlockTermShape:
    """The shape of a block-term form of one ``(out_size, in_size)`` matrix.

    Attributes:
        in_modes: ``(I_1..I_d)``; their product is ``in_size``, or more when the input is padded
            with zeros.
        out_modes: ``(J_1..J_d)``; their product is ``out_size``, or more when rows are padded.
        ranks: Tucker ranks ``(R_1..R_d)``.
        n_blocks: CP rank ``N``, the number of Tucker blocks summed.
        in_size: columns of the matrix; the product of ``in_modes`` when left at 0.
        out_size: rows of the matrix; the product of ``out_modes`` when left at 0.
        n_gates: how many equal row groups the matrix stacks. Row padding is added at the end of
            each group, so the gate index stays the slowest part of ``j_1``.
        core: ``"full"``, or for one block of order 2 with equal ranks ``"identity"``: a full core could be
            merged into a factor there, so it is left out.
        row_order: whether the form is of the matrix with the rows of each gate in an order of its own, the same
            in all gates. The order is stored and counted, one integer for each row of a gate.
        column_order: likewise for the columns.

    Raises:
        ShapeError: lengths differ or are above :data:`MAX_ORDER`, a number is below 1 or above :data:`MAX_SIZE`,
            the modes do not cover the matrix, padded or ordered rows do not divide into the gates, or there is no
            such core.
    """

    in_modes: tuple[int, ...]
    out_modes: tuple[int, ...]
    ranks: tuple[int, ...]
    n_blocks: int = 1
    in_size: int = 0
    out_size: int = 0
    n_gates: int = 1
    core: Core = "full"
    row_order: bool = False
    column_order: bool = False

    @classmethod
    def low_rank(cls, out_size: int, in_size: int, rank: int, n_gates: int = 1) -> BlockTermShape:
        """A plain low-rank matrix: modes ``(I, 1)`` by ``(1, J)`` without a core, ``rank (I + J)`` parameters."""
        return cls((in_size, 1), (1, out_size), (rank, rank), n_gates=n_gates, core="identity")

    def __post_init__(self) -> None:
        for name in ("in_modes", "out_modes", "ranks"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        check_order(max(len(self.in_modes), len(self.out_modes), len(self.ranks)))
        object.__setattr__(self, "in_size", self.in_size or self.padded_in)
        object.__setattr__(self, "out_size", self.out_size or self.padded_out)
        self._check()

    def _check(self) -> None:
        if not self.order or not len(self.in_modes) == len(self.out_modes) == len(self.ranks):
            raise ShapeError(
                f"in_modes {self.in_modes}, out_modes {self.out_modes} and ranks {self.ranks} must have "
                "the same length, at least 1. Give one input mode, one output mode and one rank per mode."
            )
        numbers = (
            *self.in_modes,
            *self.out_modes,
            *self.ranks,
            self.n_blocks,
            self.in_size,
            self.out_size,
            self.n_gates,
        )
        if min(numbers) < 1:
            raise ShapeError(
                f"modes, ranks, sizes and the CP rank must be at least 1, but {self} has a smaller number."
            )
        if max(numbers) > MAX_SIZE:
            raise ShapeError(
                f"modes, ranks, sizes and the CP rank must be at most {MAX_SIZE}, but one is larger. Use smaller ones."
            )
        if self.padded_in < self.in_size or self.padded_out < self.out_size:
            raise ShapeError(
                f"modes {self.out_modes} x {self.in_modes} cover {self.padded_out} x {self.padded_in}, "
                f"but the matrix is {self.out_size} x {self.in_size}. Choose modes whose products reach it."
            )
        if self.padded_out != self.out_size and (self.out_modes[0] % self.n_gates or self.out_size % self.n_gates):
            raise ShapeError(
                f"padded output modes {self.out_modes} must carry the {self.n_gates} gates in the first one. "
                f"Make the first output mode a multiple of {self.n_gates}."
            )
        if not isinstance(self.row_order, bool) or not isinstance(self.column_order, bool):
            raise ShapeError(
                f"row_order and column_order must be true or false, but {self.row_order!r} and "
                f"{self.column_order!r} were given."
            )
        if self.row_order and self.out_size % self.n_gates:
            raise ShapeError(
                f"{self.out_size} rows of {self.n_gates} gates cannot be ordered alike in each. Leave their order."
            )
        if self.core not in get_args(Core):
            raise ShapeError(f"core must be one of {', '.join(get_args(Core))}, but {self.core!r} was given.")
        if self.core == "identity" and (self.order, self.n_blocks, len(set(self.ranks))) != (2, 1, 1):
            raise ShapeError(
                f"an identity core is for one block of order 2 with equal Tucker ranks, but there are {self.n_blocks} "
                f"of order {self.order} with ranks {self.ranks}. Use a full core."
            )

    @property
    def order(self) -> int:
        """``d``, the order of the core."""
        return len(self.in_modes)

    @property
    def mode_sizes(self) -> tuple[int, ...]:
        """``I_k * J_k``: the mode sizes of the tensor that the Tucker blocks decompose."""
        return tuple(i * j for i, j in zip(self.in_modes, self.out_modes, strict=True))

    @property
    def padded_in(self) -> int:
        """Columns after padding, ``prod I_k``."""
        return math.prod(self.in_modes)

    @property
    def padded_out(self) -> int:
        """Rows after padding, ``prod J_k``."""
        return math.prod(self.out_modes)

    @property
    def core_shape(self) -> tuple[int, ...]:
        """``(N, R_1..R_d)``, also of a core that is not stored."""
        return (self.n_blocks, *self.ranks)

    @property
    def factor_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """``(N, I_k, J_k, R_k)`` for each mode."""
        modes = zip(self.in_modes, self.out_modes, self.ranks, strict=True)
        return tuple((self.n_blocks, i, j, r) for i, j, r in modes)

    @property
    def tensor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors that hold the parameters: cores unless they are the identity, then the factors."""
        return self.factor_shapes if self.core == "identity" else (self.core_shape, *self.factor_shapes)

    @property
    def order_sizes(self) -> dict[str, int]:
        """Length of each order that is stored beside the parameters, ``row_order`` and ``column_order``, by name."""
        sizes = {"row_order": self.out_size // self.n_gates, "column_order": self.in_size}
        return {name: size for name, size in sizes.items() if getattr(self, name)}

    @property
    def is_low_rank(self) -> bool:
        """Whether this is a plain low-rank matrix, as :meth:`low_rank` makes it."""
        return self.core == "identity" and (self.in_modes[1], self.out_modes[0]) == (1, 1)

    @property
    def n_params(self) -> int:
        """``P = N (sum_k I_k J_k R_k + prod_k R_k)``, without the last term for an identity core, and stored orders."""
        return sum(math.prod(shape) for shape in self.tensor_shapes) + sum(self.order_sizes.values())

    @property
    def dense_params(self) -> int:
        """Entries of the dense matrix, ``J * I``, without padding."""
        return self.in_size * self.out_size

    @property
    def ratio(self) -> float:
        """Weights ratio, dense over block-term; above 1 is smaller."""
        return self.dense_params / self.n_params

    def ordered(self, names: Collection[str] = ()) -> BlockTermShape:
        """The same shape with the orders named, ``row_order`` and ``column_order``, and no other."""
        return replace(self, row_order="row_order" in names, column_order="column_order" in names)

    def limited(self) -> BlockTermShape:
        """The same shape with ranks lowered to what its modes can hold (see :func:`limit_ranks`)."""
        return replace(self, ranks=limit_ranks(self.mode_sizes, self.ranks))

    def to_dict(self) -> dict[str, Any]:
        """Plain values and lists, as JSON writes them; orders are named only where there are any."""
        return {
            "in_modes": list(self.in_modes),
            "out_modes": list(self.out_modes),
            "tucker_ranks": list(self.ranks),
            "cp_rank": self.n_blocks,
            "in_size": self.in_size,
            "out_size": self.out_size,
            "n_gates": self.n_gates,
            "core": self.core,
            **dict.fromkeys(self.order_sizes, True),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BlockTermShape:
        """The inverse of :meth:`to_dict`; a core that is not named is full, an order that is not named is not there.

        Raises:
            ShapeError: a number is missing or is no integer, or the shape is inconsistent.
        """
        try:
            in_modes, out_modes, ranks = (
                tuple(int(value) for value in data[name]) for name in ("in_modes", "out_modes", "tucker_ranks")
            )
            n_blocks, in_size, out_size, n_gates = (
                int(data[name]) for name in ("cp_rank", "in_size", "out_size", "n_gates")
            )
            core, orders = data.get("core", "full"), (data.get(name, False) for name in ("row_order", "column_order"))
            return cls(in_modes, out_modes, ranks, n_blocks, in_size, out_size, n_gates, core, *orders)
        except (KeyError, TypeError, ValueError) as error:
            raise ShapeError(f"not a block-term shape ({type(error).__name__}: {error}): {data!r}") from error


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """How one weight matrix is written: one block-term form, or one for each gate.

    Attributes:
        part: the shape of each block-term form.
        gates: ``"fused"``, one form for the whole matrix, or ``"separate"``, forms of equal shape whose rows are
            stacked in the order of :data:`GATES`.
        n_separate: how many gates are separate: 4 of an LSTM, 3 of a GRU.

    Raises:
        ShapeError: no cell has so many gates.
    """

    part: BlockTermShape
    gates: Gates = "fused"
    n_separate: int = 4

    def __post_init__(self) -> None:
        if self.n_separate not in _SEPARATE:
            raise ShapeError(f"4 gates of an LSTM can be separate, or 3 of a GRU, but not {self.n_separate!r}.")
        if self.gates == "fused":
            object.__setattr__(self, "n_separate", 4)

    @classmethod
    def of_gates(cls, part: BlockTermShape, gates: Gates, n_gates: int) -> MatrixShape:
        """The form of a matrix of so many gates, which are separate or fused."""
        return cls(part, gates, n_gates if gates == "separate" else 4)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Name of each form below the matrix's own key: ``""``, or ``"gate_i"`` and so on."""
        return ("",) if self.gates == "fused" else tuple(f"gate_{name}" for name in _SEPARATE[self.n_separate])

    @property
    def n_parts(self) -> int:
        """How many block-term forms are stacked: 1, or that of the gates."""
        return 1 if self.gates == "fused" else self.n_separate

    @property
    def n_gates(self) -> int:
        """Row groups of the matrix, all parts together."""
        return self.n_parts * self.part.n_gates

    @property
    def in_size(self) -> int:
        """Columns of the matrix."""
        return self.part.in_size

    @property
    def out_size(self) -> int:
        """Rows of the matrix, all parts together."""
        return self.n_parts * self.part.out_size

    @property
    def n_params(self) -> int:
        """Parameters of all parts together."""
        return self.n_parts * self.part.n_params

    @property
    def dense_params(self) -> int:
        """Entries of the dense matrix."""
        return self.in_size * self.out_size

    @property
    def ratio(self) -> float:
        """Weights ratio, dense over block-term; above 1 is smaller."""
        return self.dense_params / self.n_params

    def ordered(self, names: Collection[str] = ()) -> MatrixShape:
        """The same with the orders named, ``row_order`` and ``column_order``, and no other."""
        return replace(self, part=self.part.ordered(names))

    def limited(self) -> MatrixShape:
        """The same with ranks lowered to what the modes can hold."""
        return replace(self, part=self.part.limited())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON writes them; how many gates are separate is named only where an LSTM has others."""
        separate = {} if self.n_separate == 4 else {"n_separate": self.n_separate}
        return {"gates": self.gates, **separate, **self.part.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MatrixShape:
        """The inverse of :meth:`to_dict`.

        Raises:
            ShapeError: as :meth:`BlockTermShape.from_dict`, or unknown ``gates``, or so many that none has.
        """
        gates = data.get("gates")
        if gates not in ("fused", "separate"):
            raise ShapeError(f"gates must be 'fused' or 'separate', but {gates!r} was given.")
        return cls(BlockTermShape.from_dict(data), gates, data.get("n_separate", 4))
