"""Gather what the matrices of an LSTM are fitted and priced on: samples of their inputs, and what their outputs count.

What output ``j`` of ``z = W x + U h + b`` counts is how much an error there moves the hidden states that the LSTM
gives: ``s_j^2 = E[sum_t' ||dh_t' / dz_tj||^2] / E[||h_t||^2]`` over sequences and steps ``t``. To first order, and if
errors at different places have nothing to do with one another, the squared hidden-state error is then the sum over
all matrices of ``E[sum_j s_j^2 (dz_j)^2]``. The gradient of the hidden states' product with random numbers of
variance 1 gives each term of ``s_j^2`` in the mean, so one pass backward serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import pack_padded_sequence

from btcompress.calibration.inputs import inputs_of, layers_of, steps_that_count
from btcompress.checkpoint import Checkpoint, LSTMEntry
from btcompress.finetune.data import Batch, Data
from btcompress.finetune.networks import Recurrent
from btcompress.fit import Samples
from btcompress.memory import require
from btcompress.nn.recurrence import recur
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
    entry: LSTMEntry,
    train: Data,
    held: Data,
    dtype: torch.dtype,
    *,
    keys: Collection[str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Samples]:
    """Samples for ``W`` and ``U`` of a dense LSTM, by their keys; none for projections.

    Args:
        dense: holds the LSTM.
        entry: the LSTM.
        train: sequences of its inputs, to fit on.
        held: sequences to measure on.
        dtype: to run the LSTM in.
        keys: of the matrices asked for; all of them where left out. Those of one do not depend on the others.
        seed: of the steps and the random numbers drawn.
        batch_size: sequences at once.

    Raises:
        CheckpointError: the checkpoint lacks a matrix, or holds it in another shape.
        MemoryLimitError: the samples would take more memory than there is.
        BTCompressError: an input is not finite.
    """
    asked = (*entry.input_keys, *entry.recurrent_keys) if keys is None else keys
    what = f"Running {entry.name or 'the LSTM'} over {train.name} and keeping samples of what its matrices meet"
    require(_bytes_to_sample(entry, asked, dtype), what, "Take fewer matrices at a time (--layer).")
    generator = torch.Generator().manual_seed(check_seed(seed))
    layers = layers_of(entry, dense, dtype)
    weights = _output_weights(entry, layers[-1], train, generator, batch_size)
    fitting = _inputs(entry, layers, train, asked, _DRAWN_ENTRIES, generator, batch_size)
    measuring = _inputs(entry, layers, held, asked, _HELD_ENTRIES, generator, batch_size)
    return {key: Samples(fitting[key], measuring[key], weights[key]) for key in fitting}


def _bytes_to_sample(entry: LSTMEntry, keys: Collection[str], dtype: torch.dtype) -> int:
    """What the copies of the LSTM, one cut off after each layer, and the samples take at their peak."""
    copies = entry.num_layers * dtype.itemsize * sum(map(math.prod, entry.shapes.values()))
    columns = [shape[1] for key, shape in entry.shapes.items() if key in keys and len(shape) == 2]
    # A second moment, its root and what lies between; or the steps drawn, once in pieces and once joined.
    moments = sum(3 * 8 * n * n for n in columns if n <= _MOST_MOMENTS)
    drawn = sum(n > _MOST_MOMENTS for n in columns) * 2 * dtype.itemsize * (_DRAWN_ENTRIES + _HELD_ENTRIES)
    return copies + moments + drawn


@torch.no_grad()
def _inputs(
    entry: LSTMEntry,
    layers: list[Recurrent],
    data: Data,
    keys: Collection[str],
    n_entries: int,
    generator: torch.Generator,
    batch_size: int,
) -> dict[str, Tensor]:
    """Rows for each matrix, their squares summing to means over the steps: all steps' moments, or steps drawn."""
    moments: dict[str, Tensor] = {}
    drawn: dict[str, list[Tensor]] = {}
    n_steps = 0
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), next(layers[0].parameters()).dtype)
        n_own = int(steps_that_count(batch).sum())
        n_steps += n_own
        steps = torch.randperm(n_own, generator=generator)
        for key, inputs in inputs_of(entry, layers, batch, keys):
            if inputs.shape[1] <= _MOST_MOMENTS:
                wide = inputs.double()
                moments[key] = moments.get(key, torch.zeros((), dtype=torch.float64)) + wide.T @ wide
            else:
                n_drawn = math.ceil(n_entries / inputs.shape[1] * len(rows) / len(data))
                drawn.setdefault(key, []).append(inputs[steps[:n_drawn].sort().values])
    found = {key: _root(moment / n_steps) for key, moment in moments.items()}
    for key, pieces in drawn.items():
        joined = torch.cat(pieces)
        found[key] = joined.div_(len(joined) ** 0.5)
    return found


def _root(moment: Tensor) -> Tensor:
    """Rows ``R`` with ``R^T R`` the moment, none that is rounding."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > _NO_MOMENT * values[-1]
    return (vectors[:, kept] * values[kept].sqrt()).T.contiguous()


def _output_weights(
    entry: LSTMEntry, teacher: Recurrent, data: Data, generator: torch.Generator, batch_size: int
) -> dict[str, Tensor]:
    """``s_j`` for each ``W`` and ``U``, shape ``(4H,)``, float64; both of a layer's direction have the same."""
    rows = torch.arange(len(data))
    if len(rows) > _PROBED:
        rows = torch.randperm(len(rows), generator=generator)[:_PROBED].sort().values
    dtype = next(teacher.parameters()).dtype
    directions = list(zip(entry.input_keys, entry.recurrent_keys, strict=True))
    squares = [torch.zeros(4 * entry.hidden_size, dtype=torch.float64) for _ in directions]
    size = 0.0
    for some in rows.split(batch_size):
        batch = data.batch(some).to(torch.device("cpu"), dtype)
        gradients, hidden = _probed(entry, teacher, batch, generator)
        size += float(hidden.double().square().sum())
        for total, gradient in zip(squares, gradients, strict=True):
            total += gradient.double().square().sum(0)
    found: dict[str, Tensor] = {}
    for keys, square in zip(directions, squares, strict=True):
        weights = (square / size).sqrt() if size else square
        weights = weights.clamp_min(_LEAST_WEIGHT * weights.max()) if weights.any() else torch.ones_like(weights)
        found |= dict.fromkeys(keys, weights)
    return found


def _probed(
    entry: LSTMEntry, teacher: Recurrent, batch: Batch, generator: torch.Generator
) -> tuple[list[Tensor], Tensor]:
    """Gradients in ``z`` of the last layer's hidden states times random numbers, and these hidden states.

    Returns:
        For each layer and direction the gradients at all steps that count, shape ``(n, 4H)``; and ``(n, ..)``.
    """
    tensors = {name: tensor.detach() for name, tensor in teacher.lstm.named_parameters()}
    n_directions = 1 + entry.bidirectional
    lengths = steps_that_count(batch).sum(1)
    packed = pack_padded_sequence(batch.x, lengths, batch_first=True, enforce_sorted=False)
    below, size = packed.data, (n_directions, len(batch.x))
    h = below.new_zeros(*size, entry.proj_size or entry.hidden_size)
    c = below.new_zeros(*size, entry.hidden_size)
    inputs: list[Tensor] = []
    for layer in range(entry.num_layers):
        suffixes = [f"_l{layer}{suffix}" for suffix in ("", "_reverse")[:n_directions]]
        biases = [_bias(tensors, suffix) for suffix in suffixes]
        z = [
            linear(below, tensors[f"weight_ih{suffix}"].detach(), bias)
            for suffix, bias in zip(suffixes, biases, strict=True)
        ]
        inputs += [each if each.requires_grad else each.requires_grad_() for each in z]
        kinds = ("weight_hh", "weight_hr")
        steps = [
            [tensors[f"{kind}{suffix}"].detach() for kind in kinds if f"{kind}{suffix}" in tensors]
            for suffix in suffixes
        ]
        below, _ = recur(torch.cat(z, dim=-1), (h, c), steps, packed.batch_sizes)
    probe = torch.randn(below.shape, generator=generator, dtype=torch.float64).to(below.dtype)
    gradients = torch.autograd.grad((below * probe).sum(), inputs)
    return list(gradients), below.detach()


def _bias(tensors: dict[str, Tensor], suffix: str) -> Tensor | None:
    biases = [tensors[name] for name in (f"bias_ih{suffix}", f"bias_hh{suffix}") if name in tensors]
    return torch.stack(biases).sum(0) if biases else None
