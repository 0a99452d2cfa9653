"""Gather what matrices are fitted and priced on: samples of their inputs, and what their outputs count.

What output ``j`` of ``z = W x + b`` counts is how much an error there moves the hidden states that the recurrent layer
gives: ``s_j^2 = E[sum_t' ||dh_t' / dz_tj||^2] / E[||h_t||^2]`` over sequences and steps ``t``; what output ``j`` of
``U h + b`` counts, or of a projection, likewise, with these in place of ``z``. To first order, and if errors at
different places have nothing to do with one another, the squared hidden-state error is then the sum over all matrices
of ``E[sum_j s_j^2 (dz_j)^2]``. The gradient of the hidden states' product with random numbers of variance 1 gives each
term of ``s_j^2`` in the mean, so one pass backward serves all of them.

Of a linear layer all outputs count alike, ``s_j^2 = 1 / E[||W x||^2]``: the sum is the squared relative error of its
outputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from btcompress.calibration.inputs import Entry, Meets, matrices_of, meets, rows_of
from btcompress.calibration.layers import dense_layers, layers_of
from btcompress.calibration.progress import Tell
from btcompress.calibration.steps import run_by_steps
from btcompress.checkpoint import Checkpoint, LinearEntry, RecurrentEntry
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.networks import Recurrent
from btcompress.fit import Samples
from btcompress.memory import require
from btcompress.nn.celltype import State
from btcompress.seeds import check_seed

#: Inputs up to which all steps count, through their second moments; of more inputs, steps with so many entries in all
#: are drawn to fit on, and a quarter of that to measure on.
_MOST_MOMENTS = 2048
_DRAWN_ENTRIES = 2**24
_HELD_ENTRIES = _DRAWN_ENTRIES // 4
#: Sequences that tell how much outputs count.
_PROBED = 256
#: Outputs count at least this share of what the most sensitive one does.
_LEAST_WEIGHT = 1e-3
#: Moments below this share of the largest are rounding.
_NO_MOMENT = 1e-14


def samples_of(
    dense: Checkpoint,
    entry: Entry,
    train: Data,
    held: Data,
    dtype: torch.dtype,
    *,
    head: LinearEntry | None = None,
    keys: Collection[str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    tell: Tell | None = None,
) -> dict[str, Samples]:
    """Samples for the matrices of a dense recurrent or linear layer, by their keys.

    Args:
        dense: holds the layer.
        entry: the layer.
        train: sequences of its inputs, to fit on.
        held: sequences to measure on.
        dtype: to run the layer in.
        head: the linear layer on a recurrent layer's outputs, if there are to be samples of it too.
        keys: of the matrices asked for; all of them where left out. Those of one do not depend on the others.
        seed: of the steps and the random numbers drawn.
        batch_size: sequences at once.
        tell: called after each batch.

    Raises:
        CheckpointError: the checkpoint lacks a matrix, or holds it in another shape.
        MemoryLimitError: the samples would take more memory than there is.
        BTCompressError: an input is not finite.
    """
    linear_layer = entry if isinstance(entry, LinearEntry) else head
    every = (*matrices_of(entry), *(() if head is None else (head.key,)))
    asked = [key for key in every if keys is None or key in keys]
    what = f"Running {entry.name or 'the layer'} over {train.name} and keeping samples of what its matrices meet"
    require(_bytes_to_sample(dense, entry, asked, dtype), what, "Take fewer matrices at a time (--layer).")
    if not asked:
        return {}
    generator = torch.Generator().manual_seed(check_seed(seed))
    n_probed = min(len(train), _PROBED) if isinstance(entry, RecurrentEntry) else 0
    steps = _Steps(len(train) + len(held) + 3 * n_probed, tell)
    weights = {}
    if isinstance(entry, RecurrentEntry):
        weights = _output_weights(entry, dense_layers(entry, dense, dtype), train, generator, batch_size, steps)
    of_layer = meets(entry, dense, dtype, head)
    fitting = _inputs(of_layer, train, dtype, asked, _DRAWN_ENTRIES, generator, batch_size, steps)
    measuring = _inputs(of_layer, held, dtype, asked, _HELD_ENTRIES, generator, batch_size, steps)
    if linear_layer is not None and linear_layer.key in fitting:
        weights[linear_layer.key] = _alike(dense.tensors[linear_layer.key], fitting[linear_layer.key])
    return {key: Samples(fitting[key], measuring[key], weights[key]) for key in fitting}


@dataclass(slots=True)
class _Steps:
    """Counts work, in sequences, and tells how much of it is done."""

    n_steps: int
    tell: Tell | None
    done: int = 0

    def add(self, n: int) -> None:
        self.done += n
        if self.tell is not None:
            self.tell(self.done / self.n_steps, "")


def _bytes_to_sample(dense: Checkpoint, entry: Entry, keys: Collection[str], dtype: torch.dtype) -> int:
    """What two copies of a recurrent layer, one of them cut into its layers, and the samples take at their peak."""
    copies = 0
    if isinstance(entry, RecurrentEntry):
        copies = 2 * dtype.itemsize * sum(map(math.prod, entry.shapes.values()))
    columns = [dense.tensors[key].shape[1] for key in keys if key in dense.tensors and dense.tensors[key].dim() == 2]
    # A second moment, its root and what lies between; or the steps drawn, once in pieces and once joined.
    moments = sum(3 * 8 * n * n for n in columns if n <= _MOST_MOMENTS)
    drawn = sum(n > _MOST_MOMENTS for n in columns) * 2 * dtype.itemsize * (_DRAWN_ENTRIES + _HELD_ENTRIES)
    return copies + moments + drawn


def _alike(weight: Tensor, inputs: Tensor) -> Tensor:
    """Weights of outputs that all count alike: their error is then a share of what they are in all."""
    size = float((inputs.double() @ weight.detach().double().T).square().sum())
    return torch.full((len(weight),), size**-0.5 if size else 1.0, dtype=torch.float64)


@dataclass(slots=True)
class _Rows:
    """Rows whose squares sum to means over the steps: all steps' moments, or steps drawn."""

    moments: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    drawn: dict[tuple[str, ...], list[Tensor]] = field(default_factory=dict)
    n_steps: int = 0

    def found(self) -> dict[str, Tensor]:
        """The rows of each matrix."""
        rows = {keys: _root(moment / self.n_steps) for keys, moment in self.moments.items()}
        for keys, pieces in self.drawn.items():
            joined = torch.cat(pieces)
            rows[keys] = joined.div_(len(joined) ** 0.5)
        return {key: rows[keys] for keys in rows for key in keys}


@torch.no_grad()
def _inputs(
    of_layer: Meets,
    data: Data,
    dtype: torch.dtype,
    keys: Collection[str],
    n_entries: int,
    generator: torch.Generator,
    batch_size: int,
    steps: _Steps,
) -> dict[str, Tensor]:
    """Rows that stand for the inputs of each matrix."""
    rows = _Rows()
    for some in torch.arange(len(data)).split(batch_size):
        batch = data.batch(some).to(torch.device("cpu"), dtype)
        n_own = len(rows_of(batch))
        rows.n_steps += n_own
        order = torch.randperm(n_own, generator=generator)
        for sharing, inputs in of_layer(batch, keys):
            if inputs.shape[1] <= _MOST_MOMENTS:
                wide = inputs.double()
                before = rows.moments.get(sharing)
                rows.moments[sharing] = wide.T @ wide if before is None else before.addmm_(wide.T, wide)
            else:
                n_drawn = math.ceil(n_entries / inputs.shape[1] * len(some) / len(data))
                rows.drawn.setdefault(sharing, []).append(inputs[order[:n_drawn].sort().values])
        steps.add(len(some))
    return rows.found()


def _root(moment: Tensor) -> Tensor:
    """Rows ``R`` with ``R^T R`` the moment, none that is rounding."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > _NO_MOMENT * values[-1]
    return (vectors[:, kept] * values[kept].sqrt()).T.contiguous()


def _output_weights(
    entry: RecurrentEntry,
    networks: list[Recurrent],
    data: Data,
    generator: torch.Generator,
    batch_size: int,
    steps: _Steps,
) -> dict[str, Tensor]:
    """``s_j`` for each matrix, shape ``(outputs,)``, float64."""
    rows = torch.arange(len(data))
    if len(rows) > _PROBED:
        rows = torch.randperm(len(rows), generator=generator)[:_PROBED].sort().values
    dtype = next(networks[0].parameters()).dtype
    squares: dict[str, Tensor] = {}
    size = 0.0
    for some in rows.split(batch_size):
        batch = data.batch(some).to(torch.device("cpu"), dtype)
        of_batch, hidden = _probed(entry, networks, batch, generator)
        size += float(hidden.double().square().sum())
        squares = {key: squares[key] + square if key in squares else square for key, square in of_batch.items()}
        steps.add(3 * len(some))
    found: dict[str, Tensor] = {}
    for key, square in squares.items():
        weights = (square / size).sqrt() if size else square
        found[key] = weights.clamp_min(_LEAST_WEIGHT * weights.max()) if weights.any() else torch.ones_like(weights)
    return found


def _probed(
    entry: RecurrentEntry, networks: list[Recurrent], batch: Batch, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Squares of gradients of the last layer's hidden states times random numbers, and these hidden states.

    Returns:
        For each matrix, by its key, the squares of the gradients in its outputs, summed over all steps that count,
        shape ``(outputs,)``, float64; and the hidden states, shape ``(n, ..)``.
    """
    lengths = torch.full((len(batch.x),), batch.x.shape[1]) if batch.lengths is None else batch.lengths
    packed = pack_padded_sequence(batch.x, lengths, batch_first=True, enforce_sorted=False)
    suffixes = ("_l0", "_l0_reverse")[: 1 + entry.bidirectional]
    below = packed.data
    sums: dict[str, list[Tensor]] = {}
    for layer, network in zip(layers_of(entry), networks, strict=True):
        tensors = {name: tensor.detach() for name, tensor in network.layer.named_parameters()}
        state = _in_order(layer.state(batch.state) or network.zeros(batch.x), packed)
        outputs = []
        for n, suffix in enumerate(suffixes):
            own = tuple(each[n] for each in state)
            run = run_by_steps(entry, tensors, suffix, below, packed.batch_sizes, own, reverse=bool(n))
            keys = (every[layer.positions][n : n + 1] for every in _keys_of(entry))
            for key, each in zip(keys, ([run.inputs], run.recurrent, run.projected), strict=True):
                sums |= dict.fromkeys(key, each)
            outputs.append(run.outputs)
        below = torch.cat(outputs, dim=-1)
    probe = torch.randn(below.shape, generator=generator, dtype=torch.float64).to(below.dtype)
    gradients = iter(torch.autograd.grad((below * probe).sum(), [each for own in sums.values() for each in own]))
    squares = {
        key: torch.stack([next(gradients).double().square().sum(0) for _ in own]).sum(0) for key, own in sums.items()
    }
    return squares, below.detach()


def _keys_of(entry: RecurrentEntry) -> tuple[tuple[str, ...], ...]:
    return entry.input_keys, entry.recurrent_keys, entry.projection_keys


def _in_order(state: State, packed: PackedSequence) -> State:
    """States of a batch in the order in which its sequences are packed."""
    order = packed.sorted_indices
    return state if order is None else tuple(each.index_select(1, order) for each in state)
