"""A weight matrix held as block-term parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import init

from btcompress.blockterm import BlockTerm, init_scale
from btcompress.contraction import MOVE_COST, plan_chain
from btcompress.errors import BTCompressError, ShapeError
from btcompress.shapes import MatrixShape

#: How to multiply by a factorized matrix: by its factors, by the dense matrix formed anew, or by the cheaper.
Method = Literal["auto", "factored", "dense"]

#: Forming one entry of the dense matrix moves about this many numbers.
_FORM_MOVES = 8


def check_method(method: Method) -> Method:
    """The method itself.

    Raises:
        BTCompressError: there is no such method.
    """
    if method not in get_args(Method):
        raise BTCompressError(f"method must be one of {', '.join(get_args(Method))}, but {method!r} was given.")
    return method


class Factors(nn.Module):
    """The factors ``A_1..A_d`` under the names ``0..d-1``.

    ``nn.ParameterList`` would be empty in the replicas of ``nn.DataParallel``; plain attributes are not.
    """

    def __init__(self, factors: Iterable[Tensor]) -> None:
        super().__init__()
        self.order = 0
        for factor in factors:
            self.register_parameter(str(self.order), nn.Parameter(factor))
            self.order += 1

    def tensors(self) -> tuple[Tensor, ...]:
        """The factors, in the order of the modes."""
        return tuple(getattr(self, str(k)) for k in range(self.order))


class BTWeight(nn.Module):
    """A ``(out, in)`` matrix ``W`` in block-term form; see :class:`btcompress.BlockTerm`.

    Its parameters are ``cores`` and ``factors.0`` to ``factors.{d-1}``, or those of each gate below
    ``gate_i``, ``gate_f``, ``gate_g`` and ``gate_o`` where the gates are separate. An identity core is no
    parameter, and there is no ``cores`` then. Orders of rows or columns, where the shape has them, are the
    buffers ``row_order`` and ``column_order`` beside the factors: they are kept, but not trained.

    They are not set at first: call :meth:`reset_parameters` or :meth:`load`.

    Args:
        shape: modes, ranks and gates.
        device: where the parameters are.
        dtype: of the parameters.
    """

    def __init__(
        self, shape: MatrixShape, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
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
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of ``W``."""
        return self.parts[0].cores.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parts[0].cores.device

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

    def matmul(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """``inputs @ W.T + b`` by the factors; ``(..., in)`` to ``(..., out)``."""
        parts = self.parts
        biases = [None] * len(parts) if bias is None else bias.chunk(len(parts))
        products = [part.matmul(inputs, own) for part, own in zip(parts, biases, strict=True)]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    @property
    def is_low_rank(self) -> bool:
        """Whether ``W`` is a plain product of two factors."""
        return self.shape.gates == "fused" and self.shape.part.is_low_rank

    def low_rank_factors(self) -> tuple[Tensor, Tensor] | None:
        """``(out, R)`` and ``(R, in)``, of which ``W`` is the product; None if it is another one."""
        return self.parts[0].low_rank_factors() if self.is_low_rank else None

    def to_dense(self) -> Tensor:
        """``W``, shape ``(out, in)``; differentiable."""
        return torch.cat([part.to_dense() for part in self.parts])

    def prefers_dense(self, n_rows: int, method: Method) -> bool:
        """Whether to multiply ``n_rows`` rows by the dense matrix, formed anew, rather than by the factors.

        ``auto`` compares estimates in floating-point operations, one number moved through memory
        counting as ``MOVE_COST`` of them. The factors cost what :func:`btcompress.contraction.plan_chain`
        says, for every row. The dense matrix costs ``2 N min_k R_k`` and 8 moves for each of its entries
        to form it, then 2 for each entry and row, and the moves of the row's inputs and outputs.
        """
        if method != "auto":
            return method == "dense"
        shape, part = self.shape, self.shape.part
        chain = plan_chain(part.n_blocks, part.in_modes, part.out_modes, part.ranks)
        form = shape.dense_params * (2 * part.n_blocks * min(part.ranks) + _FORM_MOVES * MOVE_COST)
        multiply = 2 * shape.dense_params + MOVE_COST * (shape.in_size + shape.out_size)
        return form + n_rows * multiply < n_rows * shape.n_parts * chain.cost

    def __repr__(self) -> str:
        part, shape = self.shape.part, self.shape
        core = "" if part.core == "full" else f", core={part.core}"
        gates = "" if shape.gates == "fused" else f", gates={shape.gates}"
        orders = "".join(f", {name}" for name in part.order_sizes)
        return (
            f"BTWeight({shape.out_size}x{shape.in_size}, in_modes={part.in_modes}, out_modes={part.out_modes}, "
            f"cp_rank={part.n_blocks}, tucker_ranks={part.ranks}{core}{gates}{orders}, {shape.n_params} parameters)"
        )


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


def resolve(weight: Tensor | BTWeight, n_rows: int, method: Method) -> Tensor | BTWeight:
    """What to multiply ``n_rows`` rows by: the dense matrix where that is cheaper or asked for, else the factors."""
    if isinstance(weight, BTWeight) and weight.prefers_dense(n_rows, method):
        return weight.to_dense()
    return weight


def multiply(inputs: Tensor, weight: Tensor | BTWeight, bias: Tensor | None) -> Tensor:
    """``inputs @ W.T + b``; ``(..., in)`` to ``(..., out)``."""
    if isinstance(weight, Tensor):
        return nn.functional.linear(inputs, weight, bias)
    return weight.matmul(inputs, bias)
