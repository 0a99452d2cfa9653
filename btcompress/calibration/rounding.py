"""Store the matrices of a checkpoint in fewer bits, their errors fed back where there are samples of their inputs."""

from __future__ import annotations

from dataclasses import replace

from btcompress.calibration.progress import Job, silent
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
from btcompress.checkpoint.compressed import part_names
from btcompress.factorization.matrices import AsItWas, in_precision, rounded
from btcompress.fit import Samples, difference_error, weight_error
from btcompress.packing import Precision
from btcompress.plan import PlannedRounding

#: Multiplications of feeding errors back, for each row of a matrix and each pair of its columns.
_FEEDING = 8


def with_rounded(
    compressed: CompressedCheckpoint, key: str, dense: Checkpoint, precision: Precision, samples: Samples | None = None
) -> CompressedCheckpoint:
    """One matrix in a precision: its block terms, or itself, which then is one of the rounded.

    What cannot be stored so stays as it is, and a notice says why.

    Args:
        compressed: holds its block terms, or the dense matrix.
        key: of the matrix.
        dense: holds the matrix that it stands for.
        precision: of its numbers.
        samples: of its inputs; where left out, its entries count alike.
    """
    matrix = dense.tensors[key]
    if key not in compressed.matrices:
        found = rounded(PlannedRounding(key, (matrix.shape[0], matrix.shape[1]), precision), matrix, samples)
        if isinstance(found, AsItWas):
            notice = f"{key} stays as it was: {found.reason}."
            return replace(compressed, notices=tuple(dict.fromkeys((*compressed.notices, notice))))
        return compressed.with_tensors(stored={key: found.stored}, rounded={key: found.matrix})
    if precision == matrix.dtype:
        return compressed
    shape = compressed.matrices[key].shape
    parts, stored = in_precision(key, shape, matrix, compressed.parts(key), precision, samples)
    tensors = {
        name: tensor
        for names, part in zip(part_names(key, shape), parts, strict=True)
        for name, tensor in zip(names, part.tensors, strict=False)  # orders, behind the others, stay as they are
    }
    return compressed.with_tensors(tensors, stored)


def rounding_job(key: str, dense: Checkpoint, precision: Precision, samples: Samples) -> Job[CompressedCheckpoint]:
    """The rounding of one matrix as a job; see :func:`with_rounded`."""
    rows, columns = dense.tensors[key].shape

    def do(current: CompressedCheckpoint) -> CompressedCheckpoint:
        return with_rounded(current, key, dense, precision, samples)

    return Job(f"rounding {key}", float(_FEEDING * rows * columns**2), silent(do))


def weighed_anew(compressed: CompressedCheckpoint, dense: Checkpoint) -> CompressedCheckpoint:
    """With the weight errors of the tensors as they are now, and nothing said of what 8 bits would make of them."""
    matrices = {
        key: replace(
            matrix,
            weight_error=weight_error(dense.tensors[key], compressed.parts(key), matrix.dtype),
            in_8_bits=None,
        )
        for key, matrix in compressed.matrices.items()
    }
    rounded = {
        key: replace(matrix, weight_error=difference_error(dense.tensors[key], compressed.tensors[key]))
        for key, matrix in compressed.rounded.items()
    }
    return replace(compressed, matrices=matrices, rounded=rounded)
