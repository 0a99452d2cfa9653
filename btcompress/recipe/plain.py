"""Frozen values as plain mappings of text, numbers and lists, and back again with distrust."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from btcompress.errors import BTCompressError

_T = TypeVar("_T")


def scale_of(value: object) -> float:
    """What to multiply inputs by: a number other than 0, or a fraction such as ``"1/255"``.

    Raises:
        BTCompressError: it is neither.
    """
    above, _, below = str(value).partition("/")
    try:
        scale = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        scale = math.nan
    if isinstance(value, bool) or not scale or not math.isfinite(scale):
        raise BTCompressError(f"scale {value!r} is not a number other than 0, or a fraction such as 1/255.")
    return scale


def plain(value: object) -> Any:  # noqa: ANN401 - any value that JSON knows
    """A value as JSON and YAML know it: paths as text, tuples as lists, frozen values as mappings."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if is_dataclass(value):
        return without_defaults(value)
    return value


def without_defaults(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any frozen value
    """The fields of a frozen value that are other than their defaults, as JSON and YAML know them."""
    return {
        each.name: plain(getattr(value, each.name))
        for each in fields(value)
        if each.init and (each.default is MISSING or getattr(value, each.name) != each.default)
    }


def fields_from(
    kind: type, given: Mapping[str, object], where: str, own: Mapping[str, Callable[[object], object]] | None = None
) -> dict[str, Any]:
    """Fields of a frozen value from a plain mapping, each found to be of its type.

    Args:
        kind: the class.
        given: by name; other names are refused.
        where: what to call the mapping in messages.
        own: for fields of other types than plain ones, what makes them of what is given.

    Raises:
        BTCompressError: a name is unknown, or a value is not of its field's type.
    """
    known = [each.name for each in fields(kind) if each.init]
    types = get_type_hints(kind)
    found = {}
    for name, value in given.items():
        if name not in known:
            raise BTCompressError(f"{where}: there is no {reprlib.repr(name)}. There are {', '.join(known)}.")
        make = (own or {}).get(name)
        try:
            found[name] = msgspec.convert(value, types[name], dec_hook=_decoded) if make is None else make(value)
        except (msgspec.ValidationError, BTCompressError) as error:
            raise BTCompressError(
                f"{where}: {name} is {reprlib.repr(value)}, which cannot be ({error}). Mend it, or leave it out."
            ) from error
    return found


def _decoded(kind: type[_T], value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise msgspec.ValidationError(f"{kind.__name__} is written as text")
