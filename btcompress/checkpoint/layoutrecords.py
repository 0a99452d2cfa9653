"""A layout as JSON, and back with distrust: tensors by their numbers among the keys, whole runs of them at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from btcompress.checkpoint.layout import MOST_AXES, NUMBER_DTYPES, Layout, Node, Number, Place
from btcompress.checkpoint.schema import MOST_INTEGER, DenseRecord, LayoutRecord
from btcompress.errors import CheckpointError

#: Containers in containers; no layout that is read of a dense checkpoint goes so deep.
_MAX_DEPTH = 64

#: Where a dense ``.safetensors`` file that is an intermediate result keeps the layout of the first checkpoint.
LAYOUT_KEY = "btcompress-layout"


def to_record(layout: Layout, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object of a layout.

    Args:
        layout: that of the checkpoint.
        keys: of the checkpoint.
    """
    numbers = {key: number for number, key in enumerate(keys)}
    record: dict[str, Any] = {} if layout.root is None else {"root": _encoded(layout.root, numbers)}
    others = {"metadata": layout.metadata, "ties": layout.ties}
    return {**record, **{name: dict(value) for name, value in others.items() if value}}


def from_record(record: LayoutRecord, keys: Sequence[str]) -> Layout:
    """The layout that a JSON object says.

    Args:
        record: what :func:`to_record` gave.
        keys: of the checkpoint.

    Raises:
        CheckpointError: it is none, or does not place every key once.
    """
    root = None if record.root is None else _Decoder(keys).node(record.root)
    if not isinstance(root, dict | list | tuple | None):
        raise _disorder("its root is no container")
    layout = Layout(root, record.metadata, record.ties)
    layout.check(keys)
    return layout


def to_text(layout: Layout, keys: Sequence[str]) -> str:
    """The JSON text of a layout."""
    return json.dumps(to_record(layout, keys), separators=(",", ":"), allow_nan=False)


def layout_text(layout: Layout, keys: Sequence[str]) -> str:
    """A layout as text for the header of a ``.safetensors`` file of dense tensors, which keeps no order of its own."""
    return json.dumps({**to_record(layout, keys), "keys": list(keys)}, separators=(",", ":"), allow_nan=False)


def with_layout(text: str, tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Layout]:
    """The tensors in their order, and the layout that :func:`layout_text` gave with them.

    Raises:
        CheckpointError: the text is no layout of these tensors.
    """
    try:
        record = msgspec.json.decode(text.encode(), type=DenseRecord)
        if sorted(record.keys) != sorted(tensors):
            raise _disorder("its keys are not those of the tensors")
        return {key: tensors[key] for key in record.keys}, from_record(record, record.keys)
    except (CheckpointError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _encoded(node: Node, numbers: Mapping[str, int]) -> object:
    if isinstance(node, Place):
        return {"tensor": numbers[node.key]}
    if isinstance(node, Number):
        return {
            "number": node.value,
            "dtype": str(node.dtype).removeprefix("torch."),
            **({"axes": node.n_axes} if node.n_axes else {}),
        }
    if isinstance(node, dict):
        return {"dict": list(_entries(node, numbers))}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_encoded(each, numbers) for each in node]}
    return node


def _entries(node: Mapping[str | int, Node], numbers: Mapping[str, int]) -> Iterator[object]:
    """Entries of a dict; one object for tensors that follow one another, their names with one prefix before the key."""
    run: dict[str, Any] | None = None
    for key, each in node.items():
        if isinstance(each, Place) and isinstance(key, str) and each.key.endswith(key):
            number, prefix = numbers[each.key], each.key.removesuffix(key)
            if run is not None and run["prefix"] == prefix and sum(run["tensors"]) == number:
                run["tensors"][1] += 1
            else:
                if run is not None:
                    yield run
                run = {"tensors": [number, 1], "prefix": prefix}
            continue
        if run is not None:
            yield run
            run = None
        yield [key, _encoded(each, numbers)]
    if run is not None:
        yield run


class _Decoder:
    """Makes nodes of JSON values, each key at most once, so that a small text makes nothing large.

    Args:
        keys: of the checkpoint.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = keys
        self._placed: set[str] = set()

    def node(self, value: object, depth: int = 0) -> Node:
        """One node with all below it."""
        if depth > _MAX_DEPTH:
            raise _disorder(f"it nests containers more than {_MAX_DEPTH} deep")
        if not isinstance(value, dict):
            return _plain(value)
        kinds = [kind for kind in ("dict", "list", "tuple", "tensor", "number") if kind in value]
        if len(kinds) != 1:
            raise _disorder("it has a node of no known kind")
        (kind,) = kinds
        if kind == "tensor":
            return self._place(value["tensor"])
        if kind == "number":
            return _number(value)
        below = value[kind]
        if not isinstance(below, list):
            raise _disorder(f"the entries of a {kind} are no list")
        if kind == "dict":
            return self._dict(below, depth)
        items = [self.node(each, depth + 1) for each in below]
        return items if kind == "list" else tuple(items)

    def _dict(self, entries: list[Any], depth: int) -> dict[str | int, Node]:
        found: dict[str | int, Node] = {}
        for entry in entries:
            pairs = self._run(entry) if isinstance(entry, dict) else [self._entry(entry, depth)]
            for key, node in pairs:
                if key in found:
                    raise _disorder(f"a dict has two entries named {key!r}")
                found[key] = node
        return found

    def _entry(self, entry: object, depth: int) -> tuple[str | int, Node]:
        if not isinstance(entry, list) or len(entry) != 2:
            raise _disorder("an entry of a dict is neither tensors nor a key and a value")
        key, value = entry
        if not isinstance(key, str) and not _is_whole(key):
            raise _disorder("a key of a dict is neither text nor a whole number")
        return key, self.node(value, depth + 1)

    def _run(self, entry: dict[str, Any]) -> Iterator[tuple[str, Place]]:
        numbers, prefix = entry.get("tensors"), entry.get("prefix", "")
        if not isinstance(numbers, list) or len(numbers) != 2 or not all(map(_is_whole, numbers)):
            raise _disorder("tensors of a dict are not said by the first and how many they are")
        first, count = numbers
        if count < 0 or not isinstance(prefix, str):
            raise _disorder("tensors of a dict are not said by their number and their prefix")
        for number in range(first, first + count):
            place = self._place(number)
            if not place.key.startswith(prefix):
                raise _disorder(f"{place.key!r} does not begin with {prefix!r}")
            yield place.key.removeprefix(prefix), place

    def _place(self, number: object) -> Place:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(self._keys):
            raise _disorder("it places a tensor that is none")
        key = self._keys[number]
        if key in self._placed:
            raise _disorder(f"it places {key!r} twice")
        self._placed.add(key)
        return Place(key)


def _number(value: Mapping[str, Any]) -> Number:
    entry, axes = value["number"], value.get("axes", 0)
    dtype = NUMBER_DTYPES.get(value["dtype"]) if isinstance(value.get("dtype"), str) else None
    if dtype is None or not _is_whole(axes) or not 0 <= axes <= MOST_AXES:
        raise _disorder("a number beside the state dicts is no tensor that there can be")
    found = Number(entry, dtype, axes) if isinstance(entry, bool | int | float) else None
    try:
        same = found is not None and Number.of(found.tensor) == found
    except (RuntimeError, TypeError, ValueError, OverflowError):
        same = False
    if found is None or not same:
        raise _disorder(f"a number beside the state dicts is none of {value['dtype']}")
    return found


def _plain(value: object) -> Node:
    if value is None or isinstance(value, bool | str):
        return value
    if _is_whole(value) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise _disorder("it has a value that is none of null, true, false, text and numbers within range")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_INTEGER


def _disorder(what: str) -> CheckpointError:
    return CheckpointError(f"the layout of the dense checkpoint is not in order: {what}. Make the file again.")
