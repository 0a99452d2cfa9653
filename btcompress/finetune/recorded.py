"""Sequences of several layers in one file: what the arrays of each are called, and which layer's are meant.

The arrays of a layer are called ``NAME/x``, ``NAME/lengths`` and so on; those of a model that is such a layer itself,
and those that serve any layer, have no name in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from btcompress.checkpoint.wrappers import plain_name
from btcompress.errors import BTCompressError

#: The array that says whether a layer was seen to start from states other than zero.
MARK = "has_states"
_MOST_SHOWN = 8


def array_name(layer: str, part: str) -> str:
    """What the array of a layer is called; plain where the layer has no name."""
    return f"{layer}/{part}" if layer else part


def layers_in(names: Iterable[str]) -> tuple[str, ...]:
    """The layers that have inputs of their own among arrays of these names, as they stand there."""
    found = (name.removesuffix("/x") for name in names if name.endswith("/x"))
    return tuple(layer for layer in dict.fromkeys(found) if layer)


def is_same_layer(recorded: str, asked: str) -> bool:
    """Whether two names may be of one layer: one of them is the other, or the end of it, part by part.

    Names of a checkpoint's layers may have or lack what its keys begin with, such as ``model.``.
    """
    ours, theirs = (tuple(filter(None, plain_name(name).split("."))) for name in (recorded, asked))
    n_shared = min(len(ours), len(theirs))
    return n_shared == 0 or ours[-n_shared:] == theirs[-n_shared:]


def choose_layer(where: str, names: Sequence[str], layer: str | None) -> str:
    """The name that stands in front of the arrays of a layer.

    Args:
        where: the file, for messages.
        names: of the arrays in it.
        layer: which layer's are wanted; None for the only one.

    Returns:
        The name; empty for plain arrays, which serve any layer that has none of its own.

    Raises:
        BTCompressError: the file holds the arrays of other layers alone, or it is not clear which are meant.
    """
    layers = layers_in(names)
    if not layers or (layer is None and "x" in names):
        return ""
    if layer is None:
        found: Sequence[str] = layers
    else:
        exact = [each for each in layers if plain_name(each) == plain_name(layer)]
        found = exact or [each for each in layers if is_same_layer(each, layer)]
    if len(found) == 1:
        return found[0]
    if not found and "x" in names:
        return ""
    shown = ", ".join(layers[:_MOST_SHOWN]) + (" and others" if len(layers) > _MOST_SHOWN else "")
    wanted = "it is not clear which is meant" if layer is None or found else f"none is {layer or 'the top'}"
    raise BTCompressError(f"{where} holds the inputs of the layers {shown}, and {wanted}. Name one of them (--layer).")
