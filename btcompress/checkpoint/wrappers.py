"""The parts that wrappers put into names, and which names of a file are which of a model behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

#: Of DataParallel, torch.compile, Lightning Fabric, FSDP, checkpointed activations and Opacus.
_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_module"}
)
#: What trainers call the network that they train, though it may be a layer's own name as well.
_USUAL = frozenset({"model"})


def plain_name(name: str) -> str:
    """A name without the parts that wrappers put into it."""
    return _without(name, _WRAPPERS)


def _plainest_name(name: str) -> str:
    return _without(name, _WRAPPERS | _USUAL)


def _without(name: str, parts: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in parts)


def matched(given: Iterable[str], held: Iterable[str]) -> dict[str, str]:
    """Which names of one network, as something else calls it, are which of its own.

    A name is matched with itself, else with the only one that is the same without the parts of wrappers, else with the
    only one that is the same without parts ``model`` as well. No two are matched with one.

    Args:
        given: names of layers or tensors, as of a file.
        held: such names in the model.

    Returns:
        Of those given that are matched, the one held.
    """
    given, held = dict.fromkeys(given), dict.fromkeys(held)
    found = {name: name for name in given if name in held}
    for plain in (plain_name, _plainest_name):
        taken = set(found.values())
        theirs = _by(plain, (name for name in held if name not in taken))
        for shared, ours in _by(plain, (name for name in given if name not in found)).items():
            if len(ours) == len(theirs.get(shared, ())) == 1:
                found[ours[0]] = theirs[shared][0]
    return found


def _by(plain: Callable[[str], str], names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[plain(name)].append(name)
    return groups
