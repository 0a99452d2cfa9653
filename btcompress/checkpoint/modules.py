"""The state dict of a module that was pickled whole, read from its parts without its class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from btcompress.checkpoint.pickles import Foreign, Global
from btcompress.checkpoint.tensors import Unheld
from btcompress.errors import CheckpointError

#: Modules in modules: no network goes so deep.
_MAX_DEPTH = 64

Tensors = dict[str, Tensor | Unheld]


def is_module(value: object) -> bool:
    """Whether this is an object with the parts that every ``torch.nn.Module`` has."""
    state = value.state if isinstance(value, Foreign) else None
    return isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in ("_parameters", "_modules"))


def module_tensors(module: Foreign) -> Tensors:
    """Parameters and persistent buffers of a pickled module by the names of its state dict.

    Raises:
        CheckpointError: modules are nested in a circle, or one is of another kind.
    """
    return dict(_of_module(module, "", 0))


def script_tensors(module: Foreign, declared: Mapping[str, frozenset[str]]) -> Tensors:
    """Parameters and buffers of a TorchScript module by the names of its state dict.

    Args:
        module: the root of the archive's objects.
        declared: for each class the names of its parameters and buffers, as :func:`declared_in` finds them.

    Raises:
        CheckpointError: modules are nested in a circle, or one is of another kind.
    """
    return dict(_of_script(module, declared, "", 0))


def declared_in(code: str, module: str) -> Iterator[tuple[str, frozenset[str]]]:
    """For each class in a file of TorchScript code its full name, and the names of its parameters and buffers."""
    for match in _SCRIPT_CLASS.finditer(code):
        names = re.findall(r'"([^"\n]*)"', match["parameters"] + match["buffers"])
        yield f"{module}.{match['name']}", frozenset(names)


_SCRIPT_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):\n"
    r"  __parameters__ = \[(?P<parameters>[^\]\n]*)\]\n"
    r"  __buffers__ = \[(?P<buffers>[^\]\n]*)\]$",
    re.MULTILINE,
)


def _of_module(module: Foreign, prefix: str, depth: int) -> Iterator[tuple[str, Tensor | Unheld]]:
    _check_depth(module, depth)
    state = module.state if isinstance(module.state, dict) else {}
    passing = state.get("_non_persistent_buffers_set")
    buffers = state.get("_buffers")
    kept = {
        name: value
        for name, value in (buffers if isinstance(buffers, dict) else {}).items()
        if not isinstance(passing, list) or name not in passing
    }
    for name, value in {**state["_parameters"], **kept}.items():
        if value is not None:
            yield f"{prefix}{name}", _tensor(value)
    for name, child in state["_modules"].items():
        if isinstance(child, Foreign) and is_module(child):
            yield from _of_module(child, f"{prefix}{name}.", depth + 1)
        elif child is not None:
            raise CheckpointError(
                f"the module {prefix}{name} is no plain torch.nn.Module. Save the state dict alone with torch.save."
            )


def _of_script(
    module: Foreign, declared: Mapping[str, frozenset[str]], prefix: str, depth: int
) -> Iterator[tuple[str, Tensor | Unheld]]:
    _check_depth(module, depth)
    own = declared.get(module.name, frozenset())
    for name, value in (module.state if isinstance(module.state, dict) else {}).items():
        if name in own and value is not None:
            yield f"{prefix}{name}", _tensor(value)
        elif isinstance(value, Foreign) and value.name in declared:
            yield from _of_script(value, declared, f"{prefix}{name}.", depth + 1)


def _check_depth(module: Foreign, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"{module.name} nests modules more than {_MAX_DEPTH} deep or in a circle. Save the state dict alone."
        )


def _tensor(value: object) -> Tensor | Unheld:
    if isinstance(value, Tensor | Unheld):
        return value
    what = value.name if isinstance(value, Foreign | Global) else type(value).__name__
    return Unheld(f"is an object of {what}")
