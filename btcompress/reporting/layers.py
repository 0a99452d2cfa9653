"""Where the bytes of a checkpoint are, layer by layer: before, and as the result stores them."""

from __future__ import annotations

import re

from btcompress.checkpoint import CompressedCheckpoint
from btcompress.checkpoint.precisions import bytes_in_file
from btcompress.checkpoint.tensors import find_aliases
from btcompress.results import LayerReport

#: The number of a layer in the keys of a recurrent one.
_NUMBERED = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l([0-9]{1,4})(?:_reverse)?")


def layer_reports(compressed: CompressedCheckpoint) -> tuple[LayerReport, ...]:
    """The bytes of each layer, which add up to those of all tensors.

    Args:
        compressed: the result.
    """
    sizes: dict[tuple[str, int | None], list[int]] = {}
    aliases = find_aliases(compressed.tensors)
    for key in compressed.keys:
        own = {name: compressed.tensors[name] for name in compressed.names_of(key) if name not in aliases}
        after = sum(bytes_in_file(tensor, compressed.stored.get(name)) for name, tensor in own.items())
        matrix = compressed.matrices.get(key)
        if matrix is None:
            before = sum(tensor.nbytes for tensor in own.values())
        else:
            before = matrix.shape.dense_params * matrix.dtype.itemsize if own else 0
        size = sizes.setdefault(_layer_of(key), [0, 0])
        size[0] += before
        size[1] += after
    return tuple(LayerReport(name, number, *size) for (name, number), size in sizes.items())


def _layer_of(key: str) -> tuple[str, int | None]:
    """What comes before the last dot of a key, and the number of the layer that it is of."""
    name, _, last = key.rpartition(".")
    numbered = _NUMBERED.fullmatch(last)
    return name, None if numbered is None else int(numbered[1])
