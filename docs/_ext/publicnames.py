"""Checks that public names have docstrings and entries in the reference, and leads references to these entries."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from dataclasses import is_dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from sphinx.util import logging

import btcompress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_log = logging.getLogger(__name__)
#: How a docstring goes on that repeats another one, for whoever reads it in a terminal.
_REPEATED = "Keywords are the fields of"


def setup(app: Sphinx) -> dict[str, bool]:
    """Check once all pages are read; every fault is a warning."""
    # Before napoleon.
    app.connect("autodoc-process-docstring", _arranged, priority=400)
    app.connect("env-check-consistency", _check)
    app.connect("missing-reference", _led)
    return {"parallel_read_safe": True}


def _check(_app: Sphinx, env: BuildEnvironment) -> None:
    entries = env.domains.python_domain.objects
    for name in btcompress.__all__:
        if f"btcompress.{name}" not in entries:
            _log.warning("btcompress.%s has no entry in the Python reference", name, type="publicnames")
        for undocumented in _undocumented(f"btcompress.{name}", getattr(btcompress, name)):
            _log.warning("%s has no docstring", undocumented, type="publicnames")


def _undocumented(name: str, value: object) -> Iterator[str]:
    """A public name without a docstring, and what lacks one of a class: methods and properties, fields of a value."""
    own = value.__doc__ or ""
    # A dataclass without a docstring gets its signature for one.
    if not own.strip() or (inspect.isclass(value) and own.startswith(f"{value.__name__}(")):
        yield name
    if not inspect.isclass(value):
        return
    for below, member in vars(value).items():
        is_code = callable(member) or isinstance(member, property | classmethod | staticmethod)
        if is_code and not below.startswith("_") and not inspect.getdoc(getattr(value, below)):
            yield f"{name}.{below}"
    if is_dataclass(value):
        said = re.findall(r"^ +(\w+): ", own, re.MULTILINE)
        # What is no argument is the class's own affair.
        yield from (f"{name}.{field}" for field in inspect.signature(value).parameters if field not in said)


def _arranged(_app: Sphinx, what: str, _name: str, _value: object, _options: Any, lines: list[str]) -> None:  # noqa: ANN401
    """Leave out what is repeated, and let sentences of properties be sentences, not a type before a colon."""
    if what == "property" and lines:
        before, colon, after = lines[0].partition(": ")
        lines[:1] = [before + colon.rstrip(), after] if colon else lines[:1]
    for index, line in enumerate(lines):
        if line.startswith(_REPEATED):
            lines[index:] = [line.rstrip(":") + ".", ""]
            return


def _led(app: Sphinx, env: BuildEnvironment, node: Element, content: Element) -> Element | None:
    """Where a name leads that stands without its module, or with the one that it lives in.

    One without an entry leads nowhere, and stays as it is if there is such a name in the code; else the build fails.
    """
    if node.get("refdomain") != "py":
        return None
    domain, target = env.domains.python_domain, node["reftarget"]
    if "." not in target or target.startswith("btcompress."):
        last = target.rpartition(".")[2]
        entries = domain.objects.items()
        found = [name for name, entry in entries if name.rpartition(".")[2] == last and not entry.aliased]
        if len(found) == 1:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)
    return content if _is_there(target, node.get("py:module"), node.get("py:class")) else None


def _is_there(target: str, module: str | None, klass: str | None) -> bool:
    """Whether this is the name of something, given in full, or within a class or any module of the package."""
    try:
        pkgutil.resolve_name(f"{module}.{klass}.{target}" if klass and "." not in target else target)
    except (ImportError, AttributeError, ValueError):
        ours = (each for name, each in list(sys.modules.items()) if name.partition(".")[0] == "btcompress")
        return any(_within(each, target) for each in ours)
    return True


def _within(module: object, target: str) -> bool:
    try:
        reduce(getattr, target.split("."), module)
    except AttributeError:
        return False
    return True
