"""Plain YAML: mappings, lists, text, numbers, ``true``, ``false`` and ``null``, each what it looks like.

What a small file could make large, or what could stand for something else than is read there, is refused with its
line: aliases and anchors (``&`` and ``*``), tags (``!``), merge keys (``<<``), a key given twice, numbers of more than
18 digits, more than 10 levels, lists of more than 1,000 entries. ``yes``, ``no``, ``on``, ``off``, ``010``, ``0x10``,
``1_000``, ``1:30`` and dates are text here, not truth values and numbers as YAML 1.1 has it.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from btcompress.errors import BTCompressError
from btcompress.files import open_regular

#: Bytes of some thousand matrices.
_LARGEST_FILE = 2**20
_MOST_LEVELS = 10
_MOST_ITEMS = 1000
#: Below 10^18, so every whole number is one of 64 bits.
_MOST_DIGITS = 18
_MOST_FLOAT = 32
_TAG = "tag:yaml.org,2002:"


def load(path: Path, advice: str) -> object:
    """The value in a file of plain YAML in UTF-8.

    Args:
        path: the file.
        advice: what to do where it cannot be read, a sentence.

    Raises:
        BTCompressError: it is missing, no regular file, too large, not in UTF-8 or no plain YAML; the text names the
            line.
    """
    with open_regular(path, advice) as file:
        try:
            data = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise BTCompressError(f"{path} cannot be read ({error.strerror}). {advice}") from error
    if len(data) > _LARGEST_FILE:
        raise BTCompressError(f"{path} is too large: it has more than {_LARGEST_FILE:,} bytes. {advice}")
    line = 0
    try:
        text = data.decode("utf-8-sig")
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506  # the loader below is yaml's safe one, made stricter
    except UnicodeDecodeError as error:
        line, reason = data.count(b"\n", 0, error.start), "it is not text in UTF-8"
    except yaml.reader.ReaderError as error:
        line, reason = text.count("\n", 0, error.position), f"there is a control character (#x{error.character:04x})"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, reason = 0 if mark is None else mark.line, ", ".join(filter(None, (error.context, error.problem)))
    reason = textwrap.shorten(reason, 200, placeholder=" ...")
    raise BTCompressError(f"{path} is no plain YAML (line {line + 1}: {reason}). {advice}")


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader with fewer meanings; each of those left means what it does there."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # as PyYAML has it

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:  # noqa: ANN401
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refused("anchors and aliases (& and *) are not taken; write the value out, or in quotes", event)
        if event.tag is not None:
            raise _refused("tags (!) are not taken; leave it out, or write text in quotes", event)
        if self._level > _MOST_LEVELS:
            raise _refused(f"more than {_MOST_LEVELS} levels are not taken", event)
        if isinstance(index, int) and index >= _MOST_ITEMS:
            raise _refused(f"lists of more than {_MOST_ITEMS} entries are not taken", event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or (key.value == "<<" and key.style is None):
                raise _refused("keys are text, and merge keys (<<) are not taken; write the values out", key)
            if (key.tag, key.value) in seen:
                raise _refused(f"{_shortened(key.value)} is there twice; leave one of them", key)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _refused("a text holds half a character (\\ud800 to \\udfff)", node)
        return text

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        if len(node.value.lstrip("+-")) > _MOST_DIGITS:
            raise _refused(f"a number has more than {_MOST_DIGITS} digits", node)
        return int(node.value)

    def construct_fraction(self, node: yaml.ScalarNode) -> float:
        if len(node.value) > _MOST_FLOAT:
            raise _refused(f"a number has more than {_MOST_FLOAT} characters", node)
        return float(self.construct_yaml_float(node))

    # YAML's escapes in text reach beyond Unicode, where PyYAML's scanner raises what chr() does.
    def scan_flow_scalar_non_spaces(self, double: bool, start_mark: yaml.Mark) -> list[str]:
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(None, None, "an escape stands for no character", self.get_mark()) from error


def _refused(problem: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, place.start_mark)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


# Each is a part of what PyYAML's own resolver takes, so text that PyYAML writes without quotes is text here too.
for _name, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", [*"~nN", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", [*"+-0123456789"]),
    (
        "float",
        r"[-+]?(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"+-.0123456789"],
    ),
):
    _PlainLoader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
_PlainLoader.add_constructor(f"{_TAG}str", _PlainLoader.construct_text)
_PlainLoader.add_constructor(f"{_TAG}int", _PlainLoader.construct_whole)
_PlainLoader.add_constructor(f"{_TAG}float", _PlainLoader.construct_fraction)
