"""``model.safetensors``: a result where all of a module was one, and else its plain tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from btcompress.applied import applied_to
from btcompress.checkpoint import CompressedCheckpoint, read_compressed, write, write_dense
from btcompress.checkpoint.compressed import check_parts
from btcompress.checkpoint.recognise import recognise
from btcompress.checkpoint.safetensorsfiles import read_tensors
from btcompress.checkpoint.tensors import find_aliases, plain_tensor
from btcompress.checkpoint.wrappers import matched
from btcompress.errors import CheckpointError
from btcompress.hub import config
from btcompress.nn import BTWeight
from btcompress.shapes import MatrixShape

NAME = "model.safetensors"

#: What a header says beside which tensors are tied.
_FORMAT = "format"


@dataclass(frozen=True, slots=True)
class Part:
    """A module within a network that a result was applied to, and what it is now.

    Attributes:
        name: of the module; empty for the network itself.
        result: with the tensors of the module.
        keys: of its block-term matrices in the network.
    """

    name: str
    result: CompressedCheckpoint
    keys: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What there is to write of a network.

    Attributes:
        kind: the name of its class.
        tensors: by name, on the CPU; tied ones are one tensor.
        shapes: of all block-term matrices, by key.
        parts: what results were applied to.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, MatrixShape]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Network:
        """Look through a network.

        Raises:
            CheckpointError: its state holds what a ``.safetensors`` file cannot.
        """
        tensors = _state_of(module)
        shapes = shapes_of(module)
        return cls(type(module).__name__, tensors, shapes, tuple(_parts(module, tensors, shapes)))

    @property
    def result(self) -> CompressedCheckpoint | None:
        """The result that the whole network is; None where it holds more, or less, or nothing was applied to it."""
        whole = [part.result for part in self.parts if not part.name]
        if not whole or not _are_matched(whole[0].tensors, self.tensors):
            return None
        return whole[0]

    def write(self, path: Path) -> None:
        """Write it whole or not at all, and read it back.

        Raises:
            OutputError: as :func:`btcompress.checkpoint.write`.
        """
        result = self.result
        if result is not None:
            write(result, path, force=True)
            return
        aliases = find_aliases(self.tensors)
        stored = {name: tensor for name, tensor in self.tensors.items() if name not in aliases}
        # The header says which tensors are tied as that of safetensors.torch.save_model does.
        write_dense(stored, path, force=True, header={_FORMAT: "pt", **aliases})


def shapes_of(module: nn.Module) -> dict[str, MatrixShape]:
    """The shapes of all block-term matrices below a module, by key."""
    found: dict[str, MatrixShape] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        within = any(name.startswith(f"{key}.") for key in found)  # the form of one gate
        if isinstance(child, BTWeight) and not within:
            found[name] = child.shape
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """What the files of a folder hold, once they were found to fit one another.

    Attributes:
        config: what ``config.json`` says; empty where there is none.
        tensors: by name, mapped.
        shapes: of all block-term matrices, by key.
        result: that the weights are; None where they are plain tensors.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, MatrixShape]
    result: CompressedCheckpoint | None


def read(folder: Path) -> Saved:
    """Read a folder; nothing in it is executed, and no memory is taken but for the values of packed tensors.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not fit one another.
    """
    where = folder / config.NAME
    arguments = config.read_config(where) if where.exists() else {}
    shapes = config.shapes_in(arguments, where)
    path = folder / NAME
    kind = recognise(path)
    if kind == "btcompress":
        result = read_compressed(path)
        held = {key: matrix.shape for key, matrix in result.matrices.items()}
        if config.SECTION in arguments and not _are_same(shapes, held):
            raise CheckpointError(
                f"{where} and {NAME} beside it say other shapes of block-term matrices. Give a folder of which both "
                "were written together."
            )
        return Saved(arguments, result.tensors, held, result)
    if kind != "safetensors":
        raise CheckpointError(f"{path} is no .safetensors file. Save the model again.")
    tensors, header = read_tensors(path)
    header.pop(_FORMAT, None)
    tensors = {**{name: tensors[first] for name, first in header.items() if first in tensors}, **tensors}
    for key, shape in shapes.items():
        check_parts(str(path), key, shape, tensors)
    return Saved(arguments, tensors, shapes, None)


def _state_of(module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    aliases = find_aliases({name: value for name, value in state.items() if isinstance(value, Tensor)})
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} of the model's state is a {type(value).__name__}, which a .safetensors file cannot hold. Keep "
                "it in the arguments of the class, or as a tensor."
            )
        first = aliases.get(name)
        tensors[name] = plain_tensor(name, value).cpu() if first is None else tensors[first]
    return tensors


def _parts(module: nn.Module, tensors: Mapping[str, Tensor], shapes: Mapping[str, MatrixShape]) -> Iterator[Part]:
    """The modules that still are what was applied to them, but for the values; of nested ones the outer one."""
    taken: list[str] = []
    for name, child in module.named_modules():
        applied, below = applied_to(child), f"{name}." if name else ""
        if applied is None or any(below.startswith(outer) for outer in taken):
            continue
        own = {each.removeprefix(below): tensor for each, tensor in tensors.items() if each.startswith(below)}
        names = matched(applied.names, own)
        now = {key.removeprefix(below): shape for key, shape in shapes.items() if key.startswith(below)}
        held = {key: matrix.shape for key, matrix in applied.matrices.items()}
        if len(names) == len(applied.names) and _are_same(held, now):
            result = applied.with_tensors({each: own[full] for each, full in names.items()})
            yield Part(name, result, frozenset(below + key for key in now))
            taken.append(below)


def _are_matched(ours: Collection[str], theirs: Collection[str]) -> bool:
    """Whether these are the same names but for what wrappers put into them."""
    return len(ours) == len(theirs) == len(matched(ours, theirs))


def _are_same(ours: Mapping[str, MatrixShape], theirs: Mapping[str, MatrixShape]) -> bool:
    """Whether these are the shapes of the same matrices, by names that may have parts of wrappers in them."""
    names = matched(ours, theirs)
    return _are_matched(ours, theirs) and all(ours[each] == theirs[other] for each, other in names.items())
