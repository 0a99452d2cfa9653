"""Which keys of a state dict end in the names that a grammar knows, by what stands before these."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence


def below(tensors: Iterable[str], endings: Sequence[str]) -> dict[str, dict[str, str]]:
    """The keys that end in one of some names, in one pass.

    Args:
        tensors: a state dict, or its keys.
        endings: names such as ``"x2g.weight"``; a key ends in one where a dot stands before it, or nothing.

    Returns:
        Keys by their endings, by what stands before, with the dot at the end, in the order of the file.
    """
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    every = tuple(endings)
    for key in tensors:
        if key.endswith(every):
            for ending in every:
                if key == ending or key.endswith(f".{ending}"):
                    groups[key[: len(key) - len(ending)]][ending] = key
    return groups


def parent_of(prefix: str) -> str:
    """What stands before the last part of a prefix, with the dot at the end: ``"a."`` of ``"a.b."``."""
    return prefix[: prefix.removesuffix(".").rfind(".") + 1]


def last_of(prefix: str) -> str:
    """The last part of a prefix: ``"b"`` of ``"a.b."``."""
    return prefix.removesuffix(".").rpartition(".")[2]
