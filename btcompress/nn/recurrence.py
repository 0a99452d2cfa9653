"""One recurrent layer, differentiable: by torch's kernel, in a loop of our own, or step by step as it is defined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from btcompress.contraction import autocast
from btcompress.nn.celltype import CellType, State
from btcompress.nn.kernel import Kernel
from btcompress.nn.lstmtype import LSTM
from btcompress.nn.steps import Chain, loop_over_steps
from btcompress.nn.ways import Way
from btcompress.nn.weight import BTWeight, Multiplier, Weight, multiply

#: A matrix of a direction.
Name = Literal["w", "u", "p"]


class Direction(NamedTuple):
    """Matrices and biases of one direction of a layer.

    Attributes:
        w: ``W``.
        u: ``U``.
        p: ``P``, where there is a projection.
        biases: both, where there are some.
        cell: what is computed with them.
    """

    w: Weight
    u: Weight
    p: Weight | None
    biases: tuple[Tensor, Tensor] | None
    cell: CellType = LSTM

    @property
    def names(self) -> tuple[Name, ...]:
        """Of the matrices that there are."""
        return ("w", "u") if self.p is None else ("w", "u", "p")

    def weight(self, name: Name) -> Weight:
        """A matrix by its name."""
        weight: Weight = getattr(self, name)
        return weight

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters and orders."""
        found = [tensor for name in self.names for tensor in tensors_of(self.weight(name))]
        return found + list(self.biases or ())

    @property
    def recurrent(self) -> list[Weight]:
        """What multiplies the hidden states: ``U``, and ``P`` where there is one."""
        return [self.u] if self.p is None else [self.u, self.p]

    @property
    def bias(self) -> Tensor | None:
        """What is added to ``W x``: of an LSTM both biases at once."""
        return None if self.biases is None else self.cell.input_bias(self.biases)

    @property
    def recurrent_bias(self) -> Tensor | None:
        """What is added to ``U h``: of a GRU its second bias."""
        return None if self.biases is None else self.cell.recurrent_bias(self.biases)


def tensors_of(weight: Weight) -> tuple[Tensor, ...]:
    """The matrix itself, or the parameters and orders that it is made of."""
    return (weight,) if isinstance(weight, Tensor) else weight.tensors


def kernel_layer(
    inputs: Tensor,
    state: State,
    weights: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None = None,
    *,
    bias: bool,
    training: bool | None = None,
    batch_first: bool = False,
    cell: CellType = LSTM,
) -> tuple[Tensor, State]:
    """One layer by torch's own kernel.

    Args:
        inputs: ``(T, B, I)``, or ``(B, T, I)`` with ``batch_first``, or the data of a packed sequence.
        state: initial states, shapes ``(directions, B, H)``.
        weights: for each direction ``weight_ih, weight_hh``, then both biases, then ``weight_hr``, as they apply.
        batch_sizes: sequences at each step, for packed inputs.
        bias: whether there are biases.
        training: whether the kernel is told that gradients will be asked for; where left out, if they are on.
        batch_first: the order of the first two axes of inputs and outputs.
        cell: what is computed with them.

    Returns:
        Outputs of all steps, directions side by side, and the final states.
    """
    flat = [weight for direction in weights for weight in direction]
    training = torch.is_grad_enabled() if training is None else training
    kernel = Kernel(flat, bias, training, len(weights) == 2, batch_first, batch_sizes, cell.kernel)
    return kernel.run(inputs, state)


@dataclass(frozen=True, slots=True)
class Trained:
    """One layer, differentiable, and how to run it.

    Attributes:
        way: how to run.
        directions: matrices and biases.
    """

    way: Way
    directions: Sequence[Direction]

    def run(
        self, inputs: Tensor, state: State, batch_sizes: Tensor | None = None, *, batch_first: bool = False
    ) -> tuple[Tensor, State]:
        """The layer; arguments and results as :func:`kernel_layer`'s."""
        way, directions, cell = self.way, self.directions, self.directions[0].cell
        w = [_multiplier(own.w, dense=way.inputs == "dense") for own in directions]
        recurrent = [
            [_multiplier(each, dense=way.recurrent == "dense") for each in own.recurrent] for own in directions
        ]
        if way.steps == "kernel":
            biases = [[autocast(bias)[0] for bias in own.biases or ()] for own in directions]
            return run_kernel(w, recurrent, biases, inputs, state, batch_sizes, batch_first=batch_first, cell=cell)
        z = [multiply(inputs, each, own.bias) for each, own in zip(w, directions, strict=True)]
        chains = _chains(recurrent) if way.steps == "loop" else None
        if chains is not None:
            return recur_by_loop(z, state, chains, batch_sizes, batch_first=batch_first)
        joined = z[0] if len(z) == 1 else torch.cat(z, dim=-1)
        added = [own.recurrent_bias for own in directions]
        return recur_by_steps(joined, state, recurrent, batch_sizes, batch_first=batch_first, cell=cell, biases=added)


def _multiplier(weight: Weight, *, dense: bool) -> Multiplier:
    """A matrix as autocast has it, or products; factors see to that themselves."""
    if isinstance(weight, BTWeight):
        if not dense:
            return weight.prepare()
        weight = weight.to_dense()
    return autocast(weight)[0]


def run_kernel(
    w: Sequence[Multiplier],
    recurrent: Sequence[Sequence[Multiplier]],
    biases: Sequence[Sequence[Tensor]],
    inputs: Tensor,
    state: State,
    batch_sizes: Tensor | None,
    *,
    training: bool | None = None,
    batch_first: bool,
    cell: CellType = LSTM,
) -> tuple[Tensor, State]:
    """Torch's kernel, given what is left to multiply by: a matrix, a left factor, or an identity.

    Args:
        w: what multiplies the inputs, of each direction.
        recurrent: the dense matrices ``U``, and ``P`` where there is one, of each direction.
        biases: both of each direction, or none.
        inputs: as :func:`kernel_layer`'s, and so the others.
        state: initial states.
        batch_sizes: sequences at each step, for packed inputs.
        training: as :func:`kernel_layer`'s.
        batch_first: the order of the first two axes of inputs and outputs.
        cell: what is computed with them.
    """
    begun = [_begun(inputs, each) for each in w]
    rows = joined_rows(inputs, [given for given, _ in begun])
    lefts = joined_lefts([left for _, left in begun], shared=rows is inputs)
    weights = []
    for left, own, both in zip(lefts, recurrent, biases, strict=True):
        u, *p = (matrix for matrix in own if isinstance(matrix, Tensor))
        weights.append((left, u, *both, *p))
    bias = bool(biases[0])
    return kernel_layer(
        rows, state, weights, batch_sizes, bias=bias, training=training, batch_first=batch_first, cell=cell
    )


def joined_rows(inputs: Tensor, begun: Sequence[Tensor]) -> Tensor:
    """One tensor for all directions, of what each has made of the inputs."""
    if len(begun) == 1 or all(rows is inputs for rows in begun):
        return begun[0]
    return torch.cat(list(begun), dim=-1)


def joined_lefts(lefts: Sequence[Tensor], *, shared: bool) -> list[Tensor]:
    """By what each direction multiplies :func:`joined_rows`: by zero where they are the other's.

    Args:
        lefts: by what each multiplies its own.
        shared: whether the rows are the same for all.
    """
    if shared or len(lefts) == 1:
        return list(lefts)
    widths = [left.shape[1] for left in lefts]
    return [pad(left, (sum(widths[:n]), sum(widths[n + 1 :]))) for n, left in enumerate(lefts)]


def _begun(inputs: Tensor, matrix: Multiplier) -> tuple[Tensor, Tensor]:
    """The inputs, multiplied as far as factors can, and the matrix that is left."""
    if isinstance(matrix, Tensor):
        return inputs, matrix
    if matrix.low_rank is not None:
        left, right = autocast(*matrix.low_rank)
        return linear(inputs, right), left
    z = matrix.matmul(inputs)
    return z, torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)


def _given(biases: Sequence[Tensor | None]) -> list[Tensor]:
    return [bias for bias in biases if bias is not None]


def task_sizes(inputs: Tensor, batch_sizes: Tensor | None, *, batch_first: bool) -> tuple[int, int, int]:
    """Steps, sequences, and rows of all steps."""
    if batch_sizes is not None:
        return len(batch_sizes), int(batch_sizes[0]), len(inputs)
    first, second = inputs.shape[:2]
    return (second, first, first * second) if batch_first else (first, second, first * second)


def uses_onednn(inputs: Tensor, cell: CellType = LSTM) -> bool:
    """Whether torch's kernel for these inputs is that of oneDNN, which torch calls for LSTMs alone."""
    allowed: bool = cell is LSTM and torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    return allowed and inputs.device.type == "cpu" and inputs.dtype == torch.float32


def _chains(weights: Sequence[Sequence[Multiplier]]) -> list[list[Chain]] | None:
    """Every weight as itself or its low-rank factors; None if one is neither a matrix nor of low rank."""
    found: list[list[Chain]] = []
    for own in weights:
        chains = [(weight,) if isinstance(weight, Tensor) else weight.low_rank for weight in own]
        kept: list[Chain] = [chain for chain in chains if chain is not None]
        if len(kept) < len(chains):
            return None
        found.append(kept)
    return found


def loopable(tensors: Sequence[Tensor]) -> bool:
    """Whether loops of our own take these tensors, unless something looks into operations: it must see all of them."""
    dtype = tensors[0].dtype
    return (
        tensors[0].device.type == "cpu"
        and dtype in (torch.float32, torch.float64)
        and tensors[0].numel() > 0
        # Orders are integers.
        and all(tensor.dtype == dtype or not tensor.is_floating_point() for tensor in tensors)
    )


def recur_by_loop(
    z: Sequence[Tensor],
    state: State,
    weights: Sequence[Sequence[Chain]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
) -> tuple[Tensor, State]:
    """The layer by :func:`btcompress.nn.steps.loop_over_steps`: on a CPU, and differentiable once."""
    h, c = state
    if batch_sizes is not None:
        return loop_over_steps(z, (h, c), weights, batch_sizes.tolist())
    steps_first = [part.transpose(0, 1) for part in z] if batch_first else z
    steps, batch = steps_first[0].shape[:2]
    outputs, final = loop_over_steps(steps_first, (h, c), weights, [batch] * steps)
    return outputs.transpose(0, 1) if batch_first else outputs, final


def recur_by_kernel(
    z: Tensor,
    state: State,
    weights: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
    cell: CellType = LSTM,
    biases: Sequence[Tensor | None] = (),
) -> tuple[Tensor, State]:
    """The layer by torch's kernel: it takes ``z`` for the inputs and rows of the identity for ``W``."""
    selections = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).chunk(len(weights))
    added = [(torch.zeros_like(bias), bias) for bias in _given(biases)]
    both: Sequence[tuple[Tensor, ...]] = added or ((),) * len(weights)
    full = [(selection, own[0], *two, *own[1:]) for selection, own, two in zip(selections, weights, both, strict=True)]
    return kernel_layer(z, state, full, batch_sizes, bias=bool(added), batch_first=batch_first, cell=cell)


def recur_by_steps(
    z: Tensor,
    state: State,
    weights: Sequence[Sequence[Multiplier]],
    batch_sizes: Tensor | None = None,
    *,
    batch_first: bool = False,
    cell: CellType = LSTM,
    biases: Sequence[Tensor | None] = (),
) -> tuple[Tensor, State]:
    """The layer step by step, as it is defined."""
    time = int(batch_first)
    outputs, finals = [], []
    for direction, own in enumerate(weights):
        part = z if len(weights) == 1 else z.chunk(len(weights), dim=-1)[direction]
        steps = part.unbind(time) if batch_sizes is None else part.split(batch_sizes.tolist())
        initial, bias = tuple(each[direction] for each in state), biases[direction] if biases else None
        hidden, final = _run(cell, steps[::-1] if direction else steps, initial, own, bias)
        outputs.append(hidden[::-1] if direction else hidden)
        finals.append(final)
    joined = outputs[0] if len(outputs) == 1 else [torch.cat(step, dim=-1) for step in zip(*outputs, strict=True)]
    both = (each[0].unsqueeze(0) if len(each) == 1 else torch.stack(each) for each in zip(*finals, strict=True))
    return (torch.stack(joined, time) if batch_sizes is None else torch.cat(joined)), tuple(both)


def _run(
    cell: CellType, steps: Sequence[Tensor], state: State, weights: Sequence[Multiplier], bias: Tensor | None
) -> tuple[list[Tensor], State]:
    """All hidden states of one direction, and its final state.

    A packed sequence has its longest members first: a step of ``n`` rows leaves the others' states alone,
    which are final going forward and still initial going backward.
    """
    outputs = []
    for z in steps:
        n = len(z)
        if n == len(state[0]):
            state = cell.step(z, state, weights, bias)
            outputs.append(state[0])
        else:
            new = cell.step(z, tuple(each[:n] for each in state), weights, bias)
            outputs.append(new[0])
            state = tuple(torch.cat([own, each[n:]]) for own, each in zip(new, state, strict=True))
    return outputs, state
