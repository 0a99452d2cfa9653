"""What the description in a result's header must look like, field by field; checked whole before any of it is used."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from btcompress.packing import LEAST_BITS, LEAST_GROUP, MOST_BITS, MOST_GROUP
from btcompress.results import CalibrationReport, FineTuneReport, LeftDense
from btcompress.shapes import MAX_ORDER, MAX_SIZE, Core, Gates
from btcompress.timings import BenchReport

Count = Annotated[int, Meta(ge=0, le=2**62)]
Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
Sizes = Annotated[list[Size], Meta(min_length=1, max_length=MAX_ORDER)]
#: A stack of blocks has one axis more than modes.
Axes = Annotated[list[Size], Meta(min_length=1, max_length=MAX_ORDER + 1)]
#: JSON has no number that is not finite.
Error = Annotated[float, Meta(ge=0)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

#: More digits than the largest floating-point number has; other readers of JSON would choke on them.
ENDLESS_NUMBER = re.compile(r"[0-9]{400}")
#: Largest whole number of a layout, which every reader of JSON has.
MOST_INTEGER = 2**63 - 1


class Versioned(Struct):
    """Any version of a description."""

    version: int


class SourceRecord(Struct):
    """The dense checkpoint."""

    name: str
    n_bytes: Count
    sha256: Digest | None
    n_params: Count


class RoundingRecord(Struct):
    """Something rounded alone, beside a matrix as it is written."""

    precision: Annotated[str, Meta(pattern="^int[2-8]/[0-9]{1,13}$")]
    bytes: Count
    weight_error: Error
    activation_error: Error | None = None
    weighted_activation_error: Error | None = None
    fed_back: bool = False


class ShapeRecord(Struct, kw_only=True):
    """The form of one matrix."""

    in_modes: Sizes
    out_modes: Sizes
    tucker_ranks: Sizes
    cp_rank: Size
    in_size: Size
    out_size: Size
    n_gates: Size
    gates: Gates
    n_separate: Literal[3, 4] = 4
    core: Core = "full"
    row_order: bool = False
    column_order: bool = False


class MatrixRecord(ShapeRecord, kw_only=True):
    """How one matrix is written, and what was measured when it was."""

    dtype: str
    weight_error: Error
    svd_rank: Count
    svd_error: Error
    roundings: list[RoundingRecord] = []
    in_8_bits: RoundingRecord | None = None


class IntegersRecord(Struct):
    """A tensor that is stored as integers."""

    bits: Annotated[int, Meta(ge=LEAST_BITS, le=MOST_BITS)]
    group: Annotated[int, Meta(ge=LEAST_GROUP, le=MOST_GROUP)]
    shape: Axes
    dtype: Literal["float64", "float32", "float16", "bfloat16"]


class FloatsRecord(Struct):
    """A tensor that is stored in floats of fewer bytes."""

    stored: Literal["float32", "float16", "bfloat16"]
    dtype: Literal["float64", "float32"]


class RoundedRecord(Struct):
    """A matrix that was chosen and stays dense in fewer bits."""

    weight_error: Error
    svd_rank: Count = 0
    svd_error: Error = 1.0
    roundings: list[RoundingRecord] = []


class LayoutRecord(Struct):
    """How the dense checkpoint was arranged; ``layoutrecords.py`` reads the root."""

    root: dict[str, Any] | None = None
    metadata: dict[str, str] = {}
    ties: dict[str, str] = {}


class DenseRecord(LayoutRecord, kw_only=True):
    """The same beside the dense tensors of a result, with their keys in order."""

    keys: list[str]


class Description(Struct):
    """Everything that a header says of a result.

    Each matrix is a :class:`MatrixRecord`, each step a :class:`Step`, each rounded matrix a :class:`RoundedRecord`, and
    each precision an :class:`IntegersRecord` where it has bits, or else a :class:`FloatsRecord`.
    """

    version: int
    keys: list[str]
    matrices: dict[str, dict[str, Any]]
    aliases: dict[str, str]
    source: SourceRecord
    history: list[dict[str, Any]]
    notices: list[str]
    precisions: dict[str, dict[str, Any]] = {}
    rounded: dict[str, dict[str, Any]] = {}
    bench: BenchReport | None = None
    layout: LayoutRecord | None = None
    nonlinearities: dict[str, Literal["tanh", "relu"]] = {}


class Step(Struct):
    """What every step of a history may say."""

    step: str
    left_dense: list[LeftDense] = []
    activation_errors: dict[str, float] = {}
    weighted_activation_errors: dict[str, float] = {}


#: What steps of these kinds must say beside that.
STEPS: dict[str, type] = {"finetune": FineTuneReport, "calibrate": CalibrationReport}
