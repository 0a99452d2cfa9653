"""A call of a block-term layer or cell, made again as often as it takes to time it, and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from btcompress.nn.choice import Place
from btcompress.nn.running import Running
from btcompress.nn.ways import Task, Way


class Call:
    """A call with its arguments, cut off from what they come from; with a backward pass where it asks for gradients.

    Args:
        module: that was called.
        args: its arguments.
        kwargs: those by name.

    Attributes:
        module: as given.
        key: what calls of one kind have in common.
    """

    def __init__(self, module: Running, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module = module
        self._args, self._kwargs = _cut(args), {name: _cut(value) for name, value in kwargs.items()}
        given = list(_tensors((self._args, tuple(self._kwargs.values()))))
        asks = torch.is_grad_enabled()
        sources = [*given, *module.parameters()] if asks else []
        self._sources = [tensor for tensor in sources if tensor.requires_grad]
        self._first = given[0]
        self.key: Hashable = (asks, *((each.shape, each.dtype, each.device, each.requires_grad) for each in given))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._first.device

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self._first.itemsize

    def run(self) -> None:
        """Make the call, and go back from its outputs to all that asks for gradients; these are thrown away."""
        # Not the module itself, whose hooks have seen the call.
        given: Tensor | PackedSequence = self.module.forward(*self._args, **self._kwargs)[0]
        outputs = given.data if isinstance(given, PackedSequence) else given
        if self._sources and outputs.requires_grad:
            torch.autograd.grad(outputs, self._sources, torch.ones_like(outputs), allow_unused=True)

    def tasks(self) -> dict[Place, Task]:
        """What the layers have to do in it, by the places where ways are pinned for them."""
        choice = self.module.choice
        before = dict(choice.tasks)
        choice.tasks.clear()
        choice.forget()
        self.run()
        met = dict(choice.tasks)
        choice.tasks.update({place: task for place, task in before.items() if place not in met})
        return met

    def pinning(self, way: Way, place: Place) -> Callable[[], AbstractContextManager[None]]:
        """What to time the call in, so that a layer is run in this way, with all that is kept of it at hand."""

        @contextmanager
        def pinned() -> Iterator[None]:
            self.module.choice.pin(way, place)
            self.run()
            yield

        return pinned


@contextmanager
def as_before(module: nn.Module) -> Iterator[None]:
    """Leave a module's buffers, and random numbers, as they are, whatever is called inside."""
    buffers = [
        (held, name, value, value.clone())
        for each in module.modules()
        for held in (each._buffers,)
        for name, value in held.items()
        if value is not None
    ]
    tensors = [*module.parameters(), *module.buffers()]
    gpus = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(gpus, key=str)):
        try:
            yield
        finally:
            with torch.no_grad():
                for held, name, value, kept in buffers:
                    held[name] = value
                    if not torch.equal(value, kept):
                        value.copy_(kept)


def _cut(value: Any) -> Any:  # noqa: ANN401
    """A value without the graph that its tensors come from."""
    if isinstance(value, PackedSequence):
        return value._replace(data=_cut(value.data))
    if isinstance(value, tuple | list):
        return tuple(_cut(each) for each in value)
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _tensors(value: Any) -> Iterator[Tensor]:  # noqa: ANN401
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
