"""The reference of the commands, made from the commands themselves: it takes the place of a mark in `commands.md`."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer.main

from btcompress.cli import app as commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sphinx.application import Sphinx

#: The page, and the line in it.
PAGE, MARK = "commands", "<!-- commands -->"
#: Of parameters that have no heading of their own.
_ARGUMENTS, _OPTIONS = "Arguments", "Options"
#: Options, and variables of the environment.
_CODE = re.compile(r"(?<![\w-])(--?[A-Za-z][\w-]*|[A-Z]+_[A-Z_]+)")
#: What Markdown would take for markup.
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|#~"})


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx have the page with the reference in it."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}


def _fill(_app: Sphinx, page: str, source: list[str]) -> None:
    if page == PAGE:
        source[0] = source[0].replace(MARK, "\n".join(_reference()))


def _reference() -> Iterator[str]:
    """Markdown: the options of ``btcompress`` itself, then a section for each command."""
    # Typer brings a copy of click of its own, whose classes are those of no documented module.
    root: Any = typer.main.get_command(commands)
    with root.make_context(root.name, [], resilient_parsing=True) as context:
        yield from _of(root, context, root.name)
        for name, command in root.commands.items():
            with command.make_context(name, [], parent=context, resilient_parsing=True) as below:
                yield f"## {name}\n"
                yield from _of(command, below, f"{root.name} {name}", said=root.epilog)


def _of(command: Any, context: Any, path: str, said: str | None = None) -> Iterator[str]:  # noqa: ANN401
    """One command, without the end of its help where that was said already."""
    yield f"{_plain(command.help)}\n"
    yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    yield f":::{{program}} {path}\n:::\n"
    shown = [each for each in command.get_params(context) if not each.hidden]
    for heading, parameters in groupby(sorted(shown, key=_order(shown)), key=_heading):
        yield f":::{{rubric}} {heading}\n:::\n"
        for each in parameters:
            # With defaults, limits and environment variables, as --help has them.
            names, text = each.get_help_record(context)
            yield f":::{{option}} {names}\n{_plain(text)}\n:::\n"
    if command.epilog and command.epilog != said:
        yield f"{_plain(command.epilog)}\n"


def _heading(parameter: Any) -> str:  # noqa: ANN401
    own = getattr(parameter, "rich_help_panel", None)
    return own or (_ARGUMENTS if parameter.param_type_name == "argument" else _OPTIONS)


def _order(parameters: Iterable[Any]) -> Callable[[Any], int]:
    """Headings as ``--help`` has them: arguments, options without a heading, then all others as they first occur."""
    met = [_ARGUMENTS, _OPTIONS, *map(_heading, parameters)]
    return lambda each: met.index(_heading(each))


def _plain(text: str) -> str:
    """Markdown of a text, with options and variables as code."""
    pieces = _CODE.split(" ".join(text.split()))
    return "".join(f"`{piece}`" if index % 2 else piece.translate(_SPECIAL) for index, piece in enumerate(pieces))
