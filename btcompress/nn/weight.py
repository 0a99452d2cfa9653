"""A weight matrix held as block-term parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import init

from btcompress.blockterm import BlockTerm, Product, init_scale
from btcompress.contraction import MOVE_COST, plan_chain
from btcompress.errors import ShapeError
from btcompress.nn.ways import Method, is_low_rank
from btcompress.shapes import MatrixShape

#: Forming one entry of the dense matrix moves about this many numbers.
_FORM_MOVES = 8


class Factors(nn.Module):
    """The factors ``A_1..A_d`` under the names ``0..d-1``.

    ``nn.ParameterList`` would be empty in the replicas of ``nn.DataParallel``; plain attributes are not.
    """

    def __init__(self, factors: Iterable[Tensor]) -> None:
        super().__init__()
        given = [nn.Parameter(factor) for factor in factors]
        self.names = tuple(str(k) for k in range(len(given)))
        for name, factor in zip(self.names, given, strict=True):
            self.register_parameter(name, factor)

    def tensors(self) -> tuple[Tensor, ...]:
        """The factors, in the order of the modes."""
        # What was parametrized for a while has come back last.
        found = [self._parameters.get(name) for name in self.names]
        kept = tuple(factor for factor in found if factor is not None)
        return kept if len(kept) == len(found) else tuple(getattr(self, name) for name in self.names)


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """:class:`btcompress.blockterm.Product` of each form of a matrix, whose rows are stacked."""

    parts: tuple[Product, ...]

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """``left`` and ``right`` of ``W = left @ right``; None for other forms."""
        return self.parts[0].low_rank if len(self.parts) == 1 else None

    def matmul(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """``inputs @ W.T + b``; ``(..., in)`` to ``(..., out)``."""
        if len(self.parts) == 1:
            return self.parts[0].matmul(inputs, bias)
        biases = [None] * len(self.parts) if bias is None else bias.chunk(len(self.parts))
        return torch.cat([part.matmul(inputs, own) for part, own in zip(self.parts, biases, strict=True)], dim=-1)


class BTWeight(nn.Module):
    """A ``(out, in)`` matrix ``W`` in block-term form; see :class:`btcompress.BlockTerm`.

    Its parameters are ``cores`` and ``factors.0`` to ``factors.{d-1}``, or those of each gate below
    ``gate_i`` and so on (:data:`btcompress.shapes.GATES`) where the gates are separate. An identity core is no
    parameter, and there is no ``cores`` then. Orders of rows or columns, where the shape has them, are the
    buffers ``row_order`` and ``column_order`` beside the factors: they are kept, but not trained.

    They are not set at first: call :meth:`reset_parameters` or :meth:`load`.

    Args:
        shape: modes, ranks and gates.
        device: where the parameters are.
        dtype: of the parameters.

    Attributes:
        is_low_rank: whether ``W`` is a plain product of two factors.
        is_in_place: whether its rows and columns stand in the order of the factors, without padding.
    """

    def __init__(
        self, shape: MatrixShape, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        self.is_low_rank = is_low_rank(shape)
        part = shape.part
        self.is_in_place = not part.order_sizes and part.dense_params == part.padded_out * part.padded_in
        if shape.gates == "fused":
            if shape.part.core == "full":
                self.cores = nn.Parameter(torch.empty(shape.part.core_shape, device=device, dtype=dtype))
            self.factors = Factors(torch.empty(size, device=device, dtype=dtype) for size in shape.part.factor_shapes)
            for name, size in shape.part.order_sizes.items():
                self.register_buffer(name, torch.empty(size, device=device, dtype=torch.int32))
        else:
            for name in shape.part_names:
                self.add_module(name, BTWeight(MatrixShape(shape.part), device, dtype))

    def reset_parameters(self, variance: float, generator: torch.Generator | None = None) -> None:
        """Draw cores and factors from normal distributions that give the entries of ``W`` this variance.

        Rows and columns get the order that the matrix has.
        """
        core_std, factor_std = init_scale(self.shape.part, variance)
        for part in self.parts:
            for tensor in part.tensors:
                std = core_std if tensor is part.cores else factor_std
                init.normal_(tensor, std=std, generator=generator)
            for order in part.orders:
                torch.arange(len(order), out=order)

    @property
    def parts(self) -> tuple[BlockTerm, ...]:
        """The block-term forms of the parameters: one, or one for each gate."""
        if self.shape.gates == "fused":
            # An identity core is made anew each time: a buffer would be lost by to_empty() and on the meta device.
            cores = (self.cores,) if self.shape.part.core == "full" else ()
            orders = [self.get_buffer(name) for name in self.shape.part.order_sizes]
            return (BlockTerm.of(self.shape.part, (*cores, *self.factors.tensors()), orders),)
        return tuple(part for name in self.shape.part_names for part in getattr(self, name).parts)

    @property
    def _first(self) -> Tensor:
        """One of the factors."""
        return (self if self.shape.gates == "fused" else getattr(self, self.shape.part_names[0])).factors.tensors()[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of ``W``."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._first.device

    def load(self, parts: tuple[BlockTerm, ...]) -> None:
        """Copy fitted forms into the parameters and orders.

        Raises:
            ShapeError: the forms have other shapes.
        """
        if [part.shape for part in parts] != [own.shape for own in self.parts]:
            raise ShapeError(f"{self} cannot hold {[part.shape for part in parts]}. Build it with their shape.")
        with torch.no_grad():
            for own, part in zip(self.parts, parts, strict=True):
                pairs = zip((*own.tensors, *own.orders), (*part.tensors, *part.orders), strict=True)
                for target, source in pairs:
                    target.copy_(source)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters and orders."""
        if self.shape.gates == "separate":
            return tuple(tensor for name in self.shape.part_names for tensor in getattr(self, name).tensors)
        cores = (self.cores,) if self.shape.part.core == "full" else ()
        orders = (self.get_buffer(name) for name in self.shape.part.order_sizes)
        return (*cores, *self.factors.tensors(), *orders)

    def prepare(self) -> Products:
        """All of the product that does not depend on the rows, formed; differentiable."""
        factors = self.low_rank_factors()
        if factors is not None:
            return Products((Product(self.shape.part, factors),))
        return Products(tuple(part.prepare() for part in self.parts))

    def matmul(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """``inputs @ W.T + b`` by the factors; ``(..., in)`` to ``(..., out)``."""
        return self.prepare().matmul(inputs, bias)

    def low_rank_factors(self) -> tuple[Tensor, Tensor] | None:
        """``(out, R)`` and ``(R, in)``, of which ``W`` is the product; None if it is another one. Differentiable."""
        if not self.is_low_rank:
            return None
        if not self.is_in_place:
            return self.parts[0].low_rank_factors()
        right, left = self.factors.tensors()
        return left.view(self.shape.out_size, -1), right.view(self.shape.in_size, -1).T

    def to_dense(self) -> Tensor:
        """``W``, shape ``(out, in)``; differentiable."""
        factors = self.low_rank_factors() if self.is_in_place else None
        if factors is not None:
            return factors[0] @ factors[1]
        parts = [part.to_dense() for part in self.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prefers_dense(self, n_rows: int, method: Method, *, formed: bool = False, copied: bool = False) -> bool:
        """Whether to multiply ``n_rows`` rows by the dense matrix rather than by the factors.

        ``auto`` compares estimates in floating-point operations, one number moved through memory
        counting as ``MOVE_COST`` of them. The factors cost what :func:`btcompress.contraction.plan_chain`
        says, for every row. The dense matrix costs ``2 N min_k R_k`` and 8 moves for each of its entries
        to form it, unless it is there (``formed``) and has to be read only; then 2 for each entry and row, and the
        moves of the row's inputs and outputs. Where what the factors give is ``copied`` by a product with an identity,
        that counts for them.
        """
        if method != "auto":
            return method == "dense"
        shape, part = self.shape, self.shape.part
        chain = plan_chain(part.n_blocks, part.in_modes, part.out_modes, part.ranks)
        form = shape.dense_params * (
            MOVE_COST if formed else 2 * part.n_blocks * min(part.ranks) + _FORM_MOVES * MOVE_COST
        )
        multiply = 2 * shape.dense_params + MOVE_COST * (shape.in_size + shape.out_size)
        copy = 2 * shape.out_size**2 if copied else 0
        return form + n_rows * multiply < n_rows * (shape.n_parts * chain.cost + copy)

    def __repr__(self) -> str:
        part, shape = self.shape.part, self.shape
        core = "" if part.core == "full" else f", core={part.core}"
        gates = "" if shape.gates == "fused" else f", gates={shape.gates}"
        orders = "".join(f", {name}" for name in part.order_sizes)
        return (
            f"BTWeight({shape.out_size}x{shape.in_size}, in_modes={part.in_modes}, out_modes={part.out_modes}, "
            f"cp_rank={part.n_blocks}, tucker_ranks={part.ranks}{core}{gates}{orders}, {shape.n_params} parameters)"
        )


#: A matrix, or one that is applied by its factors.
Weight = Tensor | BTWeight

#: What multiplies rows: a matrix, or products by factors, prepared once for all steps.
Multiplier = Tensor | Products


def check_size(name: str, shape: MatrixShape, size: tuple[int, int]) -> MatrixShape:
    """The shape itself.

    Raises:
        ShapeError: it is not the shape of a matrix of this size.
    """
    if (shape.out_size, shape.in_size) != size:
        raise ShapeError(
            f"{name} is {size[0]} x {size[1]}, but its block-term shape is for {shape.out_size} x {shape.in_size}. "
            "Give the shape of this matrix, or a request by which to choose one."
        )
    return shape


def multiply(inputs: Tensor, weight: Multiplier, bias: Tensor | None) -> Tensor:
    """``inputs @ W.T + b``; ``(..., in)`` to ``(..., out)``."""
    if isinstance(weight, Tensor):
        return nn.functional.linear(inputs, weight, bias)
    return weight.matmul(inputs, bias)


def add_product(added: Tensor, weight: Multiplier, rows: Tensor) -> Tensor:
    """``added + rows @ W.T``; ``(n, in)`` to ``(n, out)``."""
    chain = (weight,) if isinstance(weight, Tensor) else weight.low_rank
    if chain is None:
        return added + weight.matmul(rows)
    left, *right = chain
    return torch.addmm(added, torch.mm(rows, right[0].T) if right else rows, left.T)
