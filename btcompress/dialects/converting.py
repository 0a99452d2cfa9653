"""The recurrent layers of a checkpoint in torch's names, whichever project's grammar they are written in."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from btcompress.dialects import (
    allennlp,
    batchnorm,
    flax,
    gatewise,
    haste,
    keras,
    mxnet,
    ncps,
    quantizable,
    tensorflow1,
    torchaudio,
    torchscript,
    unconverted,
)
from btcompress.dialects.found import Converted, Dialect, Refused
from btcompress.memory import require
from btcompress.shapes import Nonlinearity
from btcompress.text import listed

#: All that are known, each in a file of its own; the first that finds a layer has it.
DIALECTS: tuple[Dialect, ...] = (
    allennlp.DIALECT,
    torchaudio.DIALECT,
    quantizable.DIALECT,
    torchscript.DIALECT,
    batchnorm.DIALECT,
    keras.DIALECT,
    haste.DIALECT,
    ncps.DIALECT,
    tensorflow1.DIALECT,
    flax.DIALECT,
    mxnet.DIALECT,
    gatewise.DIALECT,
    unconverted.DIALECT,
)

_MOST_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Conversion:
    """The tensors of a checkpoint, with its recurrent layers in torch's names.

    Attributes:
        tensors: by name; the tensors of a converted layer stand where the first that they were made of stood.
        notices: what was converted from what.
        refused: layers that could not be, whose tensors stay as they are.
        nonlinearities: of plain RNNs, by their names, where the file says them.
        converted: by the name of each converted layer the dialect that it was written in.
    """

    tensors: dict[str, Tensor]
    notices: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    nonlinearities: dict[str, Nonlinearity] = field(default_factory=dict)
    converted: dict[str, str] = field(default_factory=dict)


def convert(tensors: Mapping[str, Tensor], label: str, dialects: Sequence[Dialect] = DIALECTS) -> Conversion:
    """Bring every recurrent layer into torch's names and order.

    Args:
        tensors: a flat state dict, on the CPU; never changed.
        label: what to call it in messages.
        dialects: those that are looked for.

    Raises:
        MemoryLimitError: the converted tensors need more memory than there is.
    """
    found: list[tuple[Dialect, Converted | Refused]] = []
    taken: set[str] = set()
    names: set[str] = set()
    for dialect in dialects:
        for layer in dialect.find(tensors):
            if taken.isdisjoint(layer.keys) and not (isinstance(layer, Converted) and _is_there(layer, names, tensors)):
                found.append((dialect, layer))
                taken |= set(layer.keys)
                names.add(layer.name)
    return converted(tensors, found, label)


def converted(
    tensors: Mapping[str, Tensor], found: Iterable[tuple[Dialect, Converted | Refused]], label: str
) -> Conversion:
    """The same for layers that are known already, as a file says itself which there are.

    Args:
        tensors: by name; never changed.
        found: the layers, each with the dialect that it is written in.
        label: what to call the file in messages.

    Raises:
        MemoryLimitError: the converted tensors need more memory than there is.
    """
    layers = list(found)
    foreign = [(dialect.name, layer) for dialect, layer in layers if isinstance(layer, Converted)]
    taken = {key for _, layer in foreign for key in layer.keys}
    n_bytes = sum(tensors[key].nbytes for key in taken)
    what = f"Bringing the recurrent layers of {label} into the order of torch"
    require(n_bytes, what, "Free memory, or convert it in your own code and save it in torch's names.")
    homes = {layer.keys[0]: layer for _, layer in foreign}
    formed: dict[Hashable, Mapping[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in homes:
            layer = homes[key]
            prefix = f"{layer.name}." if layer.name else ""
            same = tuple(_identity(tensors[each]) for each in layer.keys)
            if same not in formed:
                formed[same] = dict(layer.make())
            whole |= {prefix + name: each for name, each in formed[same].items()}
        elif key not in taken:
            whole[key] = tensor
    by_dialect: dict[str, list[Converted]] = {}
    for name, layer in foreign:
        by_dialect.setdefault(name, []).append(layer)
    told = [_told(name, own) for name, own in by_dialect.items()]
    return Conversion(
        whole,
        (*told, *(notice for _, layer in foreign for notice in layer.notices)),
        tuple(layer for _, layer in layers if isinstance(layer, Refused)),
        {layer.name: layer.nonlinearity for _, layer in foreign if layer.nonlinearity is not None},
        {layer.name: name for name, layer in foreign},
    )


def _is_there(layer: Converted, names: Collection[str], tensors: Mapping[str, Tensor]) -> bool:
    """Whether another layer has the name that it is to get."""
    prefix = f"{layer.name}." if layer.name else ""
    keys = {f"{prefix}weight_ih", f"{prefix}weight_ih_l0"} - set(layer.keys)
    return layer.name in names or not keys.isdisjoint(tensors)


def _identity(tensor: Tensor) -> Hashable:
    """What tensors have in common that are one."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _told(dialect: str, layers: Sequence[Converted]) -> str:
    names = listed([layer.name or "the top" for layer in layers], _MOST_SHOWN)
    return f"{names}: converted from {dialect}, into the names and the order of gates and axes of torch."
