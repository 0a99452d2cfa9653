"""Which plain values beside tensors are kept with a result: few, small ones that JSON can say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.checkpoint.layout import Node, Number
from btcompress.checkpoint.pickles import Foreign
from btcompress.checkpoint.schema import ENDLESS_NUMBER, MOST_INTEGER
from btcompress.checkpoint.tensors import Unheld
from btcompress.text import listed

#: Stands for what is not kept.
LEFT_OUT = object()

#: All that is kept of a checkpoint: values, keys and containers, and characters of texts.
_MOST_VALUES = 1 << 14
_MOST_CHARACTERS = 1 << 18
_MAX_DEPTH = 24
_LONGEST_KEY = 4096
#: Numbers of more bits are not written out.
_MOST_BITS = 4096
#: Values that are looked at, as one may lie in many places.
_MOST_LOOKS = 1 << 18


class _NotKeptError(Exception):
    """A value that is not kept; the text says why in few words."""


class PlainValues:
    """Keeps plain values within bounds, and says what was left out.

    Of a dict those entries are kept that can be; a list or tuple is kept whole or not at all.
    """

    def __init__(self) -> None:
        self._n_values = 0
        self._n_characters = 0
        self._n_looks = 0
        self._left_out: list[str] = []
        self._foreign: list[str] = []
        self._loose: list[str] = []
        self._numbers: list[str] = []

    def kept(self, value: object, path: str, depth: int = 0) -> Node:
        """A value without state dicts in it; :data:`LEFT_OUT` where it is not kept."""
        before = self._n_values, self._n_characters
        try:
            return self._kept(value, path, depth)
        except _NotKeptError as why:
            self._n_values, self._n_characters = before
            if isinstance(value, Foreign):
                self._foreign.append(f"{path} ({value.name})")
            else:
                self._left_out.append(f"{path} ({why})")
            return LEFT_OUT

    def kept_under(self, key: object, value: object, path: str, depth: int = 0) -> Node:
        """The same for the value of a dict under this key, which is kept with it or not at all."""
        length = len(key) if isinstance(key, str) else 0
        if not is_key(key) or self._n_characters + length > _MOST_CHARACTERS:
            self._left_out.append(f"{path} (its key)")
            return LEFT_OUT
        self._n_characters += length
        found = self.kept(value, path, depth)
        self._n_characters -= length if found is LEFT_OUT else 0
        return found

    def number(self, key: object, tensor: Tensor | Unheld, path: str) -> Node:
        """A tensor beside state dicts under this key or position, kept where it is a single number."""
        has_room = is_key(key) and self._n_values < _MOST_VALUES
        found = Number.of(tensor) if isinstance(tensor, Tensor) and has_room else None
        self._n_values += found is not None
        (self._loose if found is None else self._numbers).append(path)
        return LEFT_OUT if found is None else found

    def notices(self) -> Iterator[str]:
        """What a user should know about what was left out, or is kept apart from the weights."""
        if self._loose:
            yield f"Left out, tensors beside the state dicts: {listed(self._loose)}."
        if self._numbers:
            yield f"Kept for the dense form alone, single numbers beside the state dicts: {listed(self._numbers)}."
        if self._foreign:
            yield f"Left out, objects whose classes were not loaded: {listed(self._foreign)}."
        if self._left_out:
            yield f"Left out, values beside the tensors: {listed(self._left_out)}."

    def _kept(self, value: object, path: str, depth: int) -> Node:
        self._n_looks += 1
        if depth > _MAX_DEPTH or self._n_looks > _MOST_LOOKS:
            raise _NotKeptError("nested too deeply" if depth > _MAX_DEPTH else "too many")
        if isinstance(value, Mapping | list | tuple):
            self._spend(1 + len(value), 0)
            if isinstance(value, Mapping):
                return dict(self._entries(value, path, depth))
            items = [self._kept(each, path, depth + 1) for each in value]
            return items if isinstance(value, list) else tuple(items)
        if value is not None and type(value) not in (bool, int, float, str):
            raise _NotKeptError(value.name if isinstance(value, Foreign) else type(value).__name__.lstrip("_"))
        if isinstance(value, float) and not math.isfinite(value):
            raise _NotKeptError("not finite")
        if isinstance(value, int) and abs(value) > MOST_INTEGER:
            raise _NotKeptError("too large")
        if isinstance(value, str):
            self._spend(0, len(value))
            if not _is_sayable(value):
                raise _NotKeptError("no text for JSON")
        return value

    def _entries(self, value: Mapping[object, object], path: str, depth: int) -> Iterator[tuple[object, Node]]:
        for key, each in value.items():
            below = f"{path}.{shown(key)}" if path else shown(key)
            if (node := self.kept_under(key, each, below, depth + 1)) is not LEFT_OUT:
                yield key, node

    def _spend(self, n_values: int, n_characters: int) -> None:
        self._n_values += n_values
        self._n_characters += n_characters
        if self._n_values > _MOST_VALUES or self._n_characters > _MOST_CHARACTERS:
            raise _NotKeptError(f"{n_values:,} values" if n_values else f"{n_characters:,} characters")


def shown(key: object) -> str:
    """A key as it is called in messages; a number of more digits than Python writes out names nothing."""
    return f"<{key.bit_length()} bits>" if isinstance(key, int) and key.bit_length() > _MOST_BITS else str(key)


def texts_kept(texts: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Texts by name, of those in the header of a ``.safetensors`` file, and notices about what was left out."""
    values = PlainValues()
    kept = values.kept(texts, "")
    return (kept if kept is not LEFT_OUT else {}), tuple(values.notices())


def is_key(key: object) -> bool:
    """Whether a layout can hold something under this key of a dict."""
    if type(key) is int:
        return abs(key) <= MOST_INTEGER
    return type(key) is str and len(key) <= _LONGEST_KEY and _is_sayable(key)


def _is_sayable(text: str) -> bool:
    """Whether JSON gives a text back as it is, and other readers take it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return ENDLESS_NUMBER.search(text) is None
