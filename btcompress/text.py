"""Text from elsewhere, such as keys, file names and errors: what of it may be recorded, and what may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

#: Surrogates that stand for no byte of a file name.
_LONE_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def valid_unicode(text: str) -> str:
    r"""The text, to be recorded: bytes of a file name that are not UTF-8, and lone surrogates, as backslash escapes."""
    escaped = _LONE_SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def valid_values(value: object) -> object:
    """Plain values as JSON gives them back: every text as :func:`valid_unicode` makes it, sequences as lists."""
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, Mapping):
        return {valid_unicode(str(key)): valid_values(each) for key, each in value.items()}
    return [valid_values(each) for each in value] if isinstance(value, list | tuple) else value


def printable(text: str) -> str:
    """The text as one line that does nothing to a terminal but show: all that is no visible character is escaped.

    Control and format characters, separators of lines, and whatever else turns a line around or ends it become
    backslash escapes.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in valid_unicode(text))


def shortened(text: str, limit: int) -> str:
    """The text where it has at most ``limit`` characters; else its two ends, with how much is left out between them."""
    if len(text) <= limit:
        return text
    kept = max(limit - len(_left_out(len(text))), 2)
    end = kept // 2
    return f"{text[: kept - end]}{_left_out(len(text) - kept)}{text[-end:]}"


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names between commas, of more than ``most`` the first ones and how many more there are."""
    if not names:
        return "none"
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _left_out(count: int) -> str:
    return f" ... ({count:,} characters left out) ... "


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
