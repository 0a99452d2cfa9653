"""Fit one linear layer to its inputs, and round it."""

from __future__ import annotations

from collections.abc import Iterator

from btcompress.calibration.errors import activation_errors, errors_fields
from btcompress.calibration.progress import Job, silent
from btcompress.calibration.refit import fit_job
from btcompress.calibration.rounding import rounding_job, with_rounded
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, LinearEntry
from btcompress.finetune.data import Data
from btcompress.fit import Samples
from btcompress.packing import Precision


def linear_jobs(
    entry: LinearEntry,
    train: Data,
    held: Data,
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    samples: Samples,
    precision: Precision | None = None,
) -> Iterator[Job[CompressedCheckpoint]]:
    """The fit, and a step that says what it brought on the inputs held back.

    Args:
        entry: the layer.
        train: inputs that it is fitted to.
        held: those to measure on.
        compressed: holds its form.
        dense: holds the matrix.
        samples: of the inputs.
        precision: in which its numbers are to be stored; None for how they are.
    """
    key = entry.key
    before = compressed if precision is None else with_rounded(compressed, key, dense, precision)

    def measured(fitted: CompressedCheckpoint) -> CompressedCheckpoint:
        versions = {"_before": before, "": fitted}
        weights = {key: samples.weights}
        errors = activation_errors(list(versions.values()), dense, entry, held, weights)
        step = {
            "step": "refit",
            "layer": entry.name,
            **errors_fields(dict(zip(versions, errors, strict=True))),
            "n_train": len(train),
            "n_held": len(held),
        }
        return fitted.with_step(step)

    if key in compressed.matrices and not compressed.has_fewer_bits(key):
        yield fit_job(compressed, key, dense, samples)
    if precision is not None:
        yield rounding_job(key, dense, precision, samples)
    yield Job(f"measuring {entry.name or 'the linear layer'}", float(len(held)), silent(measured))
