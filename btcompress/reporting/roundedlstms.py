"""What rounding alone would leave of recurrent layers, measured on inputs: the figure to beat at equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from btcompress.checkpoint import Checkpoint
from btcompress.fit import Samples
from btcompress.fit.rounding import fed_back
from btcompress.packing import Integers, precision_of
from btcompress.results import InputsReport, MatrixReport, RoundedLSTM
from btcompress.yardsticks import INT4, int8_by_rows, rounded_alone, same_integers_within


class OfLSTMs(Protocol):
    """Measures recurrent layers on inputs."""

    def samples(self, key: str, /) -> Samples | None:
        """What a matrix meets; None for one that has no inputs."""

    def reports(self) -> tuple[InputsReport, ...]:
        """What each recurrent layer gives on its inputs, beside the dense one."""

    def hidden_state_errors(self, matrices: Mapping[str, Tensor], /) -> Mapping[str, float]:
        """Of the dense layers with other matrices, by the name of each."""


def rounded_lstms(rows: Sequence[MatrixReport], dense: Checkpoint, measure: OfLSTMs) -> tuple[InputsReport, ...]:
    """What recurrent layers give on their inputs, and what the dense ones would with chosen matrices rounded alone.

    Args:
        rows: of all chosen matrices, with their roundings.
        dense: holds them.
        measure: has the inputs.
    """
    reports = measure.reports()
    found: dict[str, list[RoundedLSTM]] = {each.lstm: [] for each in reports}
    known: dict[tuple[Any, ...], Mapping[str, float]] = {}
    for precision, is_fed_back, chosen in _ways(rows):
        way = (is_fed_back, *chosen.items())
        if way not in known:
            pairs = (
                (key, _rounded(key, each, dense, measure, is_fed_back=is_fed_back)) for key, each in chosen.items()
            )
            matrices = {key: matrix for key, matrix in pairs if matrix is not None}
            known[way] = measure.hidden_state_errors(matrices) if matrices else {}
        for lstm, error in known[way].items():
            found[lstm].append(RoundedLSTM(precision, is_fed_back, error))
    return tuple(replace(each, rounded=tuple(found[each.lstm])) for each in reports)


def _ways(rows: Sequence[MatrixReport]) -> Iterator[tuple[str, bool, dict[str, Integers]]]:
    """What each way of rounding is called, whether it feeds errors back, and the integers of each matrix in it."""
    rows = [row for row in rows if row.roundings]
    yield "int8", False, {row.name: int8_by_rows(row.shape[1]) for row in rows}
    yield "int4", False, dict.fromkeys((row.name for row in rows), INT4)
    same = same_integers_within([row.shape for row in rows], sum(row.bytes_after for row in rows))
    for is_fed_back in (False, True):
        yield "equal_bytes", is_fed_back, {row.name: best for row in rows if (best := _best(row)) is not None}
        yield "same", is_fed_back, dict(zip((row.name for row in rows), same, strict=bool(same)))


def _best(row: MatrixReport) -> Integers | None:
    """The integers that a matrix is rounded to the nearest of, at no more bytes, with the least error."""
    best = row.best_rounding
    integers = None if best is None else precision_of(best.precision)
    return integers if isinstance(integers, Integers) else None


def _rounded(key: str, integers: Integers, dense: Checkpoint, measure: OfLSTMs, *, is_fed_back: bool) -> Tensor | None:
    matrix, samples = dense.tensors[key], measure.samples(key)
    if samples is None:
        return None
    return fed_back(matrix, integers, samples.inputs).values() if is_fed_back else rounded_alone(matrix, integers)
