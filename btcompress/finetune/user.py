"""A user's own network, with the file's block-term layers in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
from btcompress.checkpoint.wrappers import matched, plain_name
from btcompress.errors import BTCompressError
from btcompress.finetune.data import State
from btcompress.finetune.networks import Network, fill
from btcompress.models import apply, make_plain, name_in, named_as_in


class UserNetwork(Network):
    """A user's network, called with ``x``, and with ``lengths`` too where the data have them.

    Args:
        model: the network.
        names: of the tensors of its file; matched with its own, but for what wrappers put into them.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] = ()) -> None:
        super().__init__()
        self.model = model
        self._names = {own: name for name, own in matched(names, model.state_dict()).items()}

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: State | None = None) -> object:
        """What the network gives; it begins with whatever states are its own.

        Raises:
            BTCompressError: states were given.
        """
        if state is not None:
            raise BTCompressError(
                "the sequences have initial states (h0), which a network of your own (--model) is not called "
                "with. Leave them out, or train one recurrent layer alone with --layer."
            )
        return self.model(x) if lengths is None else self.model(x, lengths)

    def file_tensors(self) -> dict[str, Tensor]:
        """See :class:`btcompress.finetune.networks.Network`."""
        live = self.model.state_dict(keep_vars=True)
        return {self._names.get(name, plain_name(name)): tensor for name, tensor in live.items()}


def build_student(reference: str, factory: Callable[[], Any], compressed: CompressedCheckpoint) -> UserNetwork:
    """The user's network with the file's weights, its factorized layers swapped for block-term ones.

    Raises:
        BTCompressError: the factory gives no module.
        CheckpointError: the file does not fit the network.
    """
    model = apply(_built(reference, factory), compressed)
    floating = {value.dtype for value in model.parameters()}
    return UserNetwork(model.float() if floating & {torch.float16, torch.bfloat16} else model, compressed.tensors)


def build_teacher(reference: str, factory: Callable[[], Any], dense: Checkpoint, like: UserNetwork) -> UserNetwork:
    """The user's network with the dense checkpoint's weights, in the student's dtype.

    Raises:
        BTCompressError: the factory gives no module.
        CheckpointError: the checkpoint does not fit the network.
    """
    teacher = UserNetwork(_built(reference, factory).to(next(like.parameters()).dtype))
    given = {plain_name(name): tensor for name, tensor in named_as_in(teacher.model, dense.tensors).items()}
    make_plain(teacher.model, given)
    names = {name: name_in(given, name) for name in teacher.model.state_dict()}
    fill(teacher.model, {name: given[key] for name, key in names.items() if key in given}, dense.source.name)
    return teacher


def _built(reference: str, factory: Callable[[], Any]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise BTCompressError(f"--model {reference} gave {type(model).__name__}. It must give a torch.nn.Module.")
    return model
