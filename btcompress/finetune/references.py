"""User code by reference: ``package.module:name``, imported only when the user names it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from btcompress.errors import BTCompressError

_REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")


def is_reference(text: str) -> bool:
    """Whether this is written as ``package.module:name``."""
    return _REFERENCE.fullmatch(text) is not None


def references(texts: Iterable[str]) -> tuple[str, ...]:
    """Those of what was given that name code, and no file that is there."""
    return tuple(text for text in texts if is_reference(text) and not os.path.lexists(text))


def sources(text: str, folder: Path | None = None) -> tuple[Path, ...]:
    """The file that ``FILE`` or ``MODULE:FACTORY`` is read from: itself, or the module's; nothing where it has none.

    Of a module in a package, the package is imported, as :func:`resolve` will.

    Args:
        text: what was given.
        folder: where to look for the module first.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or os.path.lexists(text):
        return (Path(text),)
    _look_in(folder)
    try:
        spec = find_spec(match["module"])
    except (ImportError, ValueError):
        return ()
    return (Path(spec.origin),) if spec is not None and spec.has_location and spec.origin is not None else ()


def resolve(option: str, text: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function or class that a reference names.

    Args:
        option: where the reference was given, for messages.
        text: ``package.module:name``.
        folder: where to look for the module first; stays on the search path, for what it imports later.

    Raises:
        BTCompressError: the text is no reference, or there is no such module or callable.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise BTCompressError(f"{option} {text!r} is not of the form package.module:function.")
    _look_in(folder)
    try:
        module = import_module(match["module"])
    except ModuleNotFoundError as error:
        if error.name is None or not f"{match['module']}.".startswith(f"{error.name}."):
            raise
        raise BTCompressError(
            f"{option} {text}: there is no module {error.name}. Check the name, or say with --path where it lies."
        ) from error
    value = getattr(module, match["name"], None)
    if not callable(value):
        what = "is not a function or class" if hasattr(module, match["name"]) else "is not in that module"
        raise BTCompressError(f"{option} {text}: {match['name']} {what}. Name one that can be called.")
    return value


def _look_in(folder: Path | None) -> None:
    if folder is None:
        return
    if not folder.is_dir():
        raise BTCompressError(f"--path {folder} is not a folder. Give the one that holds your package.")
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))
