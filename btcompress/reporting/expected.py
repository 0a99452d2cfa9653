"""How fast layers of a result are to be beside the dense ones, by the cost model: before anybody measures it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from btcompress.checkpoint import CompressedCheckpoint, RecurrentEntry
from btcompress.nn.choice import speed_over_dense
from btcompress.nn.ways import Task
from btcompress.reporting.speed import expectation
from btcompress.results import ExpectedCase, ExpectedSpeed
from btcompress.shapes import MatrixShape
from btcompress.timings import BenchReport

#: Batch sizes and steps of calls that are typical of a layer: streaming, one sequence, several; and of a cell.
_LSTM_CASES, _CELL_CASES = ((1, 1), (1, 50), (16, 50)), ((1, 1), (16, 1))
#: Planning the products of a form takes hundredths of a second up to this order; forms that are planned in all.
_MOST_ORDER, _MOST_FORMS = 8, 32


def expected_speed(compressed: CompressedCheckpoint) -> ExpectedSpeed | None:
    """What the cost model expects of predictions on a CPU of two cores.

    It is of float32, as the constants of the model are. Layers without block terms run as the dense ones do, and
    those that a bench has measured on a CPU are better known: of these nothing is said. Nor is it where planning the
    products would take long.

    Args:
        compressed: the result.

    Returns:
        The ratios and what they mean; None where there is no such layer.
    """
    outline = compressed.outline()
    shapes = {key: matrix.shape for key, matrix in compressed.matrices.items()}
    every = [
        entry
        for entry in compressed.recurrent()
        if isinstance(entry, RecurrentEntry) and not entry.siblings and any(key in shapes for key in entry.matrix_keys)
    ]
    measured = _measured(compressed.bench)
    entries = [
        entry
        for entry in every
        if entry.name not in measured and all(outline[key].dtype == torch.float32 for key in entry.matrix_keys)
    ]
    cases = tuple(case for entry in _quickly_planned(entries, shapes) for case in _cases(entry, shapes))
    return ExpectedSpeed(cases, tuple(expectation(cases, alone=len(every) == 1))) if cases else None


def _measured(bench: BenchReport | None) -> set[str]:
    """The names of layers whose predictions were measured on a CPU."""
    if bench is None or bench.machine.device != "cpu":
        return set()
    return {case.lstm for case in bench.cases if case.mode == "prediction" and case.ratio is not None}


def _quickly_planned(entries: Sequence[RecurrentEntry], shapes: Mapping[str, MatrixShape]) -> Iterator[RecurrentEntry]:
    """The layers but those with too many modes, and none from where on there are too many forms."""
    seen = set()
    for entry in entries:
        own = {shapes[key].part for key in entry.matrix_keys if key in shapes}
        seen |= {part for part in own if not part.is_low_rank}
        if len(seen) > _MOST_FORMS:
            return
        if all(part.order <= _MOST_ORDER for part in own):
            yield entry


def _cases(entry: RecurrentEntry, shapes: Mapping[str, MatrixShape]) -> Iterator[ExpectedCase]:
    cell = entry.is_cell
    for batch, steps in _CELL_CASES if cell else _LSTM_CASES:
        ratio = speed_over_dense(list(_tasks(entry, shapes, batch, steps)), cell=cell)
        yield ExpectedCase(entry.name, batch, steps, ratio, entry.type.upper())


def _tasks(entry: RecurrentEntry, shapes: Mapping[str, MatrixShape], batch: int, steps: int) -> Iterator[Task]:
    """What each layer has to do."""
    directions = 1 + entry.bidirectional
    kinds = [
        [shapes.get(key) for key in keys] for keys in (entry.input_keys, entry.recurrent_keys, entry.projection_keys)
    ]
    for first in range(0, len(entry.suffixes), directions):
        w, u, p = (tuple(each[first : first + directions]) for each in kinds)
        yield Task(
            entry.shapes[entry.input_keys[first]][1],
            entry.hidden_size,
            steps,
            batch,
            steps * batch,
            packed=False,
            trains=False,
            w=w,
            u=u,
            p=p,
            outputs=entry.proj_size,
            onednn=entry.type == "lstm" and not entry.proj_size,
            cell=entry.type,
        )
