"""How the tensors of a dense checkpoint lay in its file, and the plain values that lay beside them."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from btcompress.errors import CheckpointError

#: What numbers beside the weights may be of.
NUMBER_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
#: What the header of nearly every ``.safetensors`` file of weights says, and some loaders ask for.
USUAL_TEXT = ("format", "pt")
#: Axes of a tensor with one entry.
MOST_AXES = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the state dict lies.

    Attributes:
        key: its name among the keys of the checkpoint.
    """

    key: str


@dataclass(frozen=True, slots=True)
class Number:
    """A tensor of one entry that lies beside the state dicts, such as a best score.

    Attributes:
        value: the entry, finite.
        dtype: of the tensor, one of :data:`NUMBER_DTYPES`.
        n_axes: how many it has.
    """

    value: bool | int | float
    dtype: torch.dtype
    n_axes: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> Number | None:
        """The entry of a tensor; None where it has others, or one that is not kept."""
        if is_lazy(tensor) or tensor.is_meta or tensor.layout != torch.strided:
            return None
        if tensor.dtype not in NUMBER_DTYPES.values() or tensor.numel() != 1 or tensor.dim() > MOST_AXES:
            return None
        value = tensor.detach().item()
        return cls(value, tensor.dtype, tensor.dim()) if math.isfinite(value) else None

    @property
    def tensor(self) -> Tensor:
        """The tensor."""
        return torch.tensor(self.value, dtype=self.dtype).reshape((1,) * self.n_axes)


#: Dicts with text or whole numbers for keys, lists, tuples, and in them None, bool, int, float, str, :class:`Place` and
#: :class:`Number`.
Node: TypeAlias = Any


class UnplacedError(Exception):
    """A layout that there is none of for other keys; the text says why in few words."""


def left_out_text(obstacle: str) -> str:
    """What a user should know of a layout that could not be kept."""
    return f"Left out, the layout of the file ({obstacle}): its dense form will be one plain state dict."


@dataclass(frozen=True, slots=True)
class Layout:
    """How a dense checkpoint is arranged, where that is not one plain state dict.

    Attributes:
        root: containers, with a :class:`Place` for each tensor, and plain values; None for a plain state dict.
        metadata: texts by name in the header of a ``.safetensors`` file, apart from its usual ``format``.
        ties: keys that were one tensor there with another key, each with the first of them, where the tensors of a
            result do not say so: a matrix that is factorized is tied to none.
    """

    root: dict[str | int, Node] | list[Node] | tuple[Node, ...] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)

    def check(self, keys: Sequence[str]) -> None:
        """Refuse a layout that does not place every key once, or ties what is no key.

        Raises:
            CheckpointError: a key has no place or several, or something else is placed or tied.
        """
        known = {key: number for number, key in enumerate(keys)}
        for key, first in self.ties.items():
            if first in self.ties or not known.get(first, len(keys)) < known.get(key, -1):
                raise CheckpointError(f"the layout ties {key!r} to {first!r}, which is no first of several keys.")
        if self.root is None:
            return
        left = set(keys)
        for place in self.places:
            if place.key not in left:
                raise CheckpointError(f"the layout places {place.key!r}, which is no key, or has its place already.")
            left.remove(place.key)
        if left:
            raise CheckpointError(f"the layout has no place for the key {min(left)!r}.")

    def filled(self, tensors: Mapping[str, Tensor]) -> object:
        """The containers with their tensors and values, as the dense checkpoint had them; equal texts are one object.

        Args:
            tensors: by the keys of the checkpoint.
        """
        root = {key: Place(key) for key in tensors} if self.root is None else self.root
        return _filled(root, tensors)

    def renamed(self, names: Mapping[str, str], left_out: Collection[str]) -> Layout:
        """The layout of the same tensors, of which some have other keys and others are left out.

        Args:
            names: new keys, by the old ones.
            left_out: keys that have no place any more.

        Raises:
            UnplacedError: a container cannot have the new key, or cannot do without what is left out.
        """
        gone = {*names, *left_out}
        ties = {key: first for key, first in self.ties.items() if not gone & {key, first}}
        root = None if self.root is None else _renamed(self.root, names, left_out)
        return replace(self, root=root, ties=ties)

    @property
    def places(self) -> Iterator[Place]:
        """Where tensors lie, in order."""
        return (node for _, node in _leaves(self.root) if isinstance(node, Place))

    @property
    def values(self) -> tuple[str, ...]:
        """The paths of what lies beside the tensors of state dicts."""
        return tuple(".".join(path) for path, node in _leaves(self.root) if not isinstance(node, Place))

    @property
    def containers(self) -> tuple[str, ...]:
        """The paths of all that holds tensors of state dicts itself."""
        paths = (".".join(path[:-1]) for path, node in _leaves(self.root) if isinstance(node, Place))
        return tuple(dict.fromkeys(paths))


def _renamed(node: Node, names: Mapping[str, str], left_out: Collection[str]) -> Node:
    if isinstance(node, list | tuple):
        if any(isinstance(each, Place) and (each.key in names or each.key in left_out) for each in node):
            raise UnplacedError("a list of what weights are made from")
        return type(node)(_renamed(each, names, left_out) for each in node)
    if not isinstance(node, dict):
        return node
    renamed = {}
    for key, each in node.items():
        if not isinstance(each, Place):
            renamed[key] = _renamed(each, names, left_out)
        elif each.key in names:
            # The key in a state dict is the end of the key among all, before which the path to it stays.
            outer, new = each.key.removesuffix(str(key)), names[each.key]
            inner = new.removeprefix(outer)
            if not each.key.endswith(str(key)) or not new.startswith(outer) or inner in node:
                raise UnplacedError(f"the place of {new}")
            renamed[inner] = Place(new)
        elif each.key not in left_out:
            renamed[key] = each
    return renamed


def _leaves(node: Node) -> Iterator[tuple[tuple[str, ...], Node]]:
    """All that is no container, with its path; a plain state dict has none."""
    if node is None:
        return
    below = node.items() if isinstance(node, dict) else enumerate(node)
    for key, each in below:
        if isinstance(each, dict | list | tuple):
            yield from (((str(key), *path), leaf) for path, leaf in _leaves(each))
        else:
            yield (str(key),), each


def _filled(node: Node, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(node, Place):
        return tensors[node.key]
    if isinstance(node, Number):
        return node.tensor
    if isinstance(node, dict):
        return {_filled(key, tensors): _filled(each, tensors) for key, each in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_filled(each, tensors) for each in node)
    # A pickle writes an object once, whatever it equals: else its bytes would depend on where the texts came from.
    return sys.intern(node) if isinstance(node, str) else node
