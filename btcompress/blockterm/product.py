"""The product of rows with a block-term matrix, all formed beforehand that does not depend on the rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import linear, pad

from btcompress.contraction import Prepared, is_captured
from btcompress.memory import require
from btcompress.shapes import BlockTermShape

#: Bytes from which on it is asked whether there is so much memory, and how often a matrix is there while it is formed.
_WORTH_ASKING = 2**26
_COPIES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """``x @ W.T + b`` for a block-term matrix ``W``, as :meth:`btcompress.BlockTerm.prepare` makes it.

    What it holds may be views of the parameters or be formed of them. Where gradients are on when it is made, it is a
    part of their graph. Kept for longer, it stands for the parameters as they were when it was made, and must be
    dropped when they change.

    Attributes:
        shape: of the matrix.
        operands: of the chain; of a low-rank matrix its two factors, shapes ``(out_size, R)`` and ``(R, in_size)``.
        columns: which column of the matrix each column of the form is, int64; None where they are the same.
        rows: which row of the form, padding included, each row of the matrix is, int64; None where they are the same.
    """

    shape: BlockTermShape
    operands: Prepared | tuple[Tensor, Tensor]
    columns: Tensor | None = None
    rows: Tensor | None = None

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """``left``, ``(out_size, R)``, and ``right``, ``(R, in_size)``, of ``W = left @ right``; None for others."""
        return self.operands if isinstance(self.operands, tuple) else None

    def matmul(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """``inputs @ W.T + b``.

        Args:
            inputs: shape ``(..., in_size)``.
            bias: ``b``, shape ``(out_size,)``; none where left out.

        Returns:
            Shape ``(..., out_size)``; differentiable in the inputs, the bias, and what the product was made of.

        Raises:
            MemoryLimitError: inputs and outputs, padded, need more memory than there is.
        """
        if isinstance(self.operands, tuple):
            left, right = self.operands
            return linear(linear(inputs, right), left, bias)
        shape = self.shape
        rows = inputs.reshape(-1, shape.in_size)
        if not is_captured():
            require_for(shape, rows, len(rows) * (shape.padded_in + shape.padded_out))
        if self.columns is not None:
            rows = rows.index_select(1, self.columns)
        if shape.padded_in != shape.in_size:
            rows = pad(rows, (0, shape.padded_in - shape.in_size))
        if self.rows is None:
            return self.operands.matmul(rows, bias).reshape(*inputs.shape[:-1], shape.out_size)
        products = self.operands.matmul(rows).index_select(1, self.rows)
        product = products.reshape(*inputs.shape[:-1], shape.out_size)
        return product if bias is None else product + bias.to(product.dtype)


def require_for(shape: BlockTermShape, like: Tensor, n_entries: int) -> None:
    """Refuse to form what a few small factors can stand for, but memory cannot hold.

    Args:
        shape: of the matrix.
        like: a tensor of the dtype and on the device of what is to be formed.
        n_entries: how many numbers that has.

    Raises:
        MemoryLimitError: there is not so much memory.
    """
    n_bytes = _COPIES * n_entries * like.element_size()
    if n_bytes > _WORTH_ASKING and like.device.type == "cpu":
        what = f"Forming a {shape.out_size:,} x {shape.in_size:,} matrix of its block terms"
        require(n_bytes, what, "Use it by its factors, where there are fewer rows, or on a machine with more memory.")
