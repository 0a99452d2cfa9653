"""Which matrices of a checkpoint are factorized, and into what shape each one goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from btcompress.checkpoint import Checkpoint, LSTMEntry, OtherRecurrent, find_recurrent
from btcompress.errors import CheckpointError
from btcompress.modes import ShapeRequest, choose_shapes
from btcompress.results import LeftDense
from btcompress.shapes import MatrixShape


@dataclass(frozen=True, slots=True)
class Fallback:
    """What a matrix gets instead where the fit of its own shape comes out worse than foreseen.

    Attributes:
        max_error: the largest weight error with which its own shape is kept.
        shape: a shape that is fitted exactly; None leaves the matrix dense.
    """

    max_error: float
    shape: MatrixShape | None


@dataclass(frozen=True, slots=True)
class PlannedMatrix:
    """One matrix and the shape chosen for it.

    Attributes:
        name: its key in the checkpoint.
        shape: the block-term shape that it gets, or would get if it were not left dense.
        fallback: what it gets instead where the fit comes out worse than foreseen; None keeps any fit.
    """

    name: str
    shape: MatrixShape
    fallback: Fallback | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done to a checkpoint.

    Attributes:
        lstms: every LSTM found.
        others: recurrent layers that are no LSTM or that cannot be read as one.
        matrices: matrices to factorize.
        left_dense: matrices that were chosen but stay dense, and why.
        notices: how mode sizes and ranks came about.
    """

    lstms: tuple[LSTMEntry, ...]
    others: tuple[OtherRecurrent, ...]
    matrices: tuple[PlannedMatrix, ...]
    left_dense: tuple[LeftDense, ...]
    notices: tuple[str, ...]


def make_plan(
    checkpoint: Checkpoint, request: ShapeRequest, layers: Sequence[str] = (), *, allow_growth: bool = False
) -> Plan:
    """Choose a block-term shape for each input-to-hidden matrix of the LSTMs in a checkpoint.

    Args:
        checkpoint: what was read.
        request: ranks and modes asked for; modes and an input shape go to the matrices they fit.
        layers: patterns with ``*`` and ``?`` over matrix keys and LSTM names; one that begins with ``!``
            leaves matches out. Empty takes every matrix.
        allow_growth: also factorize matrices whose block-term form has more parameters than they have.

    Raises:
        CheckpointError: a pattern matches nothing.
        ShapeError: modes or an input shape fit none of the matrices chosen.
    """
    found = find_recurrent(checkpoint.tensors)
    lstms = tuple(entry for entry in found if isinstance(entry, LSTMEntry))
    keys = _choose_keys(lstms, layers)
    sizes = {key: (checkpoint.tensors[key].shape[0], checkpoint.tensors[key].shape[1]) for key in keys}
    matrices: list[PlannedMatrix] = []
    left_dense: list[LeftDense] = []
    notices: list[str] = []
    for key, chosen in choose_shapes(request, sizes).items():
        shape = chosen.shape
        if shape.n_params >= shape.dense_params and not allow_growth:
            left_dense.append(LeftDense(key, growth(shape)))
            continue
        matrices.append(PlannedMatrix(key, shape))
        notices.extend(chosen.notices)
    others = tuple(entry for entry in found if isinstance(entry, OtherRecurrent))
    return Plan(lstms, others, tuple(matrices), tuple(left_dense), tuple(notices))


def growth(shape: MatrixShape) -> str:
    """Why a matrix that its form would make larger stays dense."""
    return (
        f"its block-term form would have {shape.n_params:,} parameters, the matrix itself has "
        f"{shape.dense_params:,}; lower the ranks, or allow growth"
    )


def _choose_keys(lstms: Sequence[LSTMEntry], layers: Sequence[str]) -> list[str]:
    owners = {key: lstm.name for lstm in lstms for key in lstm.input_keys}
    wanted = [pattern for pattern in layers if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in layers if pattern.startswith("!")]
    for pattern in (*wanted, *unwanted) if owners else ():
        if not any(_matches(key, owner, pattern) for key, owner in owners.items()):
            raise CheckpointError(
                f"no matrix matches the layer pattern {pattern!r}. The matrices are {', '.join(owners)}; "
                "a pattern may use * and ?, and ! in front to leave matches out."
            )
    return [
        key
        for key, owner in owners.items()
        if (not wanted or any(_matches(key, owner, pattern) for pattern in wanted))
        and not any(_matches(key, owner, pattern) for pattern in unwanted)
    ]


def _matches(key: str, owner: str, pattern: str) -> bool:
    return fnmatchcase(key, pattern) or fnmatchcase(owner, pattern)
