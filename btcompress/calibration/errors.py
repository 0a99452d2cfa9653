"""How far forms of a matrix are off on inputs that the fit did not see: ``||(W - W') X|| / ||W X||``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LSTMEntry
from btcompress.contraction import plan_chain
from btcompress.errors import BTCompressError
from btcompress.finetune.data import Batch, Data, open_data
from btcompress.finetune.networks import Recurrent, check_inputs, choose_lstm, is_factorized, teacher_of

#: Several forms of each matrix by its key, each of them block terms whose rows are stacked.
Forms = Mapping[str, Sequence[tuple[BlockTerm, ...]]]

#: Entries of a matrix up to which it is formed where that makes its products cheaper.
_FORMED_ENTRIES = 2**22


def activation_errors(
    compressed: CompressedCheckpoint, dense: Checkpoint, entry: LSTMEntry, data: Data, batch_size: int = 32
) -> dict[str, float]:
    """The activation error of each factorized matrix of an LSTM, on the inputs that it has in the dense LSTM.

    Those of ``W`` are the sequences, or the hidden states of the layer below; those of ``U`` are the hidden states
    of the step before. Projections are left out: what they take is not among the LSTM's outputs.

    Args:
        compressed: holds the block terms.
        dense: holds the matrices that they stand for.
        entry: the LSTM.
        data: sequences of its inputs.
        batch_size: sequences at once.

    Returns:
        The error of each matrix by its key; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    forms = {key: [compressed.parts(key)] for key in entry.matrix_keys if key in compressed.matrices}
    errors = errors_of_forms(forms, compressed, dense, entry, data, batch_size)
    return {key: of_form for key, (of_form,) in errors.items()}


def on_inputs(
    compressed: CompressedCheckpoint, dense: Checkpoint, data: str, scale: float = 1.0, lstm: str | None = None
) -> Callable[[Forms], dict[str, tuple[float, ...]]]:
    """A measure of activation errors for :func:`btcompress.report`, on sequences of an LSTM's inputs.

    Args:
        compressed: holds the LSTM with block terms.
        dense: what it was factorized from.
        data: the sequences, as fine-tuning takes them; labels are not looked at.
        scale: what to multiply the inputs of files by.
        lstm: name of the LSTM; may be left out where there is one.

    Returns:
        A function of forms by key; it leaves out the matrices that are not of this LSTM, and projections.

    Raises:
        BTCompressError: the sequences are not inputs of an LSTM with block terms.
        CheckpointError: the dense checkpoint does not fit.
    """
    entry = choose_lstm(compressed, lstm, "Name one with --lstm.")
    if not is_factorized(compressed, entry):
        raise BTCompressError(
            f"{entry.name or 'the LSTM'} has no block-term matrices to measure. Leave the inputs out, or factorize it."
        )
    sequences = open_data(data, scale)
    check_inputs(sequences, sequences.batch(torch.tensor([0])), entry)
    teacher_of(dense, compressed, entry)
    return lambda forms: errors_of_forms(forms, compressed, dense, entry, sequences)


@torch.no_grad()
def errors_of_forms(
    forms: Forms,
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    entry: LSTMEntry,
    data: Data,
    batch_size: int = 32,
) -> dict[str, tuple[float, ...]]:
    """The activation errors of several forms of each matrix, on the same inputs; see :func:`activation_errors`.

    Args:
        forms: what to measure, by the key of the matrix that it stands for; other keys than those of ``W`` and ``U``
            of this LSTM are left out.
        compressed: says in which dtype to compute.
        dense: holds the matrices.
        entry: the LSTM.
        data: sequences of its inputs.
        batch_size: sequences at once.

    Returns:
        The error of each form by the key, in the order given; a matrix whose products are all zero has none.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    keys = [key for key in (*entry.input_keys, *entry.recurrent_keys) if key in forms]
    layers = layers_of(entry, compressed, dense)
    dtype = next(layers[0].parameters()).dtype
    products = {key: [_product(parts, dtype) for parts in forms[key]] for key in keys}
    missed = {key: [0.0] * len(forms[key]) for key in keys}
    sizes = dict.fromkeys(keys, 0.0)
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), dtype)
        for key, inputs in inputs_of(entry, layers, batch):
            if key in products:
                wanted = inputs @ dense.tensors[key].to(dtype).T
                sizes[key] += float(wanted.square().sum())
                for n, product in enumerate(products[key]):
                    missed[key][n] += float((wanted - product(inputs)).square().sum())
    return {key: tuple(math.sqrt(error / sizes[key]) for error in missed[key]) for key in keys if sizes[key]}


def _product(parts: tuple[BlockTerm, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Multiplies inputs, shape ``(n, inputs)``, by the matrix: by its factors, or formed once where that is cheaper."""
    own = [part.to(dtype) for part in parts]
    shapes = [part.shape for part in parts]
    cost = sum(plan_chain(shape.n_blocks, shape.in_modes, shape.out_modes, shape.ranks).cost for shape in shapes)
    entries = sum(shape.dense_params for shape in shapes)
    if cost > 2 * entries and entries <= _FORMED_ENTRIES:
        formed = torch.cat([part.to(torch.float64).to_dense() for part in parts]).to(dtype)
        return lambda inputs: inputs @ formed.T
    return lambda inputs: torch.cat([part.matmul(inputs) for part in own], dim=-1)


def layers_of(entry: LSTMEntry, compressed: CompressedCheckpoint, dense: Checkpoint) -> list[Recurrent]:
    """The dense LSTM cut off after each of its layers, for :func:`inputs_of`."""
    return [teacher_of(dense, compressed, replace(entry, num_layers=n + 1)) for n in range(entry.num_layers)]


def inputs_of(entry: LSTMEntry, layers: list[Recurrent], batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """The inputs that each ``W`` and ``U`` has in the dense LSTM at all steps that count, shape ``(n, inputs)``."""
    steps = torch.arange(batch.x.shape[1])
    counts = steps < (batch.lengths[:, None] if batch.lengths is not None else batch.x.shape[1])
    counts = counts.expand(batch.x.shape[:2])
    n_directions = 1 + entry.bidirectional
    below = batch.x
    for layer, recurrent in enumerate(layers):
        hidden = recurrent(batch.x, batch.lengths)[0]  # (B, T, directions * H), 0 beyond a sequence's end
        for direction, own in enumerate(hidden.chunk(n_directions, dim=-1)):
            position = layer * n_directions + direction
            before = torch.zeros_like(own)
            if direction:
                before[:, :-1] = own[:, 1:]
            else:
                before[:, 1:] = own[:, :-1]
            yield entry.input_keys[position], below[counts]
            yield entry.recurrent_keys[position], before[counts]
        below = hidden
