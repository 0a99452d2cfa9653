"""Fit matrices anew to what the dense ones give on sample inputs, without any training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from btcompress.calibration.progress import Job, silent
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
from btcompress.checkpoint.compressed import part_names
from btcompress.fit import Samples, fit_to_inputs

#: Multiplications of a fit for each cube of the outputs of a low-rank part, mostly those of its eigenvectors, and
#: about how much longer the sweeps of another form take.
_EIGENVECTORS = 10
_SWEEPS = 4


def refit(compressed: CompressedCheckpoint, dense: Checkpoint, samples: Mapping[str, Samples]) -> CompressedCheckpoint:
    """Give every matrix of which there are samples a small activation error, as its outputs count.

    Args:
        compressed: holds the forms.
        dense: holds the matrices.
        samples: by the key of the matrix; those of matrices that stayed dense are left out.
    """
    tensors: dict[str, Tensor] = {}
    for key, matrix in compressed.matrices.items():
        if key not in samples:
            continue
        fitted = fit_to_inputs(dense.tensors[key], compressed.parts(key), samples[key])
        for names, part in zip(part_names(key, matrix.shape), fitted.parts, strict=True):
            trained = zip(names[: len(part.tensors)], part.tensors, strict=True)  # orders, behind them, stay
            tensors |= {name: tensor.to(matrix.dtype) for name, tensor in trained}
    return compressed.with_tensors(tensors)


def fit_job(
    compressed: CompressedCheckpoint, key: str, dense: Checkpoint, samples: Samples
) -> Job[CompressedCheckpoint]:
    """The fit of one matrix as a job.

    Args:
        compressed: holds its form.
        key: of the matrix.
        dense: holds it.
        samples: of its inputs.
    """
    shape = compressed.matrices[key].shape
    work = _EIGENVECTORS * shape.n_parts * float(shape.part.out_size) ** 3
    if not shape.part.is_low_rank:
        work *= _SWEEPS

    def do(current: CompressedCheckpoint) -> CompressedCheckpoint:
        return refit(current, dense, {key: samples})

    return Job(f"fitting {key} to its inputs", work, silent(do))
