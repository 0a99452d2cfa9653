"""Example inputs of a network, which of their sizes are dynamic, and the like inputs of other sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from btcompress.errors import BTCompressError
from btcompress.text import listed

#: What is said of axes: for each argument the names of its dynamic axes, or what torch takes as dynamic shapes.
Dynamic = Mapping[str, Any] | Sequence[Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """What a network is called with.

    Attributes:
        args: by position.
        kwargs: by name.
        axes: for each argument of ``forward`` that is given, by its name, what is dynamic, as torch takes it; None for
            nothing.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    axes: dict[str, Any] | None

    @classmethod
    def of(cls, network: nn.Module, inputs: Any, dynamic: Dynamic) -> Example:  # noqa: ANN401 - whatever it takes
        """Inputs as they are given.

        Args:
            network: what is called.
            inputs: one tensor, a tuple or list of arguments, or a mapping of them by name.
            dynamic: names of axes.

        Raises:
            BTCompressError: they are no arguments of the network, or its argument has no such axis.
        """
        # A tensor given twice would be one input of the graph.
        args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), _arguments(inputs))
        try:
            call = inspect.signature(network.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise BTCompressError(
                f"the network cannot be called with these example inputs: {error}. Give a tensor, a tuple of "
                "arguments, or a dict of arguments by name."
            ) from error
        bound = call.arguments
        if dynamic is None:
            return cls(call.args, call.kwargs, None)
        if not isinstance(dynamic, Mapping):
            if len(dynamic) != len(bound):
                raise BTCompressError(
                    f"dynamic says of {len(dynamic)} arguments what is dynamic, but the example has {len(bound)}. "
                    "Give one for each, or a dict of them by name."
                )
            dynamic = dict(zip(bound, dynamic, strict=True))
        if unknown := [name for name in dynamic if name not in bound]:
            raise BTCompressError(
                f"dynamic names {listed([str(name) for name in unknown])}, but the example's arguments are "
                f"{listed(list(bound))}."
            )
        return cls(
            call.args, call.kwargs, {name: _spread(name, value, dynamic.get(name)) for name, value in bound.items()}
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors of it, in the order of the graph's inputs."""
        return tensors_of((self.args, self.kwargs))

    def converted(self, convert: Callable[[Tensor], Tensor]) -> Example:
        """The like example of other tensors."""
        args, kwargs = pytree.tree_map_only(Tensor, convert, (self.args, self.kwargs))
        return Example(args, kwargs, self.axes)

    def varied(self) -> Example:
        """The like example with random numbers for those that are all alike.

        States are often zeros in an example, which would not show which of them goes where.
        """
        generator = torch.Generator().manual_seed(0)
        return self.converted(lambda tensor: _varied(tensor, generator))

    def larger(self, network: nn.Module) -> Example:
        """The like example with one more of everything that is dynamic."""
        bound = inspect.signature(network.forward).bind(*self.args, **self.kwargs)
        for name, axes in (self.axes or {}).items():
            bound.arguments[name] = _enlarged(bound.arguments[name], axes)
        return Example(bound.args, bound.kwargs, self.axes)


def tensors_of(tree: Any) -> list[Tensor]:  # noqa: ANN401 - whatever a network gives
    """All tensors in nested containers."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:  # noqa: ANN401
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)), {}


def _is_axes(axes: Any) -> bool:  # noqa: ANN401
    """Whether it is what is said of one tensor by the numbers of its axes."""
    return isinstance(axes, Mapping) and all(isinstance(axis, int) for axis in axes)


def _spread(name: str, value: Any, axes: Any) -> Any:  # noqa: ANN401
    """What is said of an argument, for each tensor in it; said once of several, it holds for all of them."""
    if isinstance(value, Tensor):
        if axes is None:
            # Two of None in a row, torch's exporter would take for what is said of two axes.
            return {}
        if not _is_axes(axes):
            return axes
        if wrong := [axis for axis in axes if not -value.dim() <= axis < value.dim()]:
            raise BTCompressError(f"dynamic names axis {wrong[0]} of {name}, which has {value.dim()} axes from 0 on.")
        axes = {axis % value.dim(): size for axis, size in axes.items()}
        if short := [axis for axis in _dynamic_axes(axes) if value.shape[axis] < 2]:
            raise BTCompressError(
                f"axis {short[0]} of {name} is to be dynamic, but is {value.shape[short[0]]} in the example, which "
                "torch takes as fixed. Give an example of 2 or more; the graph runs with 1 as well."
            )
        return axes
    if axes is None or _is_axes(axes):
        return pytree.tree_map(lambda leaf: _spread(name, leaf, axes) if isinstance(leaf, Tensor) else None, value)
    return axes


def _dynamic_axes(axes: Any) -> list[int]:  # noqa: ANN401
    """Those of one tensor that are said to be no fixed ones; none where torch is told otherwise than by axis."""
    if not _is_axes(axes):
        return []
    fixed = (None, torch.export.Dim.STATIC)
    return [axis for axis, size in axes.items() if not isinstance(size, int) and size not in fixed]


def _enlarged(value: Any, axes: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        for axis in _dynamic_axes(axes):
            size = value.shape[axis]
            # Numbers that are there already: what was a class or an index stays one.
            value = value.index_select(axis, torch.arange(size + 1, device=value.device) % size)
        return value
    if isinstance(value, Mapping) and isinstance(axes, Mapping):
        return {name: _enlarged(each, axes.get(name)) for name, each in value.items()}
    if isinstance(value, list | tuple) and isinstance(axes, list | tuple):
        each = (_enlarged(own, said) for own, said in zip(value, axes, strict=True))
        # A named tuple takes its fields one by one.
        return type(value)(*each) if hasattr(value, "_fields") else type(value)(each)
    return value


def _varied(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point() or tensor.numel() < 2 or bool((tensor != tensor.flatten()[0]).any()):
        return tensor
    return torch.randn(tensor.shape, generator=generator).to(tensor)
