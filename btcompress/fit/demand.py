"""How much memory a fit takes at its peak, from the shape alone, and what to say where there is not so much."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from btcompress import memory
from btcompress.blockterm import slab_entries
from btcompress.errors import MemoryLimitError
from btcompress.fit.hosvd import basis_sizes_of, first_shrunk
from btcompress.fit.lowrank import SMALL_ENTRIES
from btcompress.fit.measures import CHUNK_ENTRIES
from btcompress.fit.sweeps import DIRECT_UNKNOWNS
from btcompress.shapes import BlockTermShape

#: Shapes that are fitted on a core, with the basis vectors kept of each mode.
Cored = Sequence[tuple[BlockTermShape, Sequence[int]]]

#: What helps where a fit would take too much.
_ADVICE = "Lower the ranks, choose modes of other sizes or fewer of them, or let it take more memory."

#: Numbers of 8 bytes that are held at once for each entry of ...
_OF_WHOLE = 4  # a matrix copied in float64, rearranged and divided
_OF_DECOMPOSED = 3  # a matrix under a singular value decomposition, with its factors and work space
_OF_GRAM = 4  # a Gram matrix, with its eigenvectors and work space
_OF_CORE = 6  # the compressed core, with what the blocks leave of it and a contraction of it
_OF_BLOCKS = 8  # the cores and factors of all blocks, before and after an update
_OF_SLAB = 6  # some rows of the dense matrix, formed and compared


def require_memory(shape: BlockTermShape, dtype: torch.dtype) -> None:
    """Refuse a fit on the CPU that would take more memory than there is.

    Args:
        shape: of the form, its ranks no more than its modes can hold.
        dtype: of the matrix.

    Raises:
        MemoryLimitError: there is not so much memory.
    """
    memory.require(bytes_to_fit(shape, dtype), described(shape), _ADVICE)


def require_memory_to_price(
    without_core: Sequence[BlockTermShape],
    with_core: Cored,
    dtype: torch.dtype,
) -> None:
    """Refuse to price forms on the CPU where that would take more memory than there is.

    Args:
        without_core: as for :func:`bytes_to_price`.
        with_core: likewise.
        dtype: likewise.

    Raises:
        MemoryLimitError: there is not so much memory.
    """
    what = f"pricing {len(without_core) + len(with_core)} choices of modes"
    advice = "Choose fewer of them (an order or modes), leave the matrix out, or let it take more memory."
    memory.require(bytes_to_price(without_core, with_core, dtype), what, advice)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what was asked for, and what would help, where memory runs out in a fit.

    Args:
        what: was asked for, such as :func:`described` gives.

    Raises:
        MemoryLimitError: memory ran out, on the CPU or on a GPU.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
        raise MemoryLimitError(f"memory ran out in {what}. {_ADVICE}") from error


def bytes_to_fit(shape: BlockTermShape, dtype: torch.dtype) -> int:
    """Bytes that the fit of one form takes at its peak, beside the matrix and what is loaded anyway.

    Args:
        shape: of the form, its ranks no more than its modes can hold.
        dtype: of the matrix.
    """
    entries, item = shape.padded_in * shape.padded_out, 8 if dtype == torch.float64 else 4
    padded = entries * dtype.itemsize if entries != shape.dense_params else 0
    held = 8 * sum(math.prod(size) for size in shape.tensor_shapes) * _OF_BLOCKS
    slab = 8 * _OF_SLAB * slab_entries(shape)
    # Of a form with fewer parameters than the smallest low-rank matrix there is no yardstick.
    yardstick = _bytes_of_gram(shape.out_size, shape.in_size) if shape.n_params >= shape.out_size + shape.in_size else 0
    if shape.core == "identity":
        fitting = _bytes_without_core(shape, item)
    else:
        kept = basis_sizes_of(shape)
        bases = 8 * sum(size * count for size, count in zip(shape.mode_sizes, kept, strict=True))
        fitting = bases + max(_bytes_to_compress(shape, kept, item), _bytes_to_sweep(shape, kept))
    return padded + held + max(fitting, slab, yardstick)


def bytes_to_price(
    without_core: Sequence[BlockTermShape],
    with_core: Cored,
    dtype: torch.dtype,
) -> int:
    """Bytes that pricing the forms of one matrix takes at its peak, beside the matrix and what is loaded anyway.

    Args:
        without_core: shapes that are priced by singular values.
        with_core: shapes that are fitted on a core.
        dtype: of the matrix.
    """
    item = 8 if dtype == torch.float64 else 4
    singular = (
        _bytes_of_gram(*shape.mode_sizes) + (0 if shape.is_low_rank else 8 * _OF_WHOLE * math.prod(shape.mode_sizes))
        for shape in without_core
    )
    fitted = (max(_bytes_to_compress(shape, kept, item), 8 * _OF_CORE * math.prod(kept)) for shape, kept in with_core)
    return max((*singular, *fitted), default=0)


def _bytes_without_core(shape: BlockTermShape, item: int) -> int:
    if shape.padded_in * shape.padded_out <= SMALL_ENTRIES:
        return 8 * (_OF_WHOLE + _OF_DECOMPOSED) * shape.padded_in * shape.padded_out
    if shape.is_low_rank:
        return _bytes_of_gram(*shape.mode_sizes)
    kept = basis_sizes_of(shape)
    return max(_bytes_to_compress(shape, kept, item), 8 * _OF_DECOMPOSED * math.prod(kept))


def _bytes_of_gram(n_rows: int, n_columns: int) -> int:
    """The Gram matrix of a matrix's smaller side, and chunks of the matrix in float64."""
    return 8 * (_OF_GRAM * min(n_rows, n_columns) ** 2 + 3 * min(CHUNK_ENTRIES, n_rows * n_columns))


def _bytes_to_compress(shape: BlockTermShape, kept: Sequence[int], item: int) -> int:
    """The slabs, the Gram matrix of the mode that is truncated first, and what is left of the tensor then."""
    entries, first = shape.padded_in * shape.padded_out, first_shrunk(shape, kept)
    if first is None:
        return 8 * _OF_WHOLE * entries
    size = shape.mode_sizes[first]
    slabs = 2 * item * shape.out_modes[first] * shape.padded_in
    left = item * entries // size * kept[first]
    return max(8 * _OF_GRAM * size**2 + slabs, slabs + 2 * left, 3 * left)


def _bytes_to_sweep(shape: BlockTermShape, kept: Sequence[int]) -> int:
    """The compressed core, and the linear systems of the cores and of the largest factor."""
    unknowns = math.prod(shape.core_shape)
    systems = [shape.n_blocks * rank for rank in shape.ranks]
    systems += [unknowns] if unknowns <= DIRECT_UNKNOWNS else []
    pairs = shape.n_blocks * unknowns
    return 8 * (_OF_CORE * math.prod(kept) + _OF_GRAM * max(systems) ** 2 + 2 * pairs)


def described(shape: BlockTermShape) -> str:
    """A fit in words, by its ranks and modes."""
    in_modes, out_modes, ranks = (",".join(map(str, each)) for each in (shape.in_modes, shape.out_modes, shape.ranks))
    return f"the fit with CP rank {shape.n_blocks}, Tucker ranks {ranks} and modes {in_modes} by {out_modes}"
