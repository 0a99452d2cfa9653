"""Which sequences of a layer are kept: a sample in which each of those that began has the same chance."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btcompress.recorder.spool import Piece, Spool

Array = NDArray[Any]
#: Initial ``h``, and ``c`` of an LSTM, of one sequence, shapes ``(directions * L, H)``; ``h`` may be projected.
StateArrays = tuple[Array, ...]
#: Steps that wait in memory take at most so many bytes for each sequence that may go on.
_MOST_WAITING = 1 << 14


@dataclass(slots=True, eq=False)
class Kept:
    """What is kept of one sequence.

    Attributes:
        state: the initial one; None for zeros.
        pieces: its steps, shapes ``(n, I)``.
        waiting: steps that are not on disk yet.
        n_waiting: bytes of them.
    """

    state: tuple[Piece, ...] | None
    pieces: list[Piece] = field(default_factory=list)
    waiting: list[Array] = field(default_factory=list)
    n_waiting: int = 0


@dataclass(slots=True, eq=False)
class SequenceRecord:
    """One sequence of a layer.

    Attributes:
        number: how many began before it.
        n_steps: how many it has so far.
        kept: what is kept of it; None for one that is only counted.
    """

    number: int
    n_steps: int = 0
    kept: Kept | None = None


class Sample:
    """At most so many sequences of one layer, each of those that began with the same chance, chosen as they begin.

    Args:
        spool: where their steps are kept.
        most: how many.
        name: of the layer.
        seed: of the draws, with the name.
    """

    def __init__(self, spool: Spool, most: int, name: str, seed: int) -> None:
        self._spool, self._most = spool, most
        self._draws = random.Random(f"{seed} {name}")  # noqa: S311 - a sample, not a secret
        self._chosen: list[SequenceRecord] = []
        self.n_begun = 0
        #: Shapes of what a state consists of where a sequence began from one that is not zero; None where none did.
        self.state_shapes: tuple[tuple[int, ...], ...] | None = None

    @property
    def sequences(self) -> list[SequenceRecord]:
        """Those that are kept, in the order in which they began."""
        return sorted(self._chosen, key=lambda sequence: sequence.number)

    def begin(self, state: StateArrays | None) -> SequenceRecord:
        """A new sequence, which may take the place of another.

        Args:
            state: that it starts from; None for zeros.
        """
        sequence = SequenceRecord(self.n_begun)
        self.n_begun += 1
        if state is not None:
            self.state_shapes = tuple(each.shape for each in state)
        place = len(self._chosen) if len(self._chosen) < self._most else self._draws.randrange(self.n_begun)
        if place >= self._most:
            return sequence
        kept = None if state is None else tuple(map(self._spool.add, state))
        sequence.kept = Kept(kept)
        if place == len(self._chosen):
            self._chosen.append(sequence)
        else:
            self._forget(self._chosen[place])
            self._chosen[place] = sequence
        return sequence

    def extend(self, sequence: SequenceRecord, steps: Array | None, n_steps: int) -> None:
        """Append steps to a sequence.

        Args:
            sequence: that goes on.
            steps: shape ``(n_steps, I)``; not needed for one that is only counted.
            n_steps: how many.
        """
        sequence.n_steps += n_steps
        if sequence.kept is None or steps is None:
            return
        sequence.kept.waiting.append(steps.copy())
        sequence.kept.n_waiting += steps.nbytes
        if sequence.kept.n_waiting > _MOST_WAITING:
            self.settle(sequence)

    def settle(self, sequence: SequenceRecord) -> None:
        """Put what waits in memory on disk."""
        kept = sequence.kept
        if kept is not None and kept.waiting:
            kept.pieces.append(self._spool.add(np.concatenate(kept.waiting)))
            kept.waiting, kept.n_waiting = [], 0

    def _forget(self, sequence: SequenceRecord) -> None:
        """Only count a sequence from now on."""
        kept, sequence.kept = sequence.kept, None
        if kept is not None:
            for piece in (*kept.pieces, *(kept.state or ())):
                self._spool.remove(piece)
