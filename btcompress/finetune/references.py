"""User code by reference: ``package.module:name``, imported only when the user names it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from btcompress.errors import BTCompressError

_REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")


def is_reference(text: str) -> bool:
    """Whether this is written as ``package.module:name``."""
    return _REFERENCE.fullmatch(text) is not None


def source_files(text: str) -> tuple[Path, ...]:
    """The files that a reference was resolved from: its module's, and those of the packages around it."""
    match = _REFERENCE.fullmatch(text)
    names = match["module"].split(".") if match else []
    modules = (sys.modules.get(".".join(names[:n])) for n in range(1, len(names) + 1))
    return tuple(Path(file) for module in modules if (file := getattr(module, "__file__", None)) is not None)


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
    if folder is not None:
        if not folder.is_dir():
            raise BTCompressError(f"--path {folder} is not a folder. Give the one that holds your package.")
        if str(folder.resolve()) not in sys.path:
            sys.path.insert(0, str(folder.resolve()))
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
