"""A dense recurrent layer step by step, as it is defined, with all sums on the way at hand to be differentiated by.

At each step the input part ``z = W x + b_ih`` meets the recurrent part ``v = U h + b_hh``. An LSTM and a plain RNN add
them; a GRU's reset gate scales ``v`` before it is added to the new gate, so an error in ``v`` counts less there than
one in ``z``: ``r, u, n = sigmoid(z_r + v_r), sigmoid(z_u + v_u), tanh(z_n + r v_n)``, ``h' = (1 - u) n + u h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from btcompress.checkpoint import RecurrentEntry
from btcompress.nn.celltype import State
from btcompress.nn.celltypes import cell_type


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of one direction of a layer at all steps, in whichever order, each part of a graph of gradients.

    Attributes:
        inputs: ``W x + b_ih``, shape ``(rows of all steps, gates * H)``.
        recurrent: ``U h + b_hh`` at each step, shapes ``(sequences, gates * H)``.
        projected: ``P h`` at each step where there is a projection, shapes ``(sequences, projected size)``.
        outputs: hidden states, shape ``(rows of all steps, H)`` or of the projected size.
    """

    inputs: Tensor
    recurrent: list[Tensor]
    projected: list[Tensor]
    outputs: Tensor


def run_by_steps(
    entry: RecurrentEntry,
    tensors: Mapping[str, Tensor],
    suffix: str,
    below: Tensor,
    batch_sizes: Tensor,
    state: State,
    *,
    reverse: bool,
) -> Sums:
    """One direction of a layer over packed sequences.

    Args:
        entry: whose layer it is.
        tensors: weights and biases, by the names of torch's class.
        suffix: what follows ``weight_ih`` in these.
        below: inputs of the layer, the data of a packed sequence.
        batch_sizes: sequences at each step.
        state: that it begins with, shapes ``(sequences, H)``, or of the projected size for ``h``.
        reverse: whether it runs backward.
    """
    cell, u, project = (
        cell_type(entry.type, entry.nonlinearity),
        tensors[f"weight_hh{suffix}"],
        tensors.get(f"weight_hr{suffix}"),
    )
    inputs = _watched(linear(below, tensors[f"weight_ih{suffix}"], tensors.get(f"bias_ih{suffix}")))
    steps = inputs.split(batch_sizes.tolist())
    recurrent: list[Tensor] = []
    projected: list[Tensor] = []
    outputs: list[Tensor] = []
    for z in steps[::-1] if reverse else steps:
        # A packed sequence has its longest members first: the states of those that have no such step stay.
        before = tuple(each[: len(z)] for each in state)
        recurrent.append(_watched(linear(before[0], u, tensors.get(f"bias_hh{suffix}"))))
        h, *rest = cell.after(z, recurrent[-1], before)
        if project is not None:
            h = linear(h, project)
            projected.append(h)
        outputs.append(h)
        state = tuple(torch.cat([new, old[len(z) :]]) for new, old in zip((h, *rest), state, strict=True))
    return Sums(inputs, recurrent, projected, torch.cat(outputs[::-1] if reverse else outputs))


def _watched(tensor: Tensor) -> Tensor:
    """The tensor, part of a graph of gradients; where it is of none it begins one."""
    return tensor if tensor.requires_grad else tensor.requires_grad_()
