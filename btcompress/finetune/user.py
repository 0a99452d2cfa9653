"""A user's own network, with the file's block-term layers in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, RecurrentEntry, check_plain
from btcompress.checkpoint.wrappers import plain_name
from btcompress.errors import BTCompressError
from btcompress.finetune.networks import Network, fill
from btcompress.models import apply, held_elsewhere, make_plain, name_in, named_as_in
from btcompress.nn.celltype import State

_WITHOUT_IT = "Factorize the checkpoint without it (--layer '!NAME'): it is then trained as it is."


class UserNetwork(Network):
    """A user's network, called with ``x``, and with ``lengths`` too where the data have them.

    Args:
        model: the network.
        names: of the tensors of its file; matched with its own, but for what wrappers put into them. Raw weights, of
            which some are dropped at each call, are plain there; what the file holds under another name, to which it is
            tied in the network, is none of its tensors.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] = ()) -> None:
        super().__init__()
        self.model = model
        named = named_as_in(model, {name: name for name in names})
        self._given = {plain_name(own): name for own, name in named.items()}

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
        called = {own: name_in(self._given, own) for own in live}
        raw = {key for own, key in called.items() if plain_name(own) != key}
        # Beside raw weights there may be those of the last call, under the plain name.
        others = held_elsewhere(self.model, self._given) | raw
        return {
            self._given.get(called[own], called[own]): tensor
            for own, tensor in live.items()
            if plain_name(own) not in others
        }


def build_student(reference: str, factory: Callable[[], Any], compressed: CompressedCheckpoint) -> UserNetwork:
    """The user's network with the file's weights, its factorized layers swapped for block-term ones.

    Raises:
        BTCompressError: the factory gives no module.
        CheckpointError: the file does not fit the network, or a factorized layer of it computes something else than
            torch's.
    """
    for entry in compressed.recurrent():
        if isinstance(entry, RecurrentEntry) and any(key in compressed.matrices for key in entry.matrix_keys):
            check_plain(entry, "block-term layers", _WITHOUT_IT)
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
    tied = held_elsewhere(teacher.model, given)
    tensors = {name: given[key] for name, key in names.items() if key in given}
    own = {name: tensor for name, tensor in teacher.model.state_dict().items() if plain_name(name) in tied}
    fill(teacher.model, own | tensors, dense.source.name)
    return teacher


def _built(reference: str, factory: Callable[[], Any]) -> nn.Module:
    model = factory()
    if not isinstance(model, nn.Module):
        raise BTCompressError(f"--model {reference} gave {type(model).__name__}. It must give a torch.nn.Module.")
    return model
