"""Fit the matrices of an LSTM anew to what the dense ones give on sample inputs, without any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
from btcompress.checkpoint.compressed import part_names
from btcompress.fit import Samples, fit_to_inputs


def refit(compressed: CompressedCheckpoint, dense: Checkpoint, samples: Mapping[str, Samples]) -> CompressedCheckpoint:
    """Give every matrix of which there are samples a small activation error, as its outputs count.

    Args:
        compressed: holds the forms.
        dense: holds the matrices.
        samples: by the key of the matrix; those of matrices that stayed dense are left out.
    """
    tensors = dict(compressed.tensors)
    for key, matrix in compressed.matrices.items():
        if key not in samples:
            continue
        fitted = fit_to_inputs(dense.tensors[key], compressed.parts(key), samples[key])
        for names, part in zip(part_names(key, matrix.shape), fitted.parts, strict=True):
            trained = zip(names[: len(part.tensors)], part.tensors, strict=True)  # orders, behind them, stay
            tensors |= {name: tensor.to(matrix.dtype) for name, tensor in trained}
    return replace(compressed, tensors=tensors)
