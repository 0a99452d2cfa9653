"""Random block-term forms, and matrices made of them, for tests."""

from dataclasses import replace

import torch

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import RoundedMatrix
from btcompress.checkpoint.compressed import order_names, part_names
from btcompress.fit.arranged import in_orders
from btcompress.fit.rounding import nearest
from btcompress.packing import Integers
from btcompress.shapes import BlockTermShape

UNEVEN = BlockTermShape((2, 3, 5), (7, 4, 3), (3, 2, 4), n_blocks=3)


def random_form(shape, generator, dtype=torch.float64):
    def draw(size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    orders = [torch.randperm(size, generator=generator).int() for size in shape.order_sizes.values()]
    return BlockTerm.of(shape, [draw(size) for size in shape.tensor_shapes], orders)


def shuffled(shape, generator, rows=None, columns=None, noise=0.01):
    """A matrix in which neighbours were alike, with its rows and columns in these orders since, or in random ones."""
    form = random_form(shape, generator)
    dense = BlockTerm(form.shape, form.cores, [f.cumsum(dim=1).cumsum(dim=2) for f in form.factors]).to_dense()
    dense = dense + noise * dense.std() * torch.randn(dense.shape, generator=generator, dtype=dense.dtype)
    rows = torch.randperm(shape.out_size // shape.n_gates, generator=generator) if rows is None else rows
    columns = torch.randperm(shape.in_size, generator=generator) if columns is None else columns
    return in_orders(dense, {"row_order": rows, "column_order": columns}, shape.n_gates)


def in_blocks(part, generator, noise=0.01):
    """A matrix of blocks of nearly equal entries, far from low rank, with rows and columns in random orders."""
    part = replace(part, n_blocks=1, ranks=(1,) * part.order, core="full")
    core, first, *others = random_form(part, generator).tensors
    dense = BlockTerm.of(part, [core.abs() + 1, first, *(1 + 0.1 * factor for factor in others)]).to_dense()
    dense = dense + noise * dense.std() * torch.randn(dense.shape, generator=generator, dtype=dense.dtype)
    sizes = part.ordered(("row_order", "column_order")).order_sizes
    orders = {name: torch.randperm(size, generator=generator) for name, size in sizes.items()}
    return in_orders(dense, orders, part.n_gates)


def stored_as(tensor, precision):
    """A tensor in a precision, rounded to the nearest."""
    return nearest(tensor, precision) if isinstance(precision, Integers) else precision


def in_fewer_bits(compressed, terms, rounded):
    """A result with all its block terms, and the matrices that are given, in these precisions.

    Args:
        compressed: the result.
        terms: the precision of cores and factors; None leaves them as they are.
        rounded: of each dense matrix to be rounded, by key.
    """
    stored = {}
    for key, matrix in compressed.matrices.items() if terms else ():
        orders = order_names(key, matrix.shape)
        names = (name for part in part_names(key, matrix.shape) for name in part if name not in orders)
        stored |= {name: stored_as(compressed.tensors[name], terms) for name in names}
    stored |= {key: stored_as(compressed.tensors[key], precision) for key, precision in rounded.items()}
    told = {key: RoundedMatrix.of(compressed.tensors[key], stored[key], 0.125) for key in rounded}
    return compressed.with_tensors(stored=stored, rounded=told)
