"""A recorded file: a ``.npz`` with the arrays of each layer, written one sequence after another."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btcompress.checkpoint.atomic import replacing
from btcompress.finetune.items import STATES
from btcompress.finetune.recorded import MARK, array_name
from btcompress.recorder.sample import Sample
from btcompress.recorder.spool import Piece, Spool


def write(path: Path, samples: Mapping[str, Sample], spool: Spool) -> None:
    """Write what was kept of each layer, whole or not at all; the same samples give the same bytes.

    Args:
        path: the file.
        samples: of layers that have at least one sequence, by name.
        spool: where the steps are.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, sample in samples.items():
            for array in _arrays(sample, spool):
                _write_member(archive, array_name(name, array.part), array)


@dataclass(frozen=True, slots=True, eq=False)
class _Array:
    """An array of a layer.

    Attributes:
        part: which one.
        shape: of the whole.
        dtype: of its numbers.
        rows: what it consists of, one after another.
    """

    part: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: Iterable[NDArray[Any]]


def _arrays(sample: Sample, spool: Spool) -> Iterator[_Array]:
    sequences = sample.sequences
    kept = [sequence.kept for sequence in sequences if sequence.kept is not None]
    lengths = np.array([sequence.n_steps for sequence in sequences])
    pieces = [piece for each in kept for piece in each.pieces]
    n_inputs = pieces[0].shape[-1]
    yield _Array("x", (int(lengths.sum()), n_inputs), _widest(pieces), map(spool.read, pieces))
    yield _Array("lengths", lengths.shape, lengths.dtype, [lengths])
    if sample.state_shapes is not None:
        for position, (part, shape) in enumerate(zip(STATES, sample.state_shapes, strict=False)):
            states = [None if each.state is None else each.state[position] for each in kept]
            rows = (np.zeros(shape) if state is None else spool.read(state) for state in states)
            yield _Array(part, (len(kept), *shape), _widest(states), rows)
    mark = np.array(sample.state_shapes is not None)
    yield _Array(MARK, mark.shape, mark.dtype, [mark])


def _widest(pieces: Iterable[Piece | None]) -> np.dtype[Any]:
    dtypes = {piece.dtype for piece in pieces if piece is not None}
    return np.result_type(*dtypes) if dtypes else np.dtype(np.float32)


def _write_member(archive: zipfile.ZipFile, name: str, array: _Array) -> None:
    # A member that says nothing of when it was written: the same samples give the same bytes.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for rows in array.rows:
            file.write(rows.astype(array.dtype).tobytes())
