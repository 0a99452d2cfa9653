"""Hand-written LSTMs and GRUs with a matrix, or a linear layer, for each gate: ``W_ii``, ``W_hi``, ``b_i`` and so on.

What the names and shapes tell alone is converted. Where several answers are possible, a layer is refused by its name:
which of two square matrices inputs meet, whether a square matrix stands for rows or columns, where a GRU's reset gate
acts, and in which order inputs and state lie side by side.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from btcompress.dialects.found import Dialect, Found, Refused
from btcompress.dialects.separate import separate_step
from btcompress.dialects.spellings import MEANINGS, SPELLINGS, WORDS, Role, Spelling
from btcompress.dialects.steps import alone
from btcompress.shapes import Cell
from btcompress.text import listed

_LEAVES = ("weight", "bias")
_MATRIX = 2
#: The gates that tell a cell, each by the letters that projects have for it.
_GATES: dict[Cell, dict[str, tuple[str, ...]]] = {
    "lstm": {"i": ("i",), "f": ("f",), "g": ("g", "c"), "o": ("o",)},
    "gru": {"r": ("r",), "z": ("z", "u"), "n": ("n", "h", "c", "g")},
}
#: The gate that goes by several letters.
_CANDIDATE: dict[Cell, str] = {"lstm": "g", "gru": "n"}
_WORDS = frozenset(word for words in WORDS.values() for word in words)
_NAMES = _WORDS.union(MEANINGS)
_FEWEST = 6
_LAST = 2
_LONGEST = 24
_IN_CODE = "stack its gates in your own code, in torch's order, and save weight_ih and weight_hh"
_UNTOLD = (
    "of which no name tells where its reset gate acts, on the state or on its product, and whether its update gate "
    "keeps the old state or lets the new one in"
)
_AS_LINEAR = "its matrices can be factorized as linear layers (--matrices linear)"

#: The tensors below a module, by name in small letters, and by ``weight``, ``bias`` or nothing.
_Named: TypeAlias = dict[str, dict[str, str]]
#: Which matrices inputs meet, which the state, and whether they have a column for each unit.
_Answer: TypeAlias = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class _Layer:
    """The gates below one module, named in one way.

    Attributes:
        prefix: of the module, with the dot at the end.
        spelling: how they are named.
        kind: what the gates tell that it is.
        letters: the letters of each gate, by torch's; more than one, or none, where no name tells.
        named: the tensors of the module.
    """

    prefix: str
    spelling: Spelling
    kind: Cell
    letters: Mapping[str, tuple[str, ...]]
    named: _Named

    @property
    def name(self) -> str:
        return self.prefix.removesuffix(".")

    @property
    def family(self) -> tuple[str, Spelling]:
        """What layers of one class in one stack have in common."""
        return re.sub(r"[0-9]+", "#", self.prefix), self.spelling

    def names(self, form: str) -> dict[str, str]:
        """The names in one form, by torch's letters of gates."""
        return {gate: form.format(letters[0]) for gate, letters in self.letters.items() if letters}

    def matrices(self, form: str) -> dict[str, str]:
        """The keys of the matrices of all gates."""
        named = {gate: self.named[name] for gate, name in self.names(form).items()}
        return {gate: leaves.get("weight", leaves.get("", "")) for gate, leaves in named.items()}

    def is_linear(self, form: str) -> bool:
        """Whether all matrices are those of linear layers."""
        return all("weight" in self.named[name] for name in self.names(form).values())


def _find(tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    modules: dict[str, _Named] = defaultdict(dict)
    for key in tensors:
        prefix, name, leaf = _parts(key)
        if name in _NAMES:
            modules[prefix].setdefault(name, {})[leaf] = key
    layers: list[_Layer] = []
    for prefix, named in modules.items():
        layer = _layer(prefix, named)
        if layer is None:
            yield from _side_by_side(prefix, named, tensors)
        elif _are_weights(layer, tensors):
            layers.append(layer)
    if not layers:
        return
    others: dict[str, set[str]] = {layer.prefix: set() for layer in layers}
    for key in tensors:
        prefix, name, _ = _parts(key)
        if prefix in others:
            others[prefix].add(name)
    answers = {layer.prefix: _answers(layer, tensors) for layer in layers}
    told: dict[tuple[str, Spelling], set[_Answer]] = defaultdict(set)
    for layer in layers:
        if len(answers[layer.prefix]) == 1:
            told[layer.family] |= answers[layer.prefix]
    for layer in layers:
        own = answers[layer.prefix]
        same = own & told[layer.family]
        yield from _one(layer, same if len(same) == 1 else own, others[layer.prefix], tensors)


def _parts(key: str) -> tuple[str, str, str]:
    """The prefix of a tensor's module, the name in it in small letters, and ``weight``, ``bias`` or nothing."""
    *above, name, leaf = ("", "", *key.rsplit(".", _LAST))[-_LAST - 1 :]
    if leaf in _LEAVES and name:
        return f"{above[0]}." if above[0] else "", name.lower(), leaf
    prefix = key[: len(key) - len(leaf)]
    return prefix, leaf.lower(), ""


def _layer(prefix: str, named: _Named) -> _Layer | None:
    """The gates of a module that make a whole cell in one of the spellings."""
    if len(named) < _FEWEST:
        return None
    letters: dict[tuple[Spelling, Role], set[str]] = defaultdict(set)
    for name in named:
        for spelling, role, letter in MEANINGS.get(name, ()):
            letters[spelling, role].add(letter)
    for spelling in SPELLINGS:
        both = letters[spelling, "weight_ih"] & letters[spelling, "weight_hh"]
        for kind, gates in _GATES.items():
            own = {gate: tuple(letter for letter in known if letter in both) for gate, known in gates.items()}
            if all(found for gate, found in own.items() if gate != _CANDIDATE[kind]):
                return _Layer(prefix, spelling, kind, own, named)
    return None


def _are_weights(layer: _Layer, tensors: Mapping[str, Tensor]) -> bool:
    """Whether both of each gate's tensors are weights, and the ones on either side alike."""
    for form in (layer.spelling.inputs, layer.spelling.recurrent):
        keys = list(layer.matrices(form).values())
        if not all(keys) or len({tuple(tensors[key].shape) for key in keys}) > 1:
            return False
        if tensors[keys[0]].dim() < _MATRIX or not tensors[keys[0]].numel():
            return False
    return True


def _answers(layer: _Layer, tensors: Mapping[str, Tensor]) -> set[_Answer]:
    """What names and shapes leave possible."""
    spelling = layer.spelling
    sides = [(spelling.inputs, spelling.recurrent)]
    sides += [] if spelling.is_told else [(spelling.recurrent, spelling.inputs)]
    found: set[_Answer] = set()
    for inputs, recurrent in sides:
        shape, square = (
            tuple(tensors[next(iter(layer.matrices(form).values()))].shape) for form in (inputs, recurrent)
        )
        if len(shape) != _MATRIX or len(square) != _MATRIX or square[0] != square[1]:
            continue
        is_linear = layer.is_linear(inputs)
        if is_linear != layer.is_linear(recurrent):
            continue
        if shape[0] == square[0]:
            found.add((inputs, recurrent, False))
        if shape[1] == square[0] and not is_linear:
            found.add((inputs, recurrent, True))
    return found


def _one(layer: _Layer, answers: set[_Answer], names: set[str], tensors: Mapping[str, Tensor]) -> Iterator[Found]:
    """What comes of the gates of one module."""
    spelling, prefix = layer.spelling, layer.prefix
    forms = (spelling.inputs, spelling.recurrent)
    is_linear = all(layer.is_linear(form) for form in forms)
    keys = () if is_linear else tuple(key for form in forms for key in layer.matrices(form).values())
    what = f"a hand-written {layer.kind.upper()}"
    way_out = _AS_LINEAR if is_linear else _IN_CODE

    def refused(why: str, do: str = way_out) -> Refused:
        return Refused(layer.name, keys, f"{what} {why}; {do}" if do else f"{what} {why}")

    shape = tuple(tensors[next(iter(layer.matrices(forms[0]).values()))].shape)
    if len(shape) > _MATRIX:
        yield refused(f"with tensors of shape {shape}, as convolutions have, and only matrices are factorized", "")
        return
    if not answers:
        return
    candidates = layer.letters[_CANDIDATE[layer.kind]]
    if layer.kind == "lstm" and len(candidates) != 1:
        known = " and ".join(f"{prefix}{forms[1].format(letter)}" for letter in candidates)
        yield refused(
            f"in which no name tells the cell gate ({f'there are {known}' if known else 'none is called so'})"
        )
        return
    if not candidates:
        yield refused(_UNTOLD)
        return
    if len(answers) > 1:
        example = layer.matrices(forms[0])[next(iter(layer.letters))]
        both = len({inputs for inputs, *_ in answers}) > 1
        told = "which ones inputs meet" if both else "which side stands for its units"
        yield refused(f"whose matrices are all square ({example}: {shape}), so that nothing tells {told}")
        return
    ((inputs, recurrent, is_turned),) = answers
    biases, used = _biases(layer, inputs, recurrent)
    used |= {name for form in forms for name in layer.names(form).values()}
    more = _more_of_gates(names - used, layer)
    if more:
        yield refused(f"with more for its gates than torch's has ({listed([prefix + name for name in more], 4)})")
        return
    if layer.kind == "gru" and not _is_of_torchs_symbols(layer, biases):
        yield refused(_UNTOLD)
        return
    weights = {"weight_ih": layer.matrices(inputs), "weight_hh": layer.matrices(recurrent)}
    step = separate_step(layer.name, tensors, weights, biases, layer.kind, is_turned=is_turned)
    if isinstance(step, str):
        yield Refused(layer.name, keys, f"{what} that does not fit: {step}")
        return
    told = f"{layer.name or 'the top'}: {what}, taken to compute what torch's does, as no file of weights says more."
    yield alone(step, (told,))


def _biases(layer: _Layer, inputs: str, recurrent: str) -> tuple[dict[str, dict[str, list[str]]], set[str]]:
    """The biases on either side, by gate, and the names of those that are tensors of the module itself.

    Two on the side of inputs are kept apart where the other side has none, so that nothing is rounded.
    """
    spelling = layer.spelling
    used: set[str] = set()
    found: dict[str, dict[str, list[str]]] = {"bias_ih": {}, "bias_hh": {}}
    for gate, (letter, *_) in layer.letters.items():
        sides = (inputs, spelling.biases), (recurrent, spelling.recurrent_biases)
        own: list[list[str]] = []
        for matrix, forms in sides:
            leaves = layer.named[matrix.format(letter)]
            names = [name for name in (form.format(letter) for form in forms) if "" in layer.named.get(name, {})]
            own.append([*([leaves["bias"]] if "bias" in leaves else []), *(layer.named[name][""] for name in names)])
            used |= set(names)
        if len(own[0]) > 1 and not own[1]:
            own[1].append(own[0].pop())
        found["bias_ih"][gate], found["bias_hh"][gate] = own
    return found, used


def _more_of_gates(names: set[str], layer: _Layer) -> list[str]:
    """Names that differ in a gate's letter alone, as those of peepholes, norms or further inputs of each gate do."""
    letters = {letter for each in layer.letters.values() for letter in each}
    stems: dict[str, list[str]] = defaultdict(list)
    for name in sorted(name for name in names if len(name) <= _LONGEST):
        for n, letter in enumerate(name):
            if letter in letters:
                stems[f"{name[:n]}*{name[n + 1 :]}"].append(name)
    return sorted({name for each in stems.values() if len(each) > 1 for name in each})


def _is_of_torchs_symbols(layer: _Layer, biases: Mapping[str, Mapping[str, Sequence[str]]]) -> bool:
    """Whether a GRU has all of torch's symbols: with ``b_hn`` of its own, the product is whole where the gate acts."""
    is_whole = all(len(own) == 1 for by_gate in biases.values() for own in by_gate.values())
    letters = {gate: found[:1] for gate, found in layer.letters.items()}
    raw = {name for name, leaves in layer.named.items() if "" in leaves}
    own = {form.format(letter) for form in layer.spelling.recurrent_biases for (letter,) in letters.values()}
    is_told = layer.spelling in SPELLINGS[:3] and all(letters[gate] == (gate,) for gate in letters)
    return is_told and is_whole and own <= raw


def _side_by_side(prefix: str, named: _Named, tensors: Mapping[str, Tensor]) -> Iterator[Refused]:
    """Layers whose matrices take inputs and state side by side."""
    if len(named) < min(map(len, _GATES.values())):
        return
    for kind, gates in _GATES.items():
        shapes = []
        for gate in gates:
            keys = [named[word].get("weight") for word in WORDS[gate] if word in named]
            shapes.append({tuple(tensors[key].shape) for key in keys if key is not None})
        for shape in sorted(set.intersection(*shapes)):
            if len(shape) == _MATRIX and shape[1] > shape[0] > 0:
                yield Refused(
                    prefix.removesuffix("."),
                    (),
                    f"it looks like a hand-written {kind.upper()} whose gates' matrices {shape} take inputs and state "
                    f"side by side, and no name tells which come first; {_AS_LINEAR}",
                )
                return


DIALECT = Dialect("a matrix for each gate", _find)
