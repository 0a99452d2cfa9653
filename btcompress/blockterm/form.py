"""The block-term form of a matrix: stacked cores and factors, their dense matrix and their product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btcompress.blockterm.dense import padded_dense
from btcompress.blockterm.product import Product, require_for
from btcompress.contraction import own_sizes, prepare_chain
from btcompress.errors import ShapeError
from btcompress.shapes import BlockTermShape

#: Entries of the rows that are formed at a time, unless a single row has more: few enough to stay in a CPU's caches.
SLAB_ENTRIES = 2**19


@dataclass(frozen=True, slots=True, eq=False)
class BlockTerm:
    """A sum of ``N`` Tucker blocks over paired input and output modes (Ye et al. 2018, eq. 4).

    ``W[j_1..j_d, i_1..i_d] = sum_n sum_{r_1..r_d} G[n, r_1..r_d] prod_k A_k[n, i_k, j_k, r_k]``,
    C order: ``i_1`` and ``j_1`` vary slowest. Rows and columns beyond the true size are padding.

    Attributes:
        shape: mode sizes, ranks and the true matrix size.
        cores: ``G``, shape ``(N, R_1..R_d)``; where the shape says so the identity, which is no parameter.
        factors: ``A_k``, shape ``(N, I_k, J_k, R_k)``, one tensor per mode.
        orders: integers, no parameters: the orders that ``shape`` says there are, rows first. Row ``j`` of each gate
            of the sum above is row ``row_order[j]`` of that gate of the matrix, and so for columns. They may lie on the
            CPU while cores and factors are elsewhere.

    Raises:
        ShapeError: a tensor does not have the shape that ``shape`` gives it.
    """

    shape: BlockTermShape
    cores: Tensor
    factors: tuple[Tensor, ...]
    orders: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        object.__setattr__(self, "orders", tuple(self.orders))
        given = tuple(own_sizes(tensor) for tensor in (self.cores, *self.factors, *self.orders))
        orders = ((size,) for size in self.shape.order_sizes.values())
        expected = (self.shape.core_shape, *self.shape.factor_shapes, *orders)
        if given != expected:
            raise ShapeError(f"cores, factors and orders have shapes {given}, but {expected} were expected.")

    @classmethod
    def of(cls, shape: BlockTermShape, tensors: Sequence[Tensor], orders: Sequence[Tensor] = ()) -> BlockTerm:
        """The form whose parameters are ``tensors``, in the order of :attr:`tensors`, with these :attr:`orders`.

        Raises:
            ShapeError: a tensor does not have the shape that ``shape`` gives it.
        """
        if shape.core == "full":
            return cls(shape, tensors[0], tuple(tensors[1:]), tuple(orders))
        like = tensors[0]
        identity = torch.eye(shape.ranks[0], dtype=like.dtype, device=like.device)
        return cls(shape, identity.unsqueeze(0), tuple(tensors), tuple(orders))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters: cores, unless they are the identity, then the factor of each mode."""
        return self.factors if self.shape.core == "identity" else (self.cores, *self.factors)

    @property
    def n_params(self) -> int:
        """Parameters, and integers of orders, counted on the tensors themselves."""
        return params_of((self,))

    def to(self, target: torch.dtype | torch.device | str) -> BlockTerm:
        """The same form on another device or in another dtype, of which orders know none."""
        factors = tuple(factor.to(target) for factor in self.factors)
        orders = self.orders if isinstance(target, torch.dtype) else tuple(order.to(target) for order in self.orders)
        return BlockTerm(self.shape, self.cores.to(target), factors, orders)

    def ordered(self, orders: Mapping[str, Tensor]) -> BlockTerm:
        """The same cores and factors as the form of a matrix whose rows or columns stand in other orders.

        Args:
            orders: ``row_order`` and ``column_order``, or one of them, as :attr:`orders` are.

        Raises:
            ShapeError: an order has another length.
        """
        names = ("row_order", "column_order")
        kept = tuple(orders[name] for name in names if name in orders)
        return BlockTerm(self.shape.ordered(orders), self.cores, self.factors, kept)

    def to_dense(self) -> Tensor:
        """The ``(out_size, in_size)`` matrix; differentiable.

        Raises:
            MemoryLimitError: it needs more memory than there is.
        """
        require_for(self.shape, self.cores, self.shape.padded_out * self.shape.padded_in)
        rows = self._in_place(self._unpad(padded_dense(self.cores, self.factors))[:, : self.shape.in_size])
        row_order = self._row_order()
        return rows if row_order is None else rows.index_select(0, row_order.argsort())

    def low_rank_factors(self) -> tuple[Tensor, Tensor]:
        """``(out_size, R)`` and ``(R, in_size)``, of which the matrix is the product; differentiable.

        Raises:
            ShapeError: it is no plain low-rank matrix.
        """
        if not self.shape.is_low_rank:
            raise ShapeError(f"{self.shape} is no plain low-rank matrix. Form it dense.")
        right, left = self.factors[0][0, :, 0].T, self._unpad(self.factors[1][0, 0])
        row_order = self._row_order()
        left = left if row_order is None else left.index_select(0, row_order.argsort())
        return left, self._in_place(right[:, : self.shape.in_size])

    def dense_slabs(self) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """The dense matrix a slab of rows at a time, so that large ones are never held whole.

        Yields:
            Where the slab's rows are in the matrix, as an index, and the rows, shape ``(n, in_size)``, about
            ``SLAB_ENTRIES`` in all; none that are all padding.

        Raises:
            MemoryLimitError: a slab needs more memory than there is.
        """
        shape = self.shape
        require_for(shape, self.cores, slab_entries(shape))
        row_order = self._row_order()
        gate_rows, kept_rows = shape.padded_out // shape.n_gates, shape.out_size // shape.n_gates
        for outputs in _slabs(shape):
            first = 0
            for part, size in zip(outputs, shape.out_modes, strict=True):
                first = first * size + part.start
            n_rows = math.prod(part.stop - part.start for part in outputs)
            if shape.padded_out != shape.out_size:
                gate, local = divmod(first, gate_rows)
                first, n_rows = gate * kept_rows + local, min(n_rows, kept_rows - local)
            if n_rows > 0:
                slab = padded_dense(
                    self.cores, [factor[:, :, part] for factor, part in zip(self.factors, outputs, strict=True)]
                )
                rows = slice(first, first + n_rows)
                yield rows if row_order is None else row_order[rows], self._in_place(slab[:n_rows, : shape.in_size])

    def matmul(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """``inputs @ W.T + b`` without forming ``W``.

        Args:
            inputs: shape ``(..., in_size)``.
            bias: ``b``, shape ``(out_size,)``; none where left out.

        Returns:
            Shape ``(..., out_size)``; differentiable in the inputs, bias, cores and factors.

        Raises:
            MemoryLimitError: inputs and outputs, padded, need more memory than there is.
        """
        return self.prepare().matmul(inputs, bias)

    def prepare(self) -> Product:
        """All of the product that does not depend on the rows, formed; differentiable."""
        if self.shape.is_low_rank:
            return Product(self.shape, self.low_rank_factors())
        chain = prepare_chain((self.cores, *self.factors))
        columns = self.orders[-1].to(self.cores.device).long() if self.shape.column_order else None
        return Product(self.shape, chain, columns, self.kept_rows())

    def kept_rows(self) -> Tensor | None:
        """Where in the padded form each row of the matrix is, int64; None if there are no others, in the same order."""
        shape, row_order = self.shape, self._row_order()
        if shape.padded_out == shape.out_size:
            return row_order if row_order is None else row_order.argsort()
        gates = torch.arange(shape.padded_out, device=self.cores.device).reshape(shape.n_gates, -1)
        kept = gates[:, : shape.out_size // shape.n_gates].flatten()
        return kept if row_order is None else kept[row_order.argsort()]

    def kept_columns(self) -> Tensor | None:
        """Where in the padded form each column of the matrix is, int64; None if there are no others, in this order."""
        if self.shape.column_order:
            return self.orders[-1].to(self.cores.device).argsort()
        padded = self.shape.padded_in != self.shape.in_size
        return torch.arange(self.shape.in_size, device=self.cores.device) if padded else None

    def _row_order(self) -> Tensor | None:
        """The order of all rows, gate after gate, int64; None if they stand as in the matrix."""
        if not self.shape.row_order:
            return None
        size = self.shape.order_sizes["row_order"]
        gates = torch.arange(0, self.shape.out_size, size, device=self.cores.device)
        return (gates[:, None] + self.orders[0].to(gates.device)).flatten()

    def _in_place(self, rows: Tensor) -> Tensor:
        """Rows with their columns where the matrix has them."""
        return rows.index_select(1, self.orders[-1].to(rows.device).argsort()) if self.shape.column_order else rows

    def _unpad(self, rows: Tensor) -> Tensor:
        """Drop the padding at the end of each gate from ``(padded_out, n)`` rows."""
        shape = self.shape
        if shape.padded_out == shape.out_size:
            return rows
        gates = rows.reshape(shape.n_gates, shape.padded_out // shape.n_gates, -1)
        return gates[:, : shape.out_size // shape.n_gates].reshape(shape.out_size, -1)


def slab_entries(shape: BlockTermShape) -> int:
    """Most entries of a slab as :meth:`BlockTerm.dense_slabs` forms them, padding included."""
    return math.prod(part.stop - part.start for part in next(_slabs(shape))) * shape.padded_in


def _slabs(shape: BlockTermShape) -> Iterator[tuple[slice, ...]]:
    """The output indices of each slab: one of each of the first modes, some of the next, all of the others."""
    below = [math.prod(shape.out_modes[k + 1 :]) * shape.padded_in for k in range(shape.order)]
    split = next((k for k, entries in enumerate(below) if entries <= SLAB_ENTRIES), shape.order - 1)
    most = max(1, SLAB_ENTRIES // below[split])
    if split == 0 and shape.padded_out != shape.out_size:
        # Gates end in padding, so that no slab may have rows of two.
        of_gate = shape.out_modes[0] // shape.n_gates
        most = math.gcd(min(most, of_gate), of_gate)
    steps = [1] * split + [most, *shape.out_modes[split + 1 :]]
    return itertools.product(
        *(
            [slice(start, min(start + step, size)) for start in range(0, size, step)]
            for size, step in zip(shape.out_modes, steps, strict=True)
        )
    )


def params_of(parts: Sequence[BlockTerm]) -> int:
    """Parameters of a matrix's forms, and integers of their orders; what is one and the same tensor counts once."""
    orders = {order.data_ptr(): order.numel() for part in parts for order in part.orders}
    return sum(tensor.numel() for part in parts for tensor in part.tensors) + sum(orders.values())


def init_scale(shape: BlockTermShape, variance: float) -> tuple[float, float]:
    """Standard deviations of random cores and factors that give the entries of ``W`` this variance.

    Each entry of ``W`` sums ``N prod_k R_k`` products of one core entry and ``d`` factor entries; all
    terms being independent with mean zero, cores of variance ``1 / (N prod_k R_k)`` and factors of
    variance ``variance**(1/d)`` do it. With an identity core, each entry sums ``R`` products of two factor
    entries, which then have variance ``(variance / R)**(1/2)``.
    """
    if shape.core == "identity":
        return 1.0, (variance / shape.ranks[0]) ** 0.25
    return math.prod(shape.core_shape) ** -0.5, variance ** (0.5 / shape.order)
