"""Which matrices of a checkpoint are factorized, and into what shape each one goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from torch import Tensor

from btcompress.checkpoint import (
    Checkpoint,
    LinearEntry,
    OtherRecurrent,
    RecurrentEntry,
    find_aliases,
    find_linear,
    oddity,
)
from btcompress.errors import CheckpointError
from btcompress.fit import obstacle_of_dtype
from btcompress.fit.measures import largest
from btcompress.kinds import MatrixKind, check_kinds
from btcompress.modes import ShapeRequest, choose_shapes
from btcompress.packing import Precision
from btcompress.results import LeftDense
from btcompress.shapes import MatrixShape


@dataclass(frozen=True, slots=True)
class Fallback:
    """What a matrix gets instead where the fit of its own shape comes out worse than foreseen.

    Attributes:
        max_error: the largest weight error with which its own shape is kept.
        shape: a shape that is fitted exactly; None leaves the matrix dense.
        precision: how the numbers of that shape, or of the dense matrix, are stored; None as the matrix's own are.
    """

    max_error: float
    shape: MatrixShape | None
    precision: Precision | None = None


@dataclass(frozen=True, slots=True)
class PlannedMatrix:
    """One matrix and the shape chosen for it.

    Attributes:
        name: its key in the checkpoint.
        shape: the block-term shape that it gets, or would get if it were not left dense.
        fallback: what it gets instead where the fit comes out worse than foreseen; None keeps any fit.
        precision: how the numbers of its cores and factors are stored; None as the matrix's own are.
    """

    name: str
    shape: MatrixShape
    fallback: Fallback | None = None
    precision: Precision | None = None


@dataclass(frozen=True, slots=True)
class PlannedRounding:
    """A matrix that stays dense, and the precision chosen for it.

    Attributes:
        name: its key in the checkpoint.
        size: ``(rows, columns)``.
        precision: how its numbers are to be stored.
    """

    name: str
    size: tuple[int, int]
    precision: Precision


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done to a checkpoint.

    Attributes:
        recurrent: every recurrent layer found.
        others: what looks like a recurrent layer and is none that can be taken.
        matrices: matrices to factorize.
        left_dense: matrices that were chosen but stay dense, and why.
        notices: how mode sizes and ranks came about.
        kinds: the kinds of matrices asked for.
        rounded: matrices that stay dense, in fewer bits.
        twins: other names of matrices that were chosen under the first of their names, as those of a layer that is used
            twice. Under these a result has the same as under the first, which is in the values.
    """

    recurrent: tuple[RecurrentEntry, ...]
    others: tuple[OtherRecurrent, ...]
    matrices: tuple[PlannedMatrix, ...]
    left_dense: tuple[LeftDense, ...]
    notices: tuple[str, ...]
    kinds: tuple[MatrixKind, ...] = ("input",)
    rounded: tuple[PlannedRounding, ...] = ()
    twins: Mapping[str, str] = field(default_factory=dict)

    @property
    def told(self) -> tuple[str, ...]:
        """All that is to be said of it: of layers that compute something else than torch's, then the notices."""
        odd = (
            f"{oddity(lstm)}. Its matrices can be factorized, but nothing here computes what it does: it is neither "
            "calibrated nor measured, nor does a block-term layer take its place."
            for lstm in self.recurrent
            if lstm.siblings
        )
        return (*odd, *self.notices)

    @property
    def precisions(self) -> dict[str, Precision]:
        """The precision of each matrix that gets one, by its key."""
        named = {each.name: each.precision for each in self.matrices if each.precision is not None}
        return named | {each.name: each.precision for each in self.rounded}

    def stored_as(self, precision: Precision | None) -> Plan:
        """The same with the cores and factors of every matrix in one precision; None leaves them as they are."""
        return replace(self, matrices=tuple(replace(each, precision=precision) for each in self.matrices))

    def rounded_to(self, precision: Precision) -> Plan:
        """The same with every matrix dense, in one precision, and without what was to know of their shapes."""
        sizes = {each.name: (each.shape.out_size, each.shape.in_size) for each in self.matrices}
        rounded = tuple(PlannedRounding(name, size, precision) for name, size in sizes.items())
        notices = tuple(each for each in self.notices if not each.startswith(tuple(f"{name}: " for name in sizes)))
        return replace(self, matrices=(), notices=notices, rounded=rounded)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A matrix that may be factorized.

    Attributes:
        key: of the matrix.
        owner: name of its layer.
        kind: what it is multiplied with.
        n_gates: row groups.
        exactly: it is only taken where a pattern is its very key.
        obstacle: why it has to stay dense.
    """

    key: str
    owner: str
    kind: MatrixKind
    n_gates: int = 1
    exactly: bool = False
    obstacle: str | None = None

    def matches(self, pattern: str) -> bool:
        return fnmatchcase(self.key, pattern) or fnmatchcase(self.owner, pattern)


def make_plan(
    checkpoint: Checkpoint,
    request: ShapeRequest,
    layers: Sequence[str] = (),
    *,
    matrices: Sequence[MatrixKind] = ("input",),
    allow_growth: bool = False,
    allow_nonfinite: bool = False,
) -> Plan:
    """Choose a block-term shape for each matrix of a checkpoint that is to get one.

    Args:
        checkpoint: what was read.
        request: ranks and modes asked for; modes and an input shape go to the matrices they fit.
        layers: patterns with ``*`` and ``?`` over matrix keys and layer names; one that begins with ``!``
            leaves matches out. Empty takes every matrix of these kinds. A matrix without a bias beside it, which
            may be an embedding, is taken as a linear layer only where a pattern is its very key.
        matrices: the kinds to take.
        allow_growth: also factorize matrices whose block-term form has more parameters than they have.
        allow_nonfinite: leave matrices dense that hold NaN or infinity, which else fail where they are fitted.

    Raises:
        BTCompressError: there is no such kind of matrix.
        CheckpointError: a pattern matches nothing.
        ShapeError: modes or an input shape fit none of the matrices chosen.
    """
    kinds = check_kinds(matrices)
    found = checkpoint.recurrent()
    recurrent = tuple(entry for entry in found if isinstance(entry, RecurrentEntry))
    others = tuple(entry for entry in found if isinstance(entry, OtherRecurrent))
    candidates = tuple(_candidates(recurrent, find_linear(checkpoint.tensors, found)))
    chosen = [_with_dtype(each, checkpoint.tensors[each.key]) for each in _choose(candidates, kinds, layers)]
    if allow_nonfinite:
        chosen = [_with_values(each, checkpoint.tensors[each.key]) for each in chosen]
    left_dense = [LeftDense(each.key, each.obstacle) for each in chosen if each.obstacle is not None]
    twins = _twins(chosen, find_aliases(checkpoint.tensors))
    sizes: dict[str, tuple[int, int, int]] = {}
    for each in chosen:
        if each.obstacle is None and each.key not in twins:
            rows, columns = checkpoint.tensors[each.key].shape
            sizes[each.key] = (rows, columns, each.n_gates)
    planned: list[PlannedMatrix] = []
    notices: list[str] = []
    for key, choice in choose_shapes(request, sizes).items():
        shape = choice.shape
        if shape.n_params >= shape.dense_params and not allow_growth:
            left_dense.append(LeftDense(key, growth(shape)))
            continue
        planned.append(PlannedMatrix(key, shape))
        notices.extend(choice.notices)
    if "linear" in kinds and not layers:
        notices.extend(_passed_over(candidates))
    return Plan(recurrent, others, tuple(planned), tuple(left_dense), tuple(notices), kinds, twins=twins)


def _twins(chosen: Sequence[_Candidate], aliases: Mapping[str, str]) -> dict[str, str]:
    """Of the matrices chosen those that are one with another that was chosen before, and that one."""
    first: dict[tuple[str, int], str] = {}
    for each in chosen:
        if each.obstacle is None:
            first.setdefault((aliases.get(each.key, each.key), each.n_gates), each.key)
    firsts = ((each.key, first.get((aliases.get(each.key, each.key), each.n_gates))) for each in chosen)
    return {key: other for key, other in firsts if other not in (None, key)}


def _with_dtype(candidate: _Candidate, matrix: Tensor) -> _Candidate:
    """The same, with what is in the way of its dtype where nothing else is."""
    return replace(candidate, obstacle=candidate.obstacle or obstacle_of_dtype(matrix.dtype) or None)


def _with_values(candidate: _Candidate, matrix: Tensor) -> _Candidate:
    """The same, with what is in the way of its values where nothing else is."""
    if candidate.obstacle is None and not math.isfinite(largest(matrix)):
        return replace(candidate, obstacle="it holds values that are not finite (NaN or infinity)")
    return candidate


def growth(shape: MatrixShape) -> str:
    """Why a matrix that its form would make larger stays dense."""
    return (
        f"its block-term form would have {shape.n_params:,} parameters, the matrix itself has "
        f"{shape.dense_params:,}; lower the ranks, or allow growth"
    )


def _candidates(recurrent: Sequence[RecurrentEntry], linear: Sequence[LinearEntry]) -> Iterator[_Candidate]:
    for entry in recurrent:
        for key in entry.matrix_keys:
            kind: MatrixKind = "input" if key in entry.input_keys else "recurrent"
            yield _Candidate(key, entry.name, kind, 1 if key in entry.projection_keys else entry.n_gates)
    for layer in linear:
        yield _Candidate(layer.key, layer.name, "linear", exactly=not layer.bias, obstacle=layer.obstacle)


def _choose(
    candidates: Sequence[_Candidate], kinds: Sequence[MatrixKind], layers: Sequence[str]
) -> tuple[_Candidate, ...]:
    offered = [each for each in candidates if each.kind in kinds and (not each.exactly or each.key in layers)]
    wanted = [pattern for pattern in layers if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in layers if pattern.startswith("!")]
    for pattern in (*wanted, *unwanted) if candidates else ():
        # What is left out anyway may be left out by name as well.
        if not any(each.matches(pattern) for each in (offered if pattern in wanted else candidates)):
            raise CheckpointError(
                f"no matrix matches the layer pattern {pattern!r}. {_offer(candidates, kinds, offered, pattern)}; "
                "a pattern may use * and ?, and ! in front to leave matches out."
            )
    return tuple(
        each
        for each in offered
        if (not wanted or any(each.matches(pattern) for pattern in wanted))
        and not any(each.matches(pattern) for pattern in unwanted)
    )


def _offer(
    candidates: Sequence[_Candidate], kinds: Sequence[MatrixKind], offered: Sequence[_Candidate], pattern: str
) -> str:
    """What a pattern that matches nothing could have matched."""
    for each in candidates:
        if each.matches(pattern) and each.kind not in kinds:
            return f"{each.key} does, but is {each.kind}: add that to the kinds of matrices"
        if each.matches(pattern) and each.exactly:
            return f"{each.key} does, but has no bias and may be an embedding: name it exactly, as {each.key}"
    keys = ", ".join(each.key for each in offered)
    return f"The matrices are {keys}" if keys else f"There is no {' or '.join(kinds)} matrix"


def _passed_over(candidates: Sequence[_Candidate]) -> Iterator[str]:
    unnamed = [each.key for each in candidates if each.exactly and each.obstacle is None]
    if unnamed:
        yield (
            f"Left as they are, since without a bias they may be embeddings: {', '.join(unnamed)}. A layer pattern "
            "that is the exact name of one takes it as a linear layer."
        )
