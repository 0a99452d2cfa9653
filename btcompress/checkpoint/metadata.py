"""The description in a result's header: JSON, written in one fixed order and read with distrust."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from btcompress.checkpoint import layoutrecords
from btcompress.checkpoint.compressed import CompressedCheckpoint, CompressedMatrix, RoundedMatrix
from btcompress.checkpoint.precisions import Stored
from btcompress.checkpoint.schema import (
    ENDLESS_NUMBER,
    STEPS,
    Description,
    FloatsRecord,
    IntegersRecord,
    MatrixRecord,
    RoundedRecord,
    RoundingRecord,
    ShapeRecord,
    Step,
    Versioned,
)
from btcompress.checkpoint.source import Source
from btcompress.checkpoint.storage import Record, from_file, to_record
from btcompress.errors import CheckpointError, ShapeError
from btcompress.results import RoundingReport
from btcompress.shapes import MatrixShape
from btcompress.text import valid_values
from btcompress.timings import BenchReport

#: A file is of the first version that can describe it; what each of them brought.
_VERSION, _VERSION_WITH_IDENTITY_CORES, _VERSION_WITH_ORDERS, _VERSION_WITH_PRECISIONS, _VERSION_WITH_GRUS = range(1, 6)
_BROUGHT = {
    _VERSION_WITH_IDENTITY_CORES: "identity cores",
    _VERSION_WITH_ORDERS: "orders of rows or columns",
    _VERSION_WITH_PRECISIONS: "tensors in fewer bits",
    _VERSION_WITH_GRUS: "separate gates of a GRU, nor nonlinearities of plain RNNs",
}

_T = TypeVar("_T")


def encode(compressed: CompressedCheckpoint, aliases: Mapping[str, str]) -> str:
    """The JSON text of a result's description.

    Args:
        compressed: the result.
        aliases: names of tensors that are not stored, each with the stored one that it equals.

    Raises:
        CheckpointError: it says a number that is not finite.
    """
    source = compressed.source
    description: dict[str, Any] = {
        "version": _version_for(compressed),
        "keys": list(compressed.keys),
        "matrices": {key: _encode_matrix(matrix) for key, matrix in compressed.matrices.items()},
        "aliases": dict(aliases),
        "source": {
            "name": source.name,
            "n_bytes": source.n_bytes,
            "sha256": source.sha256,
            "n_params": source.n_params,
        },
        "history": valid_values(compressed.history),
        "notices": valid_values(compressed.notices),
    }
    if compressed.stored:
        description["precisions"] = {
            name: to_record(compressed.tensors[name], how)
            for name, how in compressed.stored.items()
            if name not in aliases
        }
        description["rounded"] = {key: _encode_rounded(matrix) for key, matrix in compressed.rounded.items()}
    if compressed.bench is not None:
        description["bench"] = _encode_bench(compressed.bench)
    if compressed.layout is not None:
        description["layout"] = layoutrecords.to_record(compressed.layout, compressed.keys)
    if compressed.nonlinearities:
        description["nonlinearities"] = dict(compressed.nonlinearities)
    return _text(description, source.name)


def with_bench(text: str, bench: BenchReport) -> str:
    """The same JSON text with another bench in it, and whatever else it says, known here or not.

    Args:
        text: that :func:`encode` wrote and :func:`decode` has read.
        bench: what was measured.

    Raises:
        CheckpointError: it says a number that is not finite.
    """
    description = json.loads(text)
    return _text({**description, "bench": _encode_bench(bench)}, description["source"]["name"])


def _text(description: Mapping[str, Any], name: str) -> str:
    try:
        text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        # What could not be read again is not written.
        _checked(text)
    except (ValueError, TypeError, CheckpointError, msgspec.ValidationError) as error:
        raise CheckpointError(
            f"{name}, compressed, cannot be described in a file ({error}). Make it again, or leave out what is "
            "not finite."
        ) from error
    return text


def decode(text: str, found: Mapping[str, Tensor], path: Path) -> CompressedCheckpoint:
    """The result that a description and the tensors beside it make.

    Args:
        text: the JSON of :func:`encode`.
        found: the tensors in the file.
        path: the file.

    Raises:
        CheckpointError: the text is no such description, from a later version, or does not fit the tensors.
        MemoryLimitError: the values of what is stored in fewer bits need more memory than there is.
    """
    try:
        return _decode(_checked(text), found, path)
    except (CheckpointError, ShapeError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path} cannot be read as a compressed checkpoint: {error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a description that is not JSON. Make the file again.") from error


def _checked(text: str) -> Description:
    """The description, if every field of it is what the format says.

    Raises:
        CheckpointError: it is of another version.
        msgspec.ValidationError: a field is missing, or is something else.
    """
    if ENDLESS_NUMBER.search(text):
        raise CheckpointError("it holds a number of more digits than any number has. Make the file again.")
    data = text.encode()
    version = msgspec.json.decode(data, type=Versioned).version
    if not _VERSION <= version <= _VERSION_WITH_GRUS:
        raise CheckpointError(
            f"it has format version {version}, and this btcompress reads versions {_VERSION} to "
            f"{_VERSION_WITH_GRUS}. {'Update btcompress' if version > _VERSION else 'Make the file again'}."
        )
    description = msgspec.json.decode(data, type=Description)
    if description.layout is not None:
        layoutrecords.from_record(description.layout, description.keys)
    for number, step in enumerate(description.history, 1):
        kind = _converted(step, Step, f"step {number} of its history").step
        if kind in STEPS:
            _converted(step, STEPS[kind], f"step {number} of its history")
    return description


def _converted(value: object, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{what} is not in order: {error}. Make the file again.") from error


def _version_for(compressed: CompressedCheckpoint) -> int:
    if compressed.nonlinearities or any(matrix.shape.n_separate == 3 for matrix in compressed.matrices.values()):
        return _VERSION_WITH_GRUS
    if compressed.stored:
        return _VERSION_WITH_PRECISIONS
    if any(matrix.shape.part.order_sizes for matrix in compressed.matrices.values()):
        return _VERSION_WITH_ORDERS
    has_identity = any(matrix.shape.part.core == "identity" for matrix in compressed.matrices.values())
    return _VERSION_WITH_IDENTITY_CORES if has_identity else _VERSION


def _encode_matrix(matrix: CompressedMatrix) -> dict[str, Any]:
    return {
        **matrix.shape.to_dict(),
        "dtype": str(matrix.dtype).removeprefix("torch."),
        "weight_error": float(matrix.weight_error),
        "svd_rank": matrix.svd_rank,
        "svd_error": float(matrix.svd_error),
        **_encode_roundings(matrix.roundings, matrix.in_8_bits),
    }


def _encode_rounded(matrix: RoundedMatrix) -> dict[str, Any]:
    """What the tensor and its precision do not say."""
    return {
        "weight_error": float(matrix.weight_error),
        "svd_rank": matrix.svd_rank,
        "svd_error": float(matrix.svd_error),
        **_encode_roundings(matrix.roundings),
    }


def _encode_roundings(roundings: Sequence[RoundingReport], in_8_bits: RoundingReport | None = None) -> dict[str, Any]:
    """What was measured of rounding alone, and no field for what was not."""
    measured: dict[str, Any] = {} if in_8_bits is None else {"in_8_bits": _encode_rounding(in_8_bits)}
    if roundings:
        measured["roundings"] = [_encode_rounding(each) for each in roundings]
    return measured


def _encode_rounding(rounding: RoundingReport) -> dict[str, Any]:
    return {name: value for name, value in asdict(rounding).items() if value is not None and value is not False}


def _encode_bench(bench: BenchReport) -> object:
    return valid_values(asdict(bench))


def _decode(description: Description, found: Mapping[str, Tensor], path: Path) -> CompressedCheckpoint:
    source = description.source
    records = {name: _decode_precision(name, value) for name, value in description.precisions.items()}
    tensors, stored = from_file(found, records)
    tensors = _tied(tensors, description.aliases)
    stored |= {alias: stored[name] for alias, name in description.aliases.items() if name in stored}
    compressed = CompressedCheckpoint(
        tensors,
        {key: _decode_matrix(key, matrix) for key, matrix in description.matrices.items()},
        tuple(description.keys),
        Source(source.name, source.n_bytes, source.sha256, source.n_params),
        tuple(description.history),
        tuple(description.notices),
        (path.resolve(),),
        {key: _decode_rounded(key, value, tensors, stored) for key, value in description.rounded.items()},
        stored,
        description.bench,
        None if description.layout is None else layoutrecords.from_record(description.layout, description.keys),
        dict(description.nonlinearities),
    )
    if description.version < (needed := _version_for(compressed)):
        raise CheckpointError(f"it has format version {description.version}, in which there are no {_BROUGHT[needed]}.")
    dense = sum(tensor.numel() for tensor in compressed.outline().values())
    if source.n_params > dense:
        raise CheckpointError(
            f"its source is said to have {source.n_params:,} parameters, but its keys have {dense:,}."
        )
    return compressed


def _decode_precision(name: str, value: dict[str, Any]) -> Record:
    what = f"the precision of {name}"
    return _converted(value, IntegersRecord, what) if "bits" in value else _converted(value, FloatsRecord, what)


def _decode_rounded(
    key: str, value: dict[str, Any], tensors: Mapping[str, Tensor], stored: Mapping[str, Stored]
) -> RoundedMatrix:
    record = _converted(value, RoundedRecord, f"what is said of the rounded {key}")
    if key not in stored or tensors[key].dim() != 2:
        why = "is no matrix" if key in stored else "has no precision of its own"
        raise CheckpointError(f"{key} is said to be a rounded matrix, but {why}.")
    measured = tuple(map(_decode_rounding, record.roundings))
    plain = RoundedMatrix.of(tensors[key], stored[key], record.weight_error)
    return replace(plain, svd_rank=record.svd_rank, svd_error=record.svd_error, roundings=measured)


def _decode_matrix(key: str, value: dict[str, Any]) -> CompressedMatrix:
    record = _converted(value, MatrixRecord, key)
    dtype = getattr(torch, record.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(f"{key} has dtype {record.dtype!r}, which is no floating-point type.")
    shape = shape_of(key, record)
    measured = (record.weight_error, record.svd_rank, record.svd_error)
    in_8_bits = None if record.in_8_bits is None else _decode_rounding(record.in_8_bits)
    return CompressedMatrix(shape, dtype, *measured, tuple(map(_decode_rounding, record.roundings)), in_8_bits)


def shape_of(key: str, record: ShapeRecord) -> MatrixShape:
    """The shape of a matrix that a file says.

    Raises:
        CheckpointError: gates or ranks do not fit the matrix.
        ShapeError: the shape is inconsistent.
    """
    if record.out_size % record.n_gates:
        raise CheckpointError(f"the {record.out_size} rows of {key} do not divide into {record.n_gates} gates.")
    shape = MatrixShape.from_dict(msgspec.structs.asdict(record))
    # An identity core is made, not read: a larger one than any matrix needs could ask for endless memory.
    if shape.part.core == "identity" and shape.part != shape.part.limited():
        raise CheckpointError(f"the Tucker ranks {shape.part.ranks} of {key} are more than its modes can hold.")
    return shape


def _decode_rounding(record: RoundingRecord) -> RoundingReport:
    return RoundingReport(**msgspec.structs.asdict(record))


def _tied(found: Mapping[str, Tensor], aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """All tensors by name, those that are stored under another name included."""
    tensors = dict(found)
    for alias, name in aliases.items():
        # Only stored tensors may be named, so aliases can form no chain and no circle.
        if alias in found or name not in found:
            raise CheckpointError(f"{alias!r} cannot be another name of {name!r}.")
        tensors[alias] = found[name]
    return tensors
