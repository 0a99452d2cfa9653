"""Which tensors lie beside a recurrent layer's own: they show that a module is no plain ``LSTM`` of torch's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from btcompress.errors import CheckpointError
from btcompress.text import listed

if TYPE_CHECKING:
    from btcompress.checkpoint.names import RecurrentEntry

#: Counters that profilers leave in every module; nothing is computed with them.
_COUNTERS = frozenset({"total_ops", "total_params"})
_MOST_SHOWN = 4


def siblings_of(
    prefixes: Collection[str], tensors: Mapping[str, Tensor], own: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The tensors that lie below the prefix of a recurrent layer and are not its own.

    torch's layers have neither other tensors nor modules below them. One that has is of another class, which may
    compute anything with these: layer norm of the gates, peepholes. A tensor belongs to the nearest layer above it.
    Weights of whole layers say nothing at the top, where all of a model lies below the prefix, nor below an LSTM, of
    which a class may be made that has a head as well; they are none there.

    Args:
        prefixes: of the layers, with the dot at the end; empty at the top.
        tensors: the state dict.
        own: keys that are some recurrent layer's own.

    Returns:
        The names without the prefix, in the order of their keys, by prefix; nothing for layers that have none.
    """
    found: dict[str, list[str]] = defaultdict(list)
    above: list[str] = []
    # What lies below a prefix follows it in order, so the nearest prefix is the last one that is still open.
    items = [*((prefix, True) for prefix in prefixes), *((key, False) for key in tensors)]
    for key, is_prefix in sorted(items, key=_order):
        while above and not key.startswith(above[-1]):
            above.pop()
        if is_prefix:
            above.append(key)
        elif above and key not in own and _may_count(key, tensors[key]):
            is_cell = above[-1] and f"{above[-1]}weight_ih_l0" not in own
            name = key.removeprefix(above[-1])
            if is_cell or not ("." in name and _is_of_a_layer(key, tensors)):
                found[above[-1]].append(name)
    return {prefix: tuple(names) for prefix, names in found.items()}


def check_plain(entry: RecurrentEntry, what: str, way_out: str) -> None:
    """Refuse what would compute a layer as torch does where that is not what its model computes.

    Args:
        entry: the layer.
        what: what needs it to be plain, as the subject of a sentence.
        way_out: what to do instead, in sentences.

    Raises:
        CheckpointError: tensors lie beside its own.
    """
    if entry.siblings:
        raise CheckpointError(f"{oddity(entry)}, and {what} would compute a plain {entry.class_name}. {way_out}")


def oddity(entry: RecurrentEntry) -> str:
    """That a layer is no plain one, and why, as the beginning of a sentence."""
    return (
        f"{entry.name or 'the layer at the top'} is no plain {entry.class_name} (beside its weights: "
        f"{listed(entry.siblings, _MOST_SHOWN)})"
    )


def _order(item: tuple[str, bool]) -> tuple[str, bool]:
    key, is_prefix = item
    return key, not is_prefix


def _may_count(key: str, tensor: Tensor) -> bool:
    return tensor.numel() > 0 and key.rpartition(".")[2] not in _COUNTERS


def _is_of_a_layer(key: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is a module's that has a matrix, or one itself, as those of other layers are."""
    weight = tensors.get(f"{key.rpartition('.')[0]}.weight")
    return tensors[key].dim() >= 2 or (weight is not None and weight.dim() >= 2)
