"""State dicts inside whatever was saved around them, found by looking inside rather than by name.

A *state dict* is a mapping with string keys that holds tensors itself. Mappings, lists and tuples around
state dicts are containers; how they lie, and the plain values in them, is kept as a layout, and what else they hold is
left out and named. A module that was pickled whole counts as its state dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.parameter import is_lazy

from btcompress.checkpoint.layout import Layout, Node, Place, left_out_text
from btcompress.checkpoint.modules import is_module, module_tensors
from btcompress.checkpoint.pickles import Foreign, OddKey
from btcompress.checkpoint.plainvalues import LEFT_OUT, PlainValues, is_key, shown
from btcompress.checkpoint.tensors import Unheld, plain_tensor
from btcompress.errors import CheckpointError
from btcompress.text import listed

_MAX_DEPTH = 32
_MAX_NODES = 1 << 16
#: Containers of a layout.
_MOST_CONTAINERS = 1 << 12


@dataclass(frozen=True, slots=True)
class Flattened:
    """The tensors of the state dicts found.

    Attributes:
        tensors: by name, in the order of the file.
        notices: what was left out, and where names were given a prefix.
        layout: how they lay there, and the plain values beside them; None for a plain state dict.
    """

    tensors: dict[str, Tensor]
    notices: tuple[str, ...]
    layout: Layout | None = None


def flatten(value: object, label: str, container: str | None = None) -> Flattened:
    """Gather the tensors of every state dict in ``value`` under one flat set of names.

    One state dict keeps its own keys; several have the path to each put before its keys, joined by
    dots, with positions in lists as path parts. The layout says where each lies; it keeps plain values and single
    numbers beside state dicts as well. Optimizer states, other tensors beside whole state dicts, objects that were not
    loaded and values that are too large are left out, each named in a notice.

    Args:
        value: what ``torch.load`` gave, or a state dict in memory.
        label: what to call it in messages.
        container: read only the state dicts at or below this path, as notices and errors name it.

    Raises:
        CheckpointError: no state dict, no such container, two tensors of one name, a tensor that a
            result could not hold, or containers nested too deeply.
    """
    tree = _Tree(label)
    root = tree.node(value)
    if root is None:
        raise CheckpointError(f"{label} holds no state dict, only {_kind(value)}. {_advice(value)}")
    found = _Found(label)
    found.gather(root)
    if not found.state_dicts:
        left = [*found.optimizers, *found.loose, *found.foreign]
        raise CheckpointError(f"{label} holds no state dict, only {listed(left)}. {_ADVICE}")
    chosen = found.chosen(container)
    tensors: dict[str, Tensor] = {}
    for path, state_dict in chosen.items():
        for key, tensor in state_dict.tensors:
            name = _join(path, key)
            if name in tensors:
                raise CheckpointError(f"{label} holds two tensors named {name}. Rename one in your own code.")
            tensors[name] = plain_tensor(name, tensor)
    whole = [f"Read from a module that was pickled whole: {listed(tree.modules)}."] if tree.modules else []
    sketch = _Sketch(found.state_dicts.values(), chosen)
    layout = sketch.layout(root, tensors)
    return Flattened(tensors, (*whole, *found.notices(list(chosen)), *sketch.notices()), layout)


_ADVICE = "Save one with torch.save(model.state_dict(), 'weights.pt')."


@dataclass(slots=True)
class _Node:
    """A mapping or sequence with tensors in it at some depth; anything else is a plain value.

    Attributes:
        tensors: held directly.
        value: the mapping or sequence itself; None for a module.
        children: mappings and sequences below that hold tensors at some depth.
        held: keys, or positions, of these tensors and children; what lies under others is a plain value.
        foreign: objects that were not loaded.
        named: every tensor is held under a string key.
        optimizer: an optimizer's own state, not looked into.
    """

    tensors: dict[str, Tensor | Unheld] = field(default_factory=dict)
    value: Mapping[object, object] | list[object] | tuple[object, ...] | None = None
    children: dict[str, _Node] = field(default_factory=dict)
    held: set[object] = field(default_factory=set)
    foreign: dict[str, Foreign] = field(default_factory=dict)
    named: bool = True
    optimizer: bool = False

    def state_dict_keys(self) -> Iterator[str]:
        """Keys of the tensors in all state dicts here and below."""
        if self.named:
            yield from self.tensors
        for child in self.children.values():
            yield from child.state_dict_keys()

    def entries(self) -> Iterator[tuple[object, object]]:
        """All that it holds, by key or position."""
        if self.value is None:
            yield from self.tensors.items()
        else:
            yield from self.value.items() if isinstance(self.value, Mapping) else enumerate(self.value)

    def is_state_dict(self) -> bool:
        """Whether the tensors held directly are weights, rather than bookkeeping beside state dicts.

        Beside state dicts, single numbers and integers (a best loss, a random generator's state) are
        bookkeeping; and so is any tensor without a dot in its key where the state dicts below have
        dots in theirs, as those of whole modules do.
        """
        if not self.tensors or not self.named:
            return False
        below = [key for child in self.children.values() for key in child.state_dict_keys()]
        if not below:
            return True
        whole = any("." in key for key in below)
        return not all(
            "." not in key and (whole or tensor.numel() <= 1 or not tensor.is_floating_point())
            for key, tensor in self.tensors.items()
        )


class _Tree:
    """Turns nested Python values into nodes, on its guard against files made to exhaust it."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._n_nodes = 0
        self.modules: list[str] = []
        # Kept by identity and alive, so that a value nested in many places is looked through once.
        self._plain: dict[int, object] = {}

    def node(self, value: object, depth: int = 0) -> _Node | None:
        """The node of a mapping or sequence, or None where there is no tensor in it."""
        if isinstance(value, Foreign):
            if is_module(value):
                tensors = module_tensors(value)
                self.modules += [value.name] if tensors else []
                return self._counted(_Node(tensors, held=set(tensors))) if tensors else None
            value = value.pairs  # of a class that is a mapping; empty where it is none
        if not isinstance(value, (Mapping, list, tuple)) or id(value) in self._plain:
            return None
        if depth > _MAX_DEPTH:
            raise CheckpointError(
                f"{self._label} nests containers more than {_MAX_DEPTH} deep or in a circle. {_ADVICE}"
            )
        if isinstance(value, Mapping) and "state" in value and isinstance(value.get("param_groups"), list):
            return _Node(optimizer=True)
        node = _Node(value=value)
        for key, item in node.entries():
            self._add(node, key, item, depth)
        if not node.tensors and not node.children:
            self._plain[id(value)] = value
            return None
        return self._counted(node)

    def _counted(self, node: _Node) -> _Node:
        self._n_nodes += 1
        if self._n_nodes > _MAX_NODES:
            raise CheckpointError(f"{self._label} holds tensors in more than {_MAX_NODES:,} containers. {_ADVICE}")
        return node

    def _add(self, node: _Node, key: object, item: object, depth: int) -> None:
        name = shown(key)
        child = self.node(item, depth + 1)
        if not isinstance(item, Tensor | Unheld) and child is None:
            if isinstance(item, Foreign):
                node.foreign[name] = item
            return
        if isinstance(key, OddKey):
            raise CheckpointError(f"{self._label} holds tensors under a key that is no text ({name}). {_ADVICE}")
        if name in node.tensors or name in node.children:
            raise CheckpointError(f"{self._label} holds two entries named {name}. Rename one in your own code.")
        node.held.add(key)
        if isinstance(item, Tensor | Unheld):
            node.tensors[name] = item
            node.named &= isinstance(key, str)
        elif child is not None:
            node.children[name] = child


@dataclass(frozen=True, slots=True)
class _StateDict:
    """A state dict that was found.

    Attributes:
        node: where it lies.
        tensors: with their keys, which may repeat until they are joined and checked, so that this is no mapping yet.
    """

    node: _Node
    tensors: list[tuple[str, Tensor | Unheld]]

    def is_bookkeeping(self) -> bool:
        """Whether it holds nothing but single numbers, such as the best scores of a callback."""
        return all(isinstance(each, Tensor) and not is_lazy(each) and each.numel() <= 1 for _, each in self.tensors)


class _Found:
    """What lies where among the state dicts of a tree."""

    def __init__(self, label: str) -> None:
        self._label = label
        self.state_dicts: dict[str, _StateDict] = {}
        self.optimizers: list[str] = []
        self.loose: list[str] = []
        self.foreign: list[str] = []

    def gather(self, root: _Node) -> None:
        """Find all state dicts; beside others, those of single numbers alone are none."""
        self._collect(root, "")
        numbers = [path for path, each in self.state_dicts.items() if each.is_bookkeeping()]
        if len(numbers) < len(self.state_dicts):
            for path in numbers:
                del self.state_dicts[path]

    def _collect(self, node: _Node, path: str) -> None:
        if node.optimizer:
            self.optimizers.append(path or "an optimizer's state")
        elif node.is_state_dict():
            self._add(path, _StateDict(node, list(self._joined(node, path, ""))))
        else:
            self.foreign += [f"{_join(path, name)} ({item.name})" for name, item in node.foreign.items()]
            self.loose += [_join(path, name) for name in node.tensors]
            for name, child in node.children.items():
                self._collect(child, _join(path, name))

    def _joined(self, node: _Node, path: str, prefix: str) -> Iterator[tuple[str, Tensor | Unheld]]:
        """The tensors of a state dict with those of mappings nested in it, names joined by dots."""
        for name, item in node.foreign.items():
            if _holds_tensors(item):
                yield _join(prefix, name), Unheld(f"is an object of {item.name}")
        for name, tensor in node.tensors.items():
            yield _join(prefix, name), tensor
        for name, child in node.children.items():
            below = _join(prefix, name)
            if child.optimizer:
                self.optimizers.append(_join(path, below))
            else:
                yield from self._joined(child, path, below)

    def _add(self, path: str, state_dict: _StateDict) -> None:
        if path in self.state_dicts:
            raise CheckpointError(f"{self._label} holds two state dicts named {path}. Rename one in your own code.")
        self.state_dicts[path] = state_dict

    def chosen(self, container: str | None) -> dict[str, _StateDict]:
        """The state dicts asked for, by the path that goes before their keys."""
        if container is None:
            if len(self.state_dicts) == 1:
                return {"": next(iter(self.state_dicts.values()))}
            return self.state_dicts
        if container in self.state_dicts:
            return {"": self.state_dicts[container]}
        below = f"{container}."
        chosen = {path.removeprefix(below): sd for path, sd in self.state_dicts.items() if path.startswith(below)}
        if not chosen:
            raise CheckpointError(f"{self._label} has no container {container!r}. {self._available()}")
        return chosen

    def _available(self) -> str:
        if list(self.state_dicts) == [""]:
            return "It is one plain state dict: leave the container out."
        return f"There are: {', '.join(self.state_dicts)}."

    def notices(self, kept: list[str]) -> Iterator[str]:
        """What a user should know about state dicts that were renamed, and about optimizers."""
        if len(kept) > 1:
            yield f"{len(kept)} state dicts are kept, their names before their keys: {listed(kept)}."
        if self.optimizers:
            yield f"Left out, optimizer states: {listed(self.optimizers)}."


class _NoLayoutError(Exception):
    """A layout that no result could hold; the text says why in few words."""


class _Sketch:
    """Draws the layout of a tree, once it is known which of its nodes are state dicts.

    Args:
        state_dicts: all that were found.
        chosen: those whose tensors are taken, by the path that goes before their keys.
    """

    def __init__(self, state_dicts: Iterable[_StateDict], chosen: Mapping[str, _StateDict]) -> None:
        self._paths: dict[int, str | None] = {id(each.node): None for each in state_dicts}
        self._paths.update((id(each.node), path) for path, each in chosen.items())
        self._values = PlainValues()
        self._n_containers = 0
        self._obstacle = ""

    def layout(self, root: _Node, keys: Iterable[str]) -> Layout | None:
        """The layout; None where it is that of a plain state dict, or cannot be kept."""
        try:
            node = self._node(root, "", None)
        except _NoLayoutError as why:
            self._obstacle = str(why)
            return None
        plain = isinstance(node, dict) and list(node.items()) == [(key, Place(key)) for key in keys]
        return None if plain else Layout(node)

    def notices(self) -> Iterator[str]:
        """What a user should know about what lay beside the state dicts."""
        yield from self._values.notices()
        if self._obstacle:
            yield left_out_text(self._obstacle)

    def _node(self, node: _Node, path: str, within: tuple[str, str] | None) -> Node:
        """What is kept of a node.

        Args:
            node: to draw.
            path: its own.
            within: the path of the state dict that it belongs to, and its name in that; None outside of all.
        """
        if id(node) in self._paths:
            outer = self._paths[id(node)]
            within = None if outer is None else (outer, "")
        if node.optimizer or (within is None and id(node) in self._paths):
            return LEFT_OUT
        self._n_containers += 1
        if self._n_containers > _MOST_CONTAINERS:
            raise _NoLayoutError(f"more than {_MOST_CONTAINERS:,} containers")
        drawn = [(key, self._entry(node, key, item, path, within)) for key, item in node.entries()]
        if all(each is LEFT_OUT for _, each in drawn):
            return LEFT_OUT
        if isinstance(node.value, list | tuple):
            # What is left out of a sequence leaves its place, so that all others keep theirs.
            items = [None if each is LEFT_OUT else each for _, each in drawn]
            return items if isinstance(node.value, list) else tuple(items)
        return {key: each for key, each in drawn if each is not LEFT_OUT}

    def _entry(self, node: _Node, key: object, item: object, path: str, within: tuple[str, str] | None) -> Node:
        name = shown(key)
        below = _join(path, name)
        inner = None if within is None else (within[0], _join(within[1], name))
        if key not in node.held:
            in_dict = isinstance(node.value, Mapping)
            return self._values.kept_under(key, item, below) if in_dict else self._values.kept(item, below)
        if not isinstance(item, Tensor | Unheld):
            found = self._node(node.children[name], below, inner)
        elif inner is None:
            found = self._values.number(item, below) if is_key(key) else LEFT_OUT
        else:
            found = Place(_join(*inner))
        if found is not LEFT_OUT and not is_key(key):
            raise _NoLayoutError(f"the key {name} of tensors")
        return found


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _holds_tensors(item: Foreign) -> bool:
    """Whether an object was made from tensors, as one of a class of tensors is."""
    state = item.state.values() if isinstance(item.state, dict) else (item.state,)
    return any(isinstance(value, Tensor | Unheld) for value in (*item.args, *state, *item.items))


def _advice(value: object) -> str:
    if not isinstance(value, Foreign):
        return _ADVICE
    return (
        "Nothing in it was run. Where you trust it and have its code, save the weights alone: "
        "torch.save(model.state_dict(), 'weights.pt')."
    )


def _kind(value: object) -> str:
    if isinstance(value, Foreign):
        return f"an object of {value.name}"
    if isinstance(value, Tensor):
        return "a single tensor"
    if isinstance(value, (Mapping, list, tuple)):
        return f"a {type(value).__name__} without tensors"
    return f"a value of type {type(value).__name__}"
