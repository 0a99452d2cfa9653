"""Index letters of a block-term form."""

from __future__ import annotations

import string
from functools import lru_cache

from btcompress.errors import ShapeError


@lru_cache
def letters(order: int) -> tuple[str, str, str, str, str]:
    """Index letters of a block-term form: batch and block, then inputs, outputs and ranks of each mode."""
    if 3 * order + 2 > len(string.ascii_letters):
        raise ShapeError(f"order {order} has more indices than einsum has letters. Use an order of at most 16.")
    batch, block, rest = string.ascii_letters[0], string.ascii_letters[1], string.ascii_letters[2:]
    return batch, block, rest[:order], rest[order : 2 * order], rest[2 * order : 3 * order]


@lru_cache
def operand_letters(order: int) -> tuple[str, ...]:
    """Index letters of the cores, then of each factor."""
    _, block, i, j, r = letters(order)
    return (block + r, *(block + i[k] + j[k] + r[k] for k in range(order)))
