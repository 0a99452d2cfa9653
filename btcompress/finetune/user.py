"""A user's own network, with the file's block-term layers in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
from btcompress.errors import BTCompressError
from btcompress.finetune.networks import Network, fill
from btcompress.models import apply, make_plain, name_in, plain_name


class UserNetwork(Network):
    """A user's network, called with ``x``, and with ``lengths`` too where the data have them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: tuple[Tensor, Tensor] | None = None) -> object:
        """What the network gives; it begins with whatever states are its own.

        Raises:
            BTCompressError: states were given.
        """
        if state is not None:
            raise BTCompressError(
                "the sequences have initial states (h0, c0), which a network of your own (--model) is not called "
                "with. Leave them out, or train one LSTM alone with --layer."
            )
        return self.model(x) if lengths is None else self.model(x, lengths)

    def file_tensors(self) -> dict[str, Tensor]:
        """See :class:`btcompress.finetune.networks.Network`."""
        return {plain_name(name): tensor for name, tensor in self.model.state_dict(keep_vars=True).items()}


def build_student(reference: str, factory: Callable[[], Any], compressed: CompressedCheckpoint) -> UserNetwork:
    """The user's network with the file's weights, its factorized layers swapped for block-term ones.

    Raises:
        BTCompressError: the factory gives no module.
        CheckpointError: the file does not fit the network.
    """
    model = apply(_built(reference, factory), compressed)
    floating = {value.dtype for value in model.parameters()}
    return UserNetwork(model.float() if floating & {torch.float16, torch.bfloat16} else model)


def build_teacher(reference: str, factory: Callable[[], Any], dense: Checkpoint, like: UserNetwork) -> UserNetwork:
    """The user's network with the dense checkpoint's weights, in the student's dtype.

    Raises:
        BTCompressError: the factory gives no module.
        CheckpointError: the checkpoint does not fit the network.
    """
    teacher = UserNetwork(_built(reference, factory).to(next(like.parameters()).dtype))
    given = {plain_name(name): tensor for name, tensor in dense.tensors.items()}
    make_plain(teacher.model, given)
    names = {name: name_in(given, name) for name in teacher.model.state_dict()}
    fill(teacher.model, {name: given[key] for name, key in names.items() if key in given}, dense.source.name)
    return teacher


def _built(reference: str, factory: Callable[[], Any]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise BTCompressError(f"--model {reference} gave {type(model).__name__}. It must give a torch.nn.Module.")
    return model
