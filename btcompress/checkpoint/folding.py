"""Plain weights of those that are stored otherwise: by weight norm, spectral norm, pruning or weight drop.

Such a file holds what a parameter is made from. The plain tensor is formed as a network in eval mode forms it, and has
the plain key; what it was made from is left out. The formulas are those of ``torch.nn.utils``: ``weight_norm``,
``spectral_norm``, ``prune`` and ``parametrizations``. What does not fit them stays as it is stored.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from btcompress.checkpoint.mapping import page_out
from btcompress.checkpoint.names import PART
from btcompress.checkpoint.tensors import find_aliases
from btcompress.memory import require
from btcompress.text import listed

_PARAMETER = rf"(?:{PART}|weight|bias)"
_STORED = re.compile(
    rf"(?P<prefix>(?:.*\.)?)(?:parametrizations\.(?P<new>{_PARAMETER})\.(?P<inner>.+)"
    rf"|(?P<old>{_PARAMETER})_(?P<suffix>raw|orig|mask|g|v|u))",
    re.DOTALL,
)
_RECURRENT = re.compile(PART)

#: Axes of what is formed: a convolution is never factorized, and stays as it is stored.
_MOST_AXES = 2
#: Bytes formed on the way for each entry of a matrix.
_BYTES_ON_THE_WAY = 16


@dataclass(frozen=True, slots=True)
class Folded:
    """The tensors of a checkpoint, plain.

    Attributes:
        tensors: by name, in the order of the file.
        notices: what was formed and left out, and what could not be.
        renamed: the name of each plain tensor that has the place of another one, by the name of that.
        left_out: names that have no place any more.
    """

    tensors: dict[str, Tensor]
    notices: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()


def fold(tensors: Mapping[str, Tensor], label: str) -> Folded:
    """Form the plain matrices and biases of all that is stored otherwise; tensors that are one stay one.

    Taken are the keys of recurrent layers, and ``weight`` and ``bias`` of up to two axes. Where ``weight_hh_l0_raw``
    lies beside a layer that has the other weights, as fastai stores it, the plain key is that of the layer.

    Args:
        tensors: a flat state dict, on the CPU; never changed.
        label: what to call it in messages.

    Raises:
        MemoryLimitError: the plain tensors need more memory than there is.
    """
    groups: dict[tuple[str, str, bool], dict[str, str]] = defaultdict(dict)
    for key in tensors:
        if match := _STORED.fullmatch(key):
            group = groups[match["prefix"], match["new"] or match["old"], match["new"] is not None]
            group[match["inner"] or match["suffix"]] = key
    if not groups:
        return Folded(dict(tensors))
    folding = _Folding(tensors, label)
    for (prefix, part, _), group in groups.items():
        folding.add(prefix, part, group)
    return folding.done()


class _MisfitError(Exception):
    """Tensors are not what their names say; the text says how."""


class _Folding:
    """Forms plain tensors group by group.

    Args:
        tensors: of the file.
        label: what to call it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], label: str) -> None:
        self._tensors = tensors
        self._label = label
        self._aliases = find_aliases(tensors)
        self._layers = _layers(tensors)
        self._below: dict[str, list[str]] = defaultdict(list)
        for layer in self._layers:
            if layer:
                before, dot, _ = layer.removesuffix(".").rpartition(".")
                self._below[before + dot].append(layer)
        self._formed: dict[tuple[str, ...], Tensor] = {}
        self._plain: dict[str, Tensor] = {}
        self._sources: dict[str, tuple[str, ...]] = {}
        self._told: dict[str, list[str]] = defaultdict(list)

    def add(self, prefix: str, part: str, group: Mapping[str, str]) -> None:
        """Form the parameter of one group of tensors, whose keys are given under what they end in."""
        way = _WAYS.get(frozenset(group))
        if way is None or (way.is_dropped and not _RECURRENT.fullmatch(part)):
            return
        plain = f"{self._home(prefix) if way.is_dropped else prefix}{part}"
        if plain in self._plain:
            return
        keys = tuple(plain if name == _BESIDE else group[name] for name in way.names)
        if _BESIDE in way.names and (plain not in self._tensors or _is_all_ones(self._tensors[group["mask"]])):
            return
        if self._tensors[keys[0]].dim() > _MOST_AXES:
            return
        try:
            self._plain[plain] = self._form(way, keys)
        except _MisfitError as why:
            self._told[f"Left as it is, by {way.words}: {why}"].append(plain)
            return
        if _BESIDE in way.names:
            self._told["Multiplied by the mask beside it, which stays as well"].append(plain)
            return
        self._sources[plain] = keys
        self._told[f"Stored by {way.words}, and formed as the model does at inference"].append(plain)
        if plain in self._tensors:
            self._told[f"Left out, the copy of the same name that {way.words} made in training"].append(plain)

    def _home(self, prefix: str) -> str:
        """Where the other weights of a layer are: here, or in the one module below that has any."""
        below = self._below.get(prefix, ())
        return below[0] if prefix not in self._layers and len(below) == 1 else prefix

    def _form(self, way: _Way, keys: tuple[str, ...]) -> Tensor:
        known = (way.words, *(self._aliases.get(key, key) for key in keys))
        if known in self._formed:
            return self._formed[known]
        stored = [self._tensors[key] for key in keys]
        main = stored[0]
        if not main.dim() or not main.numel():
            raise _MisfitError(f"{keys[0]} has shape {tuple(main.shape)}, which is no matrix or bias")
        if not main.is_floating_point():
            raise _MisfitError(f"{keys[0]} holds no floating-point numbers")
        if len(stored) > 1:
            n_bytes = main.numel() * (_BYTES_ON_THE_WAY + main.element_size())
            require(
                n_bytes, f"{self._label}: the plain form of {keys[0]}", "Save the plain state dict in your own code."
            )
        self._formed[known] = way.form(*stored)
        for tensor in stored if len(stored) > 1 else ():
            if tensor.is_contiguous():
                page_out(tensor)
        return self._formed[known]

    def done(self) -> Folded:
        """All tensors: each plain one where the one of its name lay, or else the first that it was made from."""
        taken = {key for keys in self._sources.values() for key in keys}
        positions = {key: position for position, key in enumerate(self._tensors) if key in taken}
        renamed = {
            min(keys, key=positions.__getitem__): plain
            for plain, keys in self._sources.items()
            if plain not in self._tensors
        }
        tensors: dict[str, Tensor] = {}
        for key, tensor in self._tensors.items():
            if key in renamed or key not in taken:
                name = renamed.get(key, key)
                tensors[name] = self._plain.get(name, tensor)
        notices = tuple(f"{words}: {listed(names)}." for words, names in self._told.items())
        return Folded(tensors, notices, renamed, frozenset(taken - renamed.keys()))


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, None]:
    """What stands before the keys of recurrent layers' plain parts."""
    halves = (key.rpartition(".") for key in tensors)
    return dict.fromkeys(prefix + dot for prefix, dot, part in halves if _RECURRENT.fullmatch(part))


def _is_all_ones(mask: Tensor) -> bool:
    return bool(mask.eq(1).all())


def _wide(tensor: Tensor) -> Tensor:
    """In a dtype in which sums over a matrix keep the digits of its own."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _dropped(raw: Tensor) -> Tensor:
    """Nothing is dropped at inference."""
    return raw


def _weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """``g v / |v|``, with a norm for each row, each column or all of it: for what ``g`` has entries."""
    sizes = tuple(g.shape) if g.dim() == v.dim() else (1,) * v.dim()
    each = [axis for axis, size in enumerate(sizes) if size != 1]
    if g.numel() != max(sizes) or len(each) > 1 or any(sizes[axis] != v.shape[axis] for axis in each):
        raise _MisfitError(f"norms of shape {tuple(g.shape)} do not fit {tuple(v.shape)}")
    if not g.is_floating_point():
        raise _MisfitError("its norms are no floating-point numbers")
    over = [axis for axis in range(v.dim()) if axis not in each]
    wide = _wide(v)
    norms = torch.linalg.vector_norm(wide, dim=over, keepdim=True) if over else wide.abs()
    return (wide * (_wide(g).reshape(sizes) / norms)).to(v.dtype)


def _spectral_norm(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``W / (u' W v)``, with the vectors as they are; of a square matrix the rows are the first axis, as by default."""
    sizes = (tuple(u.shape), tuple(v.shape))
    rows, columns = [(size,) for size in (*weight.shape, 0)[:2]]
    if weight.dim() != _MOST_AXES or sizes not in ((rows, columns), (columns, rows)):
        raise _MisfitError(f"vectors of shapes {sizes[0]} and {sizes[1]} do not fit {tuple(weight.shape)}")
    if not (u.is_floating_point() and v.is_floating_point()):
        raise _MisfitError("its vectors are no floating-point numbers")
    wide, left, right = _wide(weight), _wide(u), _wide(v)
    if sizes != (rows, columns):
        left, right = right, left
    dtype = torch.promote_types(wide.dtype, torch.promote_types(left.dtype, right.dtype))
    sigma = left.to(dtype) @ (wide.to(dtype) @ right.to(dtype))
    return (wide / sigma).to(weight.dtype)


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Each entry times that of the mask."""
    if mask.shape != weight.shape:
        raise _MisfitError(f"a mask of shape {tuple(mask.shape)} does not fit {tuple(weight.shape)}")
    if mask.is_complex():
        raise _MisfitError("its mask holds complex numbers")
    return mask.to(weight.dtype) * weight


def _masked_beside(weight: Tensor, mask: Tensor) -> Tensor:
    """As by pruning, where the mask is one: what has other numbers may be anything."""
    if not bool((mask.eq(0) | mask.eq(1)).all()):
        raise _MisfitError("the mask beside it holds other numbers than 0 and 1")
    return _masked(weight, mask)


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to store a parameter.

    Attributes:
        words: its name.
        names: what the keys of its tensors end in, in the order in which the formula takes them.
        form: the formula; raises :class:`_MisfitError` where the tensors do not fit.
    """

    words: str
    names: tuple[str, ...]
    form: Callable[..., Tensor]

    @property
    def is_dropped(self) -> bool:
        """Whether it is weight drop, which may be stored beside the layer."""
        return self.form is _dropped


#: Stands for the key of the plain parameter itself among the names of a way.
_BESIDE = ""

#: By all that is stored: a parameter with more than that was altered several times over.
_WAYS = {
    frozenset(way.names) - {_BESIDE}: way
    for way in (
        _Way("weight norm", ("v", "g"), _weight_norm),
        _Way("weight norm", ("original1", "original0"), _weight_norm),
        _Way("spectral norm", ("orig", "u", "v"), _spectral_norm),
        _Way("spectral norm", ("original", "0._u", "0._v"), _spectral_norm),
        _Way("pruning", ("orig", "mask"), _masked),
        _Way("weight drop", ("raw",), _dropped),
        _Way("a mask", (_BESIDE, "mask"), _masked_beside),
    )
}
