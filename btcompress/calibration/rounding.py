"""Store a matrix of a checkpoint in fewer bits, its errors fed back where there are samples of its inputs."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from btcompress.calibration.progress import Job, silent
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint
from btcompress.checkpoint.compressed import RoundedMatrix, part_names
from btcompress.checkpoint.precisions import Stored, values_of
from btcompress.errors import BTCompressError
from btcompress.fit import Samples, difference_error, fed_back, nearest, obstacle_to_integers, round_parts, weight_error
from btcompress.packing import Integers, Precision

#: Multiplications of feeding errors back, for each row of a matrix and each pair of its columns.
_FEEDING = 4


def in_precision(
    compressed: CompressedCheckpoint, key: str, dense: Checkpoint, precision: Precision, samples: Samples | None = None
) -> CompressedCheckpoint:
    """A chosen matrix in a precision: its block terms, or the matrix itself, which becomes one of the rounded.

    Args:
        compressed: holds its block terms, or the dense matrix.
        key: of the matrix.
        dense: holds the matrix that it stands for.
        precision: of its numbers; floats that are no fewer bytes than its own leave it as it is.
        samples: of its inputs; where left out, its entries count alike.

    Raises:
        BTCompressError: it cannot be stored so.
    """
    matrix = dense.tensors[key]
    if not isinstance(precision, Integers) and precision.itemsize >= matrix.dtype.itemsize:
        return compressed
    if key in compressed.matrices:
        return _with_form(compressed, key, matrix, precision, samples)
    if isinstance(precision, Integers) and (obstacle := obstacle_to_integers(matrix)):
        raise BTCompressError(f"{key} cannot be stored as {precision}: {obstacle}. Leave it out, or scale the layer.")
    how: Stored = precision  # type: ignore[assignment]
    if isinstance(precision, Integers):
        how = nearest(matrix, precision) if samples is None else fed_back(matrix, precision, samples.inputs)
    about = RoundedMatrix.of(matrix, how, difference_error(matrix, values_of(matrix, how)))
    return compressed.with_tensors(stored={key: how}, rounded={key: about})


def rounding_job(key: str, dense: Checkpoint, precision: Precision, samples: Samples) -> Job[CompressedCheckpoint]:
    """The rounding of one matrix as a job; see :func:`in_precision`."""
    rows, columns = dense.tensors[key].shape

    def do(current: CompressedCheckpoint) -> CompressedCheckpoint:
        return in_precision(current, key, dense, precision, samples)

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


def _with_form(
    compressed: CompressedCheckpoint, key: str, matrix: Tensor, precision: Precision, samples: Samples | None
) -> CompressedCheckpoint:
    form = round_parts(matrix, compressed.parts(key), precision, samples)
    tensors: dict[str, Tensor] = {}
    stored: dict[str, Stored] = {}
    for names, part, own in zip(part_names(key, compressed.matrices[key].shape), form.parts, form.stored, strict=True):
        tensors |= zip(names[: len(part.tensors)], part.tensors, strict=True)  # orders, behind them, stay
        stored |= zip(names[: len(part.tensors)], own, strict=True)
    measured = replace(compressed.matrices[key], weight_error=weight_error(matrix, form.parts, matrix.dtype))
    changed = compressed.with_tensors(tensors, stored)
    return replace(changed, matrices={**changed.matrices, key: measured})
