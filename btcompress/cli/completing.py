"""What shells complete beside choices: words that an option takes, and names of layers; nothing here loads torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import typer

#: Parameters of commands that name a checkpoint or a result.
_FILES = ("model", "compressed")
#: Bytes of a header that is read through while somebody waits for a key.
_MOST_BYTES, _LENGTH_BYTES = 1 << 24, 8
#: A key of a matrix of a recurrent layer, or of its bias.
_KEY = re.compile(r"(?:(?P<layer>.+)\.)?(?:weight|bias)_(?:ih|hh|hr)(?:_l\d+)?(?:_reverse)?(?=\.|$)")


def words(*choices: str) -> Callable[[str], list[str]]:
    """Completion by these words."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def listed_words(*choices: str) -> Callable[[str], list[str]]:
    """Completion of the last of several of these words between commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + choice for choice in choices if choice.startswith(last)]

    return complete


def layers(context: typer.Context, incomplete: str) -> list[str]:
    """Completion by the recurrent layers of the ``.safetensors`` file that the command line names."""
    found = {key["layer"]: None for key in _keys(context) if key["layer"]}
    return [name for name in found if name.startswith(incomplete)]


def matrices(context: typer.Context, incomplete: str) -> list[str]:
    """Completion by these layers and by the keys of their matrices."""
    found = {key[0]: None for key in _keys(context) if "weight_" in key[0]}
    return [*layers(context, incomplete), *(name for name in found if name.startswith(incomplete))]


def _keys(context: typer.Context) -> list[re.Match[str]]:
    """What of the keys of the file belongs to recurrent layers; nothing where the file is of another kind."""
    # Where an option that lacks its value ends the line, arguments before it are not told apart.
    words = [*(context.params.get(name) for name in _FILES), *context.args]
    path = next((word for word in words if word is not None), "")
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if length <= _MOST_BYTES else {}
    except (OSError, TypeError, ValueError, RecursionError):
        return []
    return [key for name in header if (key := _KEY.match(name))] if isinstance(header, dict) else []
