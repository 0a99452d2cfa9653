"""Fit low-rank matrices anew to what the dense ones give on sample inputs, exactly and without any training.

Among all matrices of rank ``r``, ``W' = U U^T W`` with ``U`` the leading eigenvectors of ``E[z z^T]``, ``z = W x``, has
the least activation error: it keeps the ``r`` directions in which the products are largest. No matrix of inputs by
inputs is ever formed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from btcompress.blockterm import BlockTerm
from btcompress.calibration.errors import inputs_of, layers_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LSTMEntry
from btcompress.checkpoint.compressed import part_names
from btcompress.finetune.data import Data
from btcompress.fit import balanced
from btcompress.shapes import MatrixShape


@torch.no_grad()
def refit(
    compressed: CompressedCheckpoint, dense: Checkpoint, entry: LSTMEntry, data: Data, batch_size: int = 32
) -> CompressedCheckpoint:
    """Give every low-rank ``W`` and ``U`` of an LSTM the least activation error on the dense LSTM's own inputs.

    Forms with a core stay as they are.

    Args:
        compressed: holds the forms.
        dense: holds the matrices.
        entry: the LSTM.
        data: sequences of its inputs.
        batch_size: sequences at once.

    Raises:
        CheckpointError: the dense checkpoint lacks a matrix, or holds it in another shape.
        BTCompressError: an input is not finite.
    """
    matrices = {
        key: compressed.matrices[key]
        for key in (*entry.input_keys, *entry.recurrent_keys)
        if key in compressed.matrices and compressed.matrices[key].shape.part.is_low_rank
    }
    if not matrices:
        return compressed
    layers = layers_of(entry, compressed, dense)
    moments = {key: torch.zeros(()) for key in matrices}
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.batch(rows).to(torch.device("cpu"), next(layers[0].parameters()).dtype)
        for key, inputs in inputs_of(entry, layers, batch):
            if key in matrices:
                products = _by_part(inputs @ dense.tensors[key].to(inputs.dtype).T, matrices[key].shape).double()
                moments[key] = moments[key] + products.mT @ products
    tensors = dict(compressed.tensors)
    for key, matrix in matrices.items():
        weights = dense.tensors[key].double().unflatten(0, (matrix.shape.n_parts, -1))
        vectors = torch.linalg.eigh(moments[key]).eigenvectors[..., -matrix.shape.part.ranks[0] :].flip(-1)
        for names, left, weight in zip(part_names(key, matrix.shape), vectors, weights, strict=True):
            first, second = matrix.shape.part.factor_shapes
            factors = ((left.T @ weight).T.reshape(first), left.reshape(second))
            form = balanced(BlockTerm.of(matrix.shape.part, factors))
            tensors |= {name: tensor.to(matrix.dtype) for name, tensor in zip(names, form.tensors, strict=True)}
    return replace(compressed, tensors=tensors)


def _by_part(products: Tensor, shape: MatrixShape) -> Tensor:
    """Products of each form of a matrix, shape ``(parts, n, rows)``."""
    return products.unflatten(1, (shape.n_parts, -1)).transpose(0, 1)
