"""The grammar of recurrent layers' keys: which LSTMs, GRUs and plain RNNs a state dict holds, and what else looks so.

``torch.nn.LSTM``, ``GRU`` and ``RNN`` write ``weight_ih_l{k}[_reverse]`` and the like below any prefix, their cells
the same without ``_l{k}``; rows per hidden unit tell them apart. A plain RNN's nonlinearity is not in its tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from btcompress.checkpoint.relatives import relative_of, sru_layers
from btcompress.checkpoint.siblings import siblings_of
from btcompress.shapes import GATES, Cell, Nonlinearity

#: The name of a parameter of a recurrent layer.
PART = r"(?:weight|bias)_(?:ih|hh|hr)(?:_l(?:0|[1-9][0-9]{0,5})(?:_reverse)?)?"
_KEY = re.compile(rf"(?P<prefix>(?:.*\.)?)(?P<part>{PART})", re.DOTALL)

#: Parts that are stored otherwise, in ways that ``folding.py`` did not know or that do not fit, and quantized ones.
_ALTERED = re.compile(
    rf"(?P<prefix>(?:.*\.)?)"
    rf"(?:parametrizations\.(?P<norm>{PART})\..+|(?P<old>{PART})_(?:raw|orig|mask|g|v|u)|(?P<packed>_all_weight_values)\..+)",
    re.DOTALL,
)

#: A recurrent layer, or a single step without a layer number; ``"cell"`` is that of an LSTM.
Kind = Literal["lstm", "cell", "gru", "gru_cell", "rnn", "rnn_cell"]

_KINDS: dict[Cell, tuple[Kind, Kind]] = {
    "lstm": ("lstm", "cell"),
    "gru": ("gru", "gru_cell"),
    "rnn": ("rnn", "rnn_cell"),
}
_TYPES: dict[Kind, Cell] = {kind: each for each, kinds in _KINDS.items() for kind in kinds}
_BY_GATES: dict[int, Cell] = {len(names): each for each, names in GATES.items()}


@dataclass(frozen=True, slots=True)
class RecurrentEntry:
    """One recurrent layer of a state dict, as a class of torch's has it, with shapes that agree.

    Attributes:
        prefix: what stands before its keys, with the dot at the end; empty at the top.
        kind: ``"lstm"``, ``"gru"``, ``"rnn"``, or for keys without a layer number ``"cell"``, ``"gru_cell"``,
            ``"rnn_cell"``.
        input_size: ``I``, columns of the first layer's ``weight_ih``.
        hidden_size: ``H``; every weight has 4, 3 or 1 times as many rows.
        num_layers: layers, 1 for a cell.
        bidirectional: every layer runs in both directions.
        proj_size: size that hidden states are projected to, or 0.
        bias: the layers have biases.
        siblings: tensors beside its own, without the prefix. A layer that has any computes something else than torch's.
        nonlinearity: of a plain RNN.
    """

    prefix: str
    kind: Kind
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    bias: bool = True
    siblings: tuple[str, ...] = ()
    nonlinearity: Nonlinearity = "tanh"

    @property
    def name(self) -> str:
        """The prefix without its dot; empty at the top."""
        return self.prefix.removesuffix(".")

    @property
    def type(self) -> Cell:
        """What it computes at each step."""
        return _TYPES[self.kind]

    @property
    def is_cell(self) -> bool:
        """Whether it is a single step, without a layer number in its keys."""
        return self.kind == _KINDS[self.type][1]

    @property
    def class_name(self) -> str:
        """The class of ``torch.nn`` that has these keys."""
        return f"{self.type.upper()}{'Cell' if self.is_cell else ''}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What torch's class of these keys is built with, that of ours too; in no file are dropout and the like."""
        found: dict[str, Any] = {"input_size": self.input_size, "hidden_size": self.hidden_size, "bias": self.bias}
        if not self.is_cell:
            found |= {"num_layers": self.num_layers, "bidirectional": self.bidirectional}
        if self.proj_size:
            found["proj_size"] = self.proj_size
        if self.type == "rnn":
            found["nonlinearity"] = self.nonlinearity
        return found

    @property
    def n_gates(self) -> int:
        """Rows per hidden unit."""
        return len(GATES[self.type])

    @property
    def n_states(self) -> int:
        """Tensors of a state: ``h`` and ``c`` of an LSTM, else ``h``."""
        return 2 if self.type == "lstm" else 1

    @property
    def n_outputs(self) -> int:
        """Numbers that it gives at each step, of both directions."""
        return (1 + self.bidirectional) * (self.proj_size or self.hidden_size)

    @property
    def input_keys(self) -> tuple[str, ...]:
        """Keys of the input-to-hidden matrices, by layer, forward before reverse."""
        return tuple(f"{self.prefix}weight_ih{suffix}" for suffix in self.suffixes)

    @property
    def recurrent_keys(self) -> tuple[str, ...]:
        """Keys of the hidden-to-hidden matrices, in the order of :attr:`input_keys`."""
        return tuple(f"{self.prefix}weight_hh{suffix}" for suffix in self.suffixes)

    @property
    def projection_keys(self) -> tuple[str, ...]:
        """Keys of the projections, in the order of :attr:`input_keys`; none without them."""
        return tuple(f"{self.prefix}weight_hr{suffix}" for suffix in self.suffixes) if self.proj_size else ()

    @property
    def unit_sides(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """For each layer and direction the sides of matrices that stand for its hidden units, at the same index alike.

        Each side is a key, and ``"row_order"`` for the rows of each gate or ``"column_order"`` for the columns. The
        columns of a layer that follows two directions, or a projection, do not stand for the units of one layer.
        """
        units = []
        for n, suffix in enumerate(self.suffixes):
            inputs, recurrent = f"{self.prefix}weight_ih{suffix}", f"{self.prefix}weight_hh{suffix}"
            sides = [(inputs, "row_order"), (recurrent, "row_order")]
            if not self.proj_size:
                sides.append((recurrent, "column_order"))
                if not self.bidirectional and n + 1 < self.num_layers:
                    sides.append((f"{self.prefix}weight_ih{self.suffixes[n + 1]}", "column_order"))
            units.append(tuple(sides))
        return tuple(units)

    @property
    def matrix_keys(self) -> tuple[str, ...]:
        """Keys of all matrices, in the order of torch's class."""
        return tuple(key for key, shape in self.shapes.items() if len(shape) == 2)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of this layer, in the order of torch's class."""
        return tuple(self.shapes)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What follows ``weight_ih`` in each layer and direction: ``""`` for a cell, else ``"_l0"`` and on."""
        if self.is_cell:
            return ("",)
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return tuple(f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by key."""
        rows = self.n_gates * self.hidden_size
        state = self.proj_size or self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for suffix in self.suffixes:
            first = suffix in ("", "_l0", "_l0_reverse")
            shapes[f"{self.prefix}weight_ih{suffix}"] = (rows, self.input_size if first else self.n_outputs)
            shapes[f"{self.prefix}weight_hh{suffix}"] = (rows, state)
            if self.bias:
                shapes[f"{self.prefix}bias_ih{suffix}"] = (rows,)
                shapes[f"{self.prefix}bias_hh{suffix}"] = (rows,)
            if self.proj_size:
                shapes[f"{self.prefix}weight_hr{suffix}"] = (self.proj_size, self.hidden_size)
        return shapes


@dataclass(frozen=True, slots=True)
class OtherRecurrent:
    """Keys in a grammar of recurrent layers that are no complete layer of torch's and stay as they are.

    Attributes:
        prefix: what stands before the keys, with the dot at the end; empty at the top.
        kind: ``"unknown"``.
        reason: why it is left alone, in words.
        keys: all its keys.
    """

    prefix: str
    kind: Literal["unknown"]
    reason: str
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """The prefix without its dot; empty at the top."""
        return self.prefix.removesuffix(".")


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts ``layer2`` before ``layer10``."""
    texts_and_numbers = enumerate(re.split(r"([0-9]+)", name))
    stripped = (piece.lstrip("0") if position % 2 else piece for position, piece in texts_and_numbers)
    return tuple((len(piece) if position % 2 else 0, piece) for position, piece in enumerate(stripped))


def find_recurrent(
    tensors: Mapping[str, Tensor], nonlinearities: Mapping[str, Nonlinearity] | None = None
) -> tuple[RecurrentEntry | OtherRecurrent, ...]:
    """Find every recurrent layer of a state dict by its keys and shapes.

    Args:
        tensors: a flat state dict; only keys, shapes and dtypes are looked at, so meta tensors serve.
        nonlinearities: of plain RNNs, by their names; ``"tanh"`` for those that are not named.

    Returns:
        Layers in natural order of their prefixes, each with what lies beside its own tensors. A layer that is
        incomplete, altered (weight norm, weight dropout, quantization), inconsistent or none of torch's is an
        :class:`OtherRecurrent`.
    """
    groups: dict[tuple[str, bool], list[str]] = defaultdict(list)
    altered: dict[str, dict[str, str]] = defaultdict(dict)
    for key in tensors:
        if match := _KEY.fullmatch(key):
            groups[match["prefix"], "_l" in match["part"]].append(key)
        elif match := _ALTERED.fullmatch(key):
            part = match["norm"] or match["old"] or match["packed"]
            if not (key.endswith("_mask") and f"{match['prefix']}{part}" in tensors):  # a buffer beside plain weights
                altered[match["prefix"]][key] = part
    found: list[RecurrentEntry | OtherRecurrent] = []
    for prefix, parts in altered.items():
        keys = [*parts, *groups.pop((prefix, True), ()), *groups.pop((prefix, False), ())]
        found.append(OtherRecurrent(prefix, "unknown", _altered_reason(parts), tuple(sorted(keys, key=natural_key))))
    for (prefix, layered), keys in groups.items():
        group = {key: tensors[key] for key in sorted(keys, key=natural_key)}
        reason = relative_of(prefix, group, tensors)
        found.append(
            OtherRecurrent(prefix, "unknown", reason, tuple(group)) if reason else _classify(prefix, layered, group)
        )
    found += (OtherRecurrent(prefix, "unknown", reason, keys) for prefix, keys, reason in sru_layers(tensors))
    given = nonlinearities or {}
    every = (
        replace(entry, nonlinearity=given[entry.name])
        if isinstance(entry, RecurrentEntry) and entry.type == "rnn" and entry.name in given
        else entry
        for entry in _with_siblings(found, tensors)
    )
    return tuple(sorted(every, key=lambda entry: natural_key(entry.prefix)))


def _with_siblings(
    found: Sequence[RecurrentEntry | OtherRecurrent], tensors: Mapping[str, Tensor]
) -> Iterator[RecurrentEntry | OtherRecurrent]:
    own = {key for entry in found for key in entry.keys} | {key for key in tensors if _ALTERED.fullmatch(key)}
    siblings = siblings_of({entry.prefix for entry in found}, tensors, own)
    for entry in found:
        others = siblings.get(entry.prefix, ())
        yield replace(entry, siblings=others) if isinstance(entry, RecurrentEntry) and others else entry


def _altered_reason(parts: Mapping[str, str]) -> str:
    key, part = min(parts.items(), key=lambda item: natural_key(item[0]))
    if part == "_all_weight_values":
        return f"its weights are packed and quantized ({key}); use the checkpoint from before quantization"
    return (
        f"{part} is not stored as such but made from {key}, in a way that is not known or does not fit: remove weight "
        "norm, pruning or weight drop in your own code and save the plain state dict"
    )


def _classify(prefix: str, layered: bool, group: Mapping[str, Tensor]) -> RecurrentEntry | OtherRecurrent:
    """One layer's tensors, all below one prefix, as a layer of torch's or the reason why not."""

    def other(reason: str) -> OtherRecurrent:
        return OtherRecurrent(prefix, "unknown", reason, tuple(group))

    first = "_l0" if layered else ""
    present = {key.removeprefix(prefix) for key in group}
    missing = [f"{prefix}{part}{first}" for part in ("weight_ih", "weight_hh") if f"{part}{first}" not in present]
    if missing:
        return other(f"{' and '.join(missing)} missing")
    weights = {part: group[f"{prefix}{part}{first}"] for part in ("weight_ih", "weight_hh")}
    projection = group.get(f"{prefix}weight_hr{first}")
    for tensor in (*weights.values(), *(() if projection is None else (projection,))):
        if tensor.dim() != 2:
            return other(f"weights must be matrices with entries, but one has shape {tuple(tensor.shape)}")
    rows = weights["weight_hh"].shape[0]
    hidden = weights["weight_hh"].shape[1] if projection is None else projection.shape[1]
    gates, rest = divmod(rows, hidden)
    if rest or gates not in _BY_GATES:
        return other(
            f"{rows} rows for a hidden size of {hidden}, where an LSTM has 4 per hidden unit, a GRU 3 and a plain RNN 1"
        )
    type_ = _BY_GATES[gates]
    if projection is not None and (type_ != "lstm" or not layered):
        what = type_.upper() if layered else f"{type_.upper()} cell"
        return other(f"{what} with a projection (weight_hr), which torch's does not have")
    entry = RecurrentEntry(
        prefix,
        _KINDS[type_][0 if layered else 1],
        input_size=weights["weight_ih"].shape[1],
        hidden_size=hidden,
        num_layers=1 + max(int(part.removesuffix("_reverse").rpartition("_l")[2]) for part in present)
        if layered
        else 1,
        bidirectional=any(part.endswith("_reverse") for part in present),
        proj_size=0 if projection is None else projection.shape[0],
        bias=any(part.startswith("bias_") for part in present),
    )
    return next((other(fault) for fault in _faults(entry, group)), entry)


def _faults(entry: RecurrentEntry, group: Mapping[str, Tensor]) -> Iterator[str]:
    """Where the tensors are not those of the entry."""
    if len(group) < entry.num_layers:
        yield f"layers up to {entry.num_layers - 1} but only {len(group)} tensors"
        return
    for key, shape in entry.shapes.items():
        if key not in group:
            yield f"{key} missing"
        elif tuple(group[key].shape) != shape:
            yield f"{key} has shape {tuple(group[key].shape)} where {shape} follows from the first layer"
        elif not group[key].is_floating_point():
            yield f"{key} has dtype {str(group[key].dtype).removeprefix('torch.')}, no floating-point numbers"
    yield from (f"{key} belongs to no {entry.class_name}" for key in group if key not in entry.shapes)
