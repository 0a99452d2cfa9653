"""A pickle read as data: nothing that it names is imported, and nothing in it is called.

The operations come from :mod:`pickletools` and are done on plain values here. Where a pickle names a class or a
function, a :class:`Global` stands for it, and where it would call or make something, its reader says by name what
stands for that; what it does not know becomes a :class:`Foreign` object, which holds what it was given and does
nothing.
"""

from __future__ import annotations

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

#: Operations of the largest pickle that is read: more than a state dict has, and done in some seconds.
_MAX_OPERATIONS = 4_000_000

#: Types whose values serve as keys as they are; hashing others may take endless time.
_KEYS = (str, int, float, bytes, type(None))

#: What :mod:`pickletools` raises on damaged operations.
_DAMAGE = (ValueError, AssertionError, OverflowError, IndexError, KeyError, TypeError, struct.error)


class PickleError(Exception):
    """A pickle that is damaged, or larger than anything that is read."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, which is not imported.

    Attributes:
        name: ``module.name``.
    """

    name: str


@dataclass(slots=True, eq=False)
class Foreign:
    """An object of a class, or the result of a function, that is not known here.

    Attributes:
        name: of the class or function.
        args: what it was made from.
        state: what its ``__setstate__`` would have been given.
        pairs: entries that were set by key.
        items: entries that were added in order.
    """

    name: str
    args: tuple[object, ...] = ()
    state: object = None
    pairs: dict[object, object] = field(default_factory=dict)
    items: list[object] = field(default_factory=list)


class Reader(Protocol):
    """Says what stands for the things that a pickle refers to."""

    def persistent(self, key: object) -> object:
        """What stands for something that lies outside of the pickle."""

    def call(self, name: str, args: tuple[object, ...]) -> object:
        """What stands for a class called, or a function, with these arguments; a :class:`Foreign` if not known."""


def load(file: BinaryIO, reader: Reader) -> object:
    """The value of the pickle that begins where the file stands; the file stands behind it afterwards.

    Dicts, lists, tuples, texts, bytes and numbers are themselves; sets are lists. Keys that are no text, bytes or
    number get an object of their own each, so that none is lost and none is compared.

    Raises:
        PickleError: it is damaged, too large, or refers to buffers or extensions that lie elsewhere.
    """
    machine = _Machine(reader)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == _MAX_OPERATIONS:
                raise PickleError(f"it has more than {_MAX_OPERATIONS:,} operations")
            machine.do(opcode.name, argument)
        return machine.pop()
    except _DAMAGE as error:
        raise PickleError(f"it is damaged ({type(error).__name__})") from error


class _Mark:
    """Stands on the stack where a group of values begins."""


class OddKey:
    """Stands for a key that is no text, bytes or number, and is nobody's but its own."""

    def __init__(self, value: object) -> None:
        self._kind = type(value).__name__

    def __str__(self) -> str:
        return f"<{self._kind.lstrip('_')}>"


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._stack: list[Any] = []
        self._memo: dict[int, object] = {}
        self._done: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(_IGNORED, lambda _: None),
            **dict.fromkeys(_PUSHED, self._stack.append),
            **{name: self._maker(make) for name, make in _MADE.items()},
            **{f"TUPLE{n}": self._tuple_of(n) for n in (1, 2, 3)},
            "MARK": lambda _: self._stack.append(_Mark),
            "POP": lambda _: self.pop(),
            "POP_MARK": lambda _: self._group(),
            "DUP": lambda _: self._stack.append(self._stack[-1]),
            "TUPLE": lambda _: self._stack.append(tuple(self._group())),
            "LIST": lambda _: self._stack.append(self._group()),
            "FROZENSET": lambda _: self._stack.append(self._group()),
            "DICT": self._dict,
            "APPEND": lambda _: self._extend([self.pop()]),
            "APPENDS": lambda _: self._extend(self._group()),
            "ADDITEMS": lambda _: self._extend(self._group()),
            "SETITEM": self._set_one,
            "SETITEMS": lambda _: self._set(self._group()),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._get),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "GLOBAL": lambda name: self._stack.append(_global(name)),
            "STACK_GLOBAL": self._stack_global,
            "REDUCE": self._call,
            "NEWOBJ": self._call,
            "NEWOBJ_EX": self._call_with_names,
            "INST": lambda name: self._made(_global(name), tuple(self._group())),
            "OBJ": self._call_group,
            "BUILD": self._build,
            "PERSID": lambda key: self._stack.append(self._reader.persistent(key)),
            "BINPERSID": lambda _: self._stack.append(self._reader.persistent(self.pop())),
        }

    def do(self, name: str, argument: object) -> None:
        """One operation."""
        done = self._done.get(name)
        if done is None:
            raise PickleError(f"it refers to things outside of itself ({name})")
        done(argument)

    def pop(self) -> object:
        """The value on top."""
        value: object = self._stack.pop()
        if value is _Mark:
            raise ValueError("a mark where a value was expected")
        return value

    def _group(self) -> list[Any]:
        """The values above the last mark, which goes as well."""
        place = next(n for n in range(len(self._stack) - 1, -2, -1) if n < 0 or self._stack[n] is _Mark)
        if place < 0:
            raise ValueError("no mark")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _maker(self, make: Callable[[], object]) -> Callable[[Any], None]:
        return lambda _: self._stack.append(make())

    def _tuple_of(self, n: int) -> Callable[[Any], None]:
        return lambda _: self._stack.append(tuple([self.pop() for _ in range(n)][::-1]))

    def _dict(self, _: object) -> None:
        values = self._group()
        self._stack.append({})
        self._set(values)

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        (target.items if isinstance(target, Foreign) else _list(target)).extend(values)

    def _set_one(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def _set(self, values: Sequence[Any]) -> None:
        target = self._stack[-1]
        pairs = target.pairs if isinstance(target, Foreign) else target
        if not isinstance(pairs, dict) or len(values) % 2:
            raise TypeError("entries of no mapping")
        for key, value in zip(values[::2], values[1::2], strict=True):
            pairs[key if isinstance(key, _KEYS) else OddKey(key)] = value

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        if self._stack[-1] is _Mark:
            raise ValueError("a mark where a value was expected")
        self._memo[index] = self._stack[-1]

    def _stack_global(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a global that is not named by text")
        self._stack.append(Global(f"{module}.{name}"))

    def _call(self, _: object) -> None:
        args, function = self.pop(), self.pop()
        self._made(function, args)

    def _call_with_names(self, _: object) -> None:
        names, args, function = self.pop(), self.pop(), self.pop()
        self._made(function, (*_tuple(args), names) if names else args)

    def _call_group(self, _: object) -> None:
        function, *args = self._group()
        self._made(function, tuple(args))

    def _made(self, function: object, args: object) -> None:
        if isinstance(function, Global):
            self._stack.append(self._reader.call(function.name, _tuple(args)))
        elif isinstance(function, Foreign):
            self._stack.append(Foreign(function.name, (function, *_tuple(args))))
        else:
            raise TypeError("a call of no function")

    def _build(self, _: object) -> None:
        state = self.pop()
        if isinstance(self._stack[-1], Foreign):
            self._stack[-1].state = state
        # Attributes of an ordered mapping have no part in what it holds, and could hide its own.
        elif not isinstance(self._stack[-1], OrderedDict):
            raise TypeError("a state of what has none")


def _global(text: str) -> Global:
    module, _, name = text.partition(" ")
    return Global(f"{module}.{name}")


def _tuple(value: object) -> tuple[object, ...]:
    if not isinstance(value, tuple):
        raise TypeError("arguments that are no tuple")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("items of no list")
    return value


_IGNORED = ("PROTO", "FRAME", "STOP")
_PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
_MADE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
