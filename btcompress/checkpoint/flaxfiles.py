"""Files of ``flax.serialization``: trees of arrays in MessagePack, with extension types for arrays and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from btcompress.checkpoint.choosing import averages
from btcompress.checkpoint.foreign import Foreign
from btcompress.checkpoint.tensors import HELD_DTYPES, is_countable, plain_tensor
from btcompress.errors import CheckpointError
from btcompress.memory import require
from btcompress.text import listed

#: The extension type of an array; those of numbers are left out, as numbers are.
_ARRAY = 1
#: A mapping with this key is one array, in parts of at most a gigabyte.
_CHUNKED = "__msgpack_chunked_array__"
#: Subtrees that an optimizer keeps for itself, in Flax's TrainState and in its older optimizers.
_OPTIMIZER = frozenset({"opt_state", "param_states"})

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in HELD_DTYPES}
#: Bytes for each of the file: the file, and the arrays of it.
_COPIES = 2
_MOST_SHOWN = 8


class _DamagedError(Exception):
    """An array is not what it says that it is; the text says how."""


def read_file(path: Path) -> Foreign:
    """Read the arrays of a tree; their names are their paths in it, with dots.

    An optimizer's states and averages of the parameters are left out by name; single numbers are, too.

    Raises:
        CheckpointError: the file is damaged, or holds no arrays as Flax writes them.
        MemoryLimitError: it needs more memory than there is.
    """
    require(_COPIES * path.stat().st_size, f"Reading {path}", "Free memory, or save the parameters alone.")
    try:
        tree = msgspec.msgpack.decode(path.read_bytes(), ext_hook=_extension)
        arrays = dict(_arrays(tree, ()))
    except (msgspec.MsgspecError, _DamagedError, ValueError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"{path} begins like a file of flax.serialization but is truncated or damaged ({error}). "
            "Download or save it again."
        ) from error
    optimizers = {".".join(names[: _depth(names)]) for names in arrays if _depth(names)}
    kept = {names: tensor for names, tensor in arrays.items() if not _depth(names)}
    collections: dict[str, dict[str, Tensor]] = {}
    for names, tensor in kept.items():
        collections.setdefault(names[0], {})[".".join(names[1:])] = tensor
    copies = averages(collections)
    tensors: dict[str, Tensor] = {}
    for names, tensor in kept.items():
        if names[0] not in copies:
            name = ".".join(names)
            if name in tensors:
                raise CheckpointError(f"{path} holds two arrays named {name}. Rename one in your own code.")
            tensors[name] = plain_tensor(name, tensor)
    if not tensors:
        raise CheckpointError(f"{path} holds no arrays as flax.serialization writes them. Give the file of parameters.")
    left_out = (
        [f"Left out, the state of an optimizer: {listed(sorted(optimizers), _MOST_SHOWN)}."] if optimizers else []
    )
    left_out += [f"Left out, averages of {copies[copy]}, which are taken: {copy}." for copy in copies]
    return Foreign(tensors, None, tuple(left_out))


def _depth(names: tuple[str, ...]) -> int:
    """How many of the names lead to an optimizer's state; 0 if they do not."""
    return next((n + 1 for n, name in enumerate(names) if name in _OPTIMIZER), 0)


def _arrays(tree: object, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The arrays of a tree, each with its path."""
    if isinstance(tree, dict) and _CHUNKED in tree:
        yield names, _whole(tree)
    elif isinstance(tree, dict | list):
        for name, each in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if not isinstance(name, str | int):
                raise _DamagedError("a key is no text")
            yield from _arrays(each, (*names, str(name)))
    elif isinstance(tree, Tensor):
        yield names or ("array",), tree


def _whole(tree: dict[object, object]) -> Tensor:
    """An array that is in parts."""
    sizes, parts = (_in_order(tree.get(name)) for name in ("shape", "chunks"))
    tensors = [part for part in parts if isinstance(part, Tensor) and part.dim() == 1]
    counts = [size for size in sizes if isinstance(size, int)]
    if not tensors or len(tensors) != len(parts) or len({part.dtype for part in tensors}) > 1:
        raise _DamagedError("the parts of an array are none")
    if len(counts) != len(sizes) or not is_countable(counts):
        raise _DamagedError(f"an array has sizes {sizes}")
    if prod(counts) != sum(len(part) for part in tensors):
        raise _DamagedError("the parts of an array are not all of it")
    return torch.cat(tensors).reshape(counts)


def _in_order(tree: object) -> list[object]:
    return [tree.get(str(n)) for n in range(len(tree))] if isinstance(tree, dict) else []


def _extension(code: int, data: memoryview) -> object:
    """The array that an extension type is, or None."""
    if code != _ARRAY:
        return None
    sizes, name, content = msgspec.msgpack.decode(data, type=tuple[list[int], str, memoryview])
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise _DamagedError(f"an array is of type {name[:40]!r}, which torch lacks")
    if not is_countable(sizes):
        raise _DamagedError(f"an array has sizes {sizes}")
    n_bytes = prod(sizes) * dtype.itemsize
    if content.nbytes != n_bytes:
        raise _DamagedError(f"an array has {content.nbytes} bytes where its sizes need {n_bytes}")
    return (
        torch.frombuffer(bytearray(content), dtype=dtype).reshape(sizes) if n_bytes else torch.empty(sizes, dtype=dtype)
    )
