"""The description in a result's header: JSON, written in one fixed order and read with distrust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from btcompress.checkpoint.compressed import CompressedCheckpoint, CompressedMatrix
from btcompress.checkpoint.source import Source
from btcompress.errors import CheckpointError, ShapeError
from btcompress.shapes import MatrixShape

#: A file is of the first version that can describe it: one without identity cores and orders of version 1.
_VERSION, _VERSION_WITH_IDENTITY_CORES, _VERSION_WITH_ORDERS = 1, 2, 3

#: No tensor has more modes or larger ones; without a bound a forged header could ask for endless arithmetic.
_MAX_ORDER = 16
_MAX_SIZE = 2**40

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
    description = {
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
        "history": list(compressed.history),
        "notices": list(compressed.notices),
    }
    try:
        return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise CheckpointError(
            f"the description of {source.name}, compressed, has a number that is not finite (NaN or infinity), which "
            "a result cannot hold. Make it again from the dense checkpoint."
        ) from error


def decode(text: str, stored: Mapping[str, Tensor], path: Path) -> CompressedCheckpoint:
    """The result that a description and the tensors beside it make.

    Args:
        text: the JSON of :func:`encode`.
        stored: the tensors in the file.
        path: the file.

    Raises:
        CheckpointError: the text is no such description, from a later version, or does not fit the tensors.
    """
    try:
        return _decode(json.loads(text), stored, path)
    except (CheckpointError, ShapeError) as error:
        raise CheckpointError(f"{path} cannot be read as a compressed checkpoint: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a description that is not JSON. Make the file again.") from error


def _version_for(compressed: CompressedCheckpoint) -> int:
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
    }


def _decode(description: object, stored: Mapping[str, Tensor], path: Path) -> CompressedCheckpoint:
    if not isinstance(description, dict):
        raise CheckpointError("its description is not a JSON object.")
    version = _field(description, "version", int)
    if not _VERSION <= version <= _VERSION_WITH_ORDERS:
        raise CheckpointError(
            f"it has format version {version}, and this btcompress reads versions {_VERSION} to "
            f"{_VERSION_WITH_ORDERS}. {'Update btcompress' if version > _VERSION else 'Make the file again'}."
        )
    source = _field(description, "source", dict)
    matrices = _field(description, "matrices", dict)
    compressed = CompressedCheckpoint(
        _tied(stored, _field(description, "aliases", dict)),
        {key: _decode_matrix(key, matrix) for key, matrix in matrices.items()},
        tuple(_all(_field(description, "keys", list), str, "keys")),
        Source(
            _field(source, "name", str),
            _field(source, "n_bytes", int),
            None if source.get("sha256") is None else _field(source, "sha256", str),
            _field(source, "n_params", int),
        ),
        tuple(_all(_field(description, "history", list), dict, "history")),
        tuple(_all(_field(description, "notices", list), str, "notices")),
        (path.resolve(),),
    )
    if version < (needed := _version_for(compressed)):
        what = "orders of rows or columns" if needed == _VERSION_WITH_ORDERS else "identity cores"
        raise CheckpointError(f"it has format version {version}, in which there are no {what}.")
    return compressed


def _decode_matrix(key: str, data: object) -> CompressedMatrix:
    if not isinstance(data, dict):
        raise CheckpointError(f"the description of {key} is not a JSON object.")
    numbers = [_field(data, name, int) for name in ("in_size", "out_size", "n_gates", "cp_rank")]
    for name in ("in_modes", "out_modes", "tucker_ranks"):
        modes = _all(_field(data, name, list), int, name)
        if len(modes) > _MAX_ORDER:
            raise CheckpointError(f"{key} has {len(modes)} {name}, more than the {_MAX_ORDER} that a tensor can have.")
        numbers += modes
    if not all(1 <= number <= _MAX_SIZE for number in numbers):
        raise CheckpointError(f"a size of {key} is not between 1 and {_MAX_SIZE}.")
    name = _field(data, "dtype", str)
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CheckpointError(f"{key} has dtype {name!r}, which is no floating-point type.")
    shape = MatrixShape.from_dict(data)
    # An identity core is made, not read: a larger one than any matrix needs could ask for endless memory.
    if shape.part.core == "identity" and shape.part != shape.part.limited():
        raise CheckpointError(f"the Tucker ranks {shape.part.ranks} of {key} are more than its modes can hold.")
    return CompressedMatrix(
        shape,
        dtype,
        _field(data, "weight_error", float),
        _field(data, "svd_rank", int),
        _field(data, "svd_error", float),
    )


def _tied(stored: Mapping[str, Tensor], aliases: dict[str, object]) -> dict[str, Tensor]:
    """All tensors by name, those that are stored under another name included."""
    tensors = dict(stored)
    for alias, name in aliases.items():
        # Only stored tensors may be named, so aliases can form no chain and no circle.
        if alias in stored or not isinstance(name, str) or name not in stored:
            raise CheckpointError(f"{alias!r} cannot be another name of {name!r}.")
        tensors[alias] = stored[name]
    return tensors


def _field(data: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = data.get(name)
    if not isinstance(value, kind):
        raise CheckpointError(f"{name} is missing from its description, or is no {kind.__name__}.")
    return value


def _all(values: list[object], kind: type[_T], name: str) -> list[_T]:
    if not all(isinstance(value, kind) for value in values):
        raise CheckpointError(f"each of {name} in its description must be a {kind.__name__}.")
    return values  # type: ignore[return-value]
