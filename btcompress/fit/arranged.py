"""A matrix as a form takes it: its rows and columns in the form's orders, padded to its mode sizes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import pad

from btcompress.shapes import BlockTermShape


def in_orders(matrix: Tensor, orders: Mapping[str, Tensor], n_gates: int) -> Tensor:
    """The matrix with the rows of each gate, and the columns, in these orders.

    Args:
        matrix: shape ``(out_size, in_size)``.
        orders: ``row_order``, integers of shape ``(out_size / n_gates,)``, and ``column_order``, ``(in_size,)``; a
            side without one stays as it is.
        n_gates: row groups, ordered alike.
    """
    if "row_order" in orders:
        rows = orders["row_order"].to(matrix.device)
        matrix = matrix.reshape(n_gates, -1, matrix.shape[1]).index_select(1, rows).reshape(matrix.shape)
    if "column_order" in orders:
        matrix = matrix.index_select(1, orders["column_order"].to(matrix.device))
    return matrix


def pad_matrix(matrix: Tensor, shape: BlockTermShape) -> Tensor:
    """The matrix with zero columns and, at the end of each gate, zero rows; itself if nothing is padded."""
    columns = pad(matrix, (0, shape.padded_in - shape.in_size)) if shape.padded_in != shape.in_size else matrix
    return pad_rows(columns, shape)


def pad_rows(rows: Tensor, shape: BlockTermShape) -> Tensor:
    """Rows of the matrix's outputs, shape ``(out_size, n)``, with zero rows at the end of each gate."""
    if shape.padded_out == shape.out_size:
        return rows
    gates = rows.reshape(shape.n_gates, shape.out_size // shape.n_gates, -1)
    missing = (shape.padded_out - shape.out_size) // shape.n_gates
    return pad(gates, (0, 0, 0, missing)).reshape(shape.padded_out, -1)
