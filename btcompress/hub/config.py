"""``config.json``: arguments of the class, and in a section of its own the shapes of all block-term matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from btcompress.checkpoint.metadata import shape_of
from btcompress.checkpoint.schema import ShapeRecord
from btcompress.errors import CheckpointError, ShapeError
from btcompress.files import open_regular
from btcompress.shapes import MatrixShape

NAME = "config.json"

#: The key of the section.
SECTION = "btcompress"

_VERSION = 1
#: No arguments take more.
_MAX_BYTES = 1 << 26
_ADVICE = "Give a folder that save_pretrained has written, or save the model again."


class _Section(Struct):
    version: int
    matrices: dict[str, ShapeRecord]


def section_of(shapes: Mapping[str, MatrixShape]) -> dict[str, Any]:
    """The section, plain values for JSON, of shapes by key."""
    return {"version": _VERSION, "matrices": {key: shape.to_dict() for key, shape in shapes.items()}}


def read_config(path: Path) -> dict[str, Any]:
    """All that a file says, as plain values.

    Raises:
        BTCompressError: there is no such regular file.
        CheckpointError: it is too large, or no JSON object.
    """
    with open_regular(path, _ADVICE) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than the arguments of any class. {_ADVICE}")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}). {_ADVICE}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object. {_ADVICE}")
    return config


def shapes_in(config: Mapping[str, Any], path: Path) -> dict[str, MatrixShape]:
    """The shapes in the section, by key; none where there is no section.

    Raises:
        CheckpointError: the section is not what it should be, or from a later version.
    """
    if SECTION not in config:
        return {}
    try:
        section = msgspec.convert(config[SECTION], _Section)
        if section.version != _VERSION:
            raise CheckpointError(f"version {section.version} is not {_VERSION}, which this btcompress reads")
        return {key: shape_of(key, record) for key, record in section.matrices.items()}
    except (msgspec.ValidationError, CheckpointError, ShapeError) as error:
        reason = str(error).removesuffix(".")
        raise CheckpointError(f'{path} has a section "{SECTION}" that cannot be read: {reason}. {_ADVICE}') from error
