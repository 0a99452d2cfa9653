"""Packages whose public names are loaded when they are first used, so that a command imports what it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The ``__getattr__`` of a package, which loads its public names from the modules where they live.

    Args:
        package: its name.
        homes: the module of each public name, within the package; behind a colon the name that it has there, where that
            is another.
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, own = homes[name].partition(":")
        value: object = getattr(import_module(f"{package}.{module}"), own or name)
        setattr(sys.modules[package], name, value)
        return value

    return load


def elsewhere(module: str, name: str) -> Callable[..., Any]:
    """A public function of a higher room, loaded when it is called: for methods that users expect on a class below.

    Args:
        module: where it is.
        name: its own.
    """
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
