"""Sequences out of calls: one that starts from the very state in which an earlier one ended goes on with it."""

from __future__ import annotations

from collections import OrderedDict, deque
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btcompress.nn.celltype import State
from btcompress.recorder.calls import Call
from btcompress.recorder.sample import Sample, SequenceRecord, StateArrays

#: Sequences of a layer that may still go on, if a call does not have more; the oldest end first.
_MOST_OPEN = 4096


class Streams:
    """Makes sequences of the calls of one layer.

    Args:
        sample: takes them.
        steps: a sequence that has so many is not continued; what would have gone on begins a new one.
    """

    def __init__(self, sample: Sample, steps: int) -> None:
        self._sample, self._steps = sample, steps
        self._open: OrderedDict[bytes, deque[SequenceRecord]] = OrderedDict()
        self._n_open = 0

    def take(self, call: Call) -> None:
        """The sequences of one call."""
        if not call.x.numel():
            return
        starts = _states_of(call.start, len(call.x))
        sequences = [self._continued(state) or self._sample.begin(state) for state in starts]
        lengths = call.lengths or (call.x.shape[1],) * len(sequences)
        x = as_array(call.x) if any(sequence.kept is not None for sequence in sequences) else None
        for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
            self._sample.extend(sequence, None if x is None else x[row, :length], length)
        for sequence, state in zip(sequences, _states_of(call.end, len(call.x)), strict=True):
            if state is not None and sequence.n_steps < self._steps:
                self._open.setdefault(_key(state), deque()).append(sequence)
                self._n_open += 1
            else:
                self._sample.settle(sequence)
        self._end_oldest(max(_MOST_OPEN, 2 * len(sequences)))

    def finish(self) -> None:
        """End all sequences."""
        self._end_oldest(0)

    def _continued(self, state: StateArrays | None) -> SequenceRecord | None:
        """The sequence that ended in this state, if there is one."""
        key = None if state is None else _key(state)
        if key is None or key not in self._open:
            return None
        waiting = self._open[key]
        sequence = waiting.popleft()
        self._n_open -= 1
        if not waiting:
            del self._open[key]
        return sequence

    def _end_oldest(self, most: int) -> None:
        while self._n_open > most:
            _, sequences = self._open.popitem(last=False)
            self._n_open -= len(sequences)
            for sequence in sequences:
                self._sample.settle(sequence)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor on the CPU, of its own dtype if NumPy has it, or of float32."""
    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _states_of(state: State | None, n_sequences: int) -> list[StateArrays | None]:
    """The state of each sequence, shapes ``(directions * L, H)``; None for zeros."""
    if state is None:
        return [None] * n_sequences
    arrays = [as_array(each).swapaxes(0, 1) for each in state]
    rows = (tuple(each[row] for each in arrays) for row in range(n_sequences))
    return [own if any(each.any() for each in own) else None for own in rows]


def _key(state: StateArrays) -> bytes:
    """The same for states of the same numbers, in whichever dtype they are."""
    return blake2b(b"".join(_bytes(each) for each in state), digest_size=16).digest()


def _bytes(values: NDArray[Any]) -> bytes:
    wide = np.float64 if values.dtype == np.float64 else np.float32
    return np.ascontiguousarray(values, wide).tobytes()
