"""Calibrate a compressed checkpoint: let its layers give what the dense ones give on sample inputs.

The weights of a trained matrix count as much as the inputs that meet them, and its errors as much as the recurrence
lets them grow; only the hidden states say both. So each matrix is fitted to its inputs first, as its outputs count for
the hidden states. What is to be stored in fewer bits is then rounded, its errors fed back. Then the matrices of each
recurrent layer with sample inputs, and with them all else that it has, are trained, through the rounding, for a short
while to give the dense one's hidden states. Linear layers are fitted to their inputs and rounded alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from btcompress.calibration.inputs import dtype_of
from btcompress.calibration.linear import linear_jobs
from btcompress.calibration.progress import Job, OnProgress, Tell, do_jobs
from btcompress.calibration.recurrent import RecurrentCalibration, work_of_run
from btcompress.calibration.request import CalibrationRequest
from btcompress.calibration.rounding import weighed_anew
from btcompress.calibration.sampling import samples_of
from btcompress.calibration.sources import Source, sources_of
from btcompress.checkpoint import Checkpoint, CompressedCheckpoint, RecurrentEntry
from btcompress.errors import BTCompressError
from btcompress.finetune import TrainConfig
from btcompress.fit import Samples
from btcompress.packing import Precision

#: The learning rate follows where the fit to the inputs stands.
DEFAULT = TrainConfig(epochs=10)
#: Sequences in a step where training goes through a rounding: many small steps change codes better than few, and LSTMs
#: of usual sizes take hardly longer for them; see docs/math.md.
BATCH_IN_FEW_BITS = 8


def gather_samples(
    dense: Checkpoint,
    request: CalibrationRequest,
    seed: int = 0,
    keys: Collection[str] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Samples]:
    """Samples of the inputs of dense matrices, by their keys, to plan with before anything is factorized.

    Args:
        dense: holds the layers.
        request: on what; what it says of training does not matter.
        seed: that of the calibration to follow.
        keys: of the matrices asked for; all of them where left out.
        on_progress: called as the layers run over their inputs.

    Raises:
        BTCompressError: the inputs are not those of layers of the file, or one of the matrices meets only zeros.
        MemoryLimitError: the samples would take more memory than there is.
    """
    return _gathered(sources_of(dense, request.inputs, keys), dense, request, seed, keys, on_progress)


def calibrate(
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    request: CalibrationRequest,
    config: TrainConfig = DEFAULT,
    on_progress: OnProgress | None = None,
    samples: Mapping[str, Samples] | None = None,
    precisions: Mapping[str, Precision] | None = None,
) -> CompressedCheckpoint:
    """Fit matrices to their inputs, then train each recurrent layer that has any to give the dense one's hidden states.

    What is to be stored in fewer bits is rounded in between, and the training goes on through the rounding; so it does
    through that of what is stored in fewer bits already, which is not fitted anew.

    No labels are needed. The other tensors of such a layer, ``U`` and the biases, change along, unless
    ``config.freeze`` names them. The best state on the sequences held back is kept, the start included. Layers without
    sample inputs stay as they are. Seeds the global generators of ``random``, NumPy and torch.

    Args:
        compressed: a factorized checkpoint.
        dense: what it was factorized from.
        request: on what.
        config: how to train; ``epochs`` are those over all layers of an entry together, and each layer on its own has
            half as many. Without a learning rate it is that of :func:`btcompress.finetune.config.rate_from`.
        on_progress: called as each part of it goes on.
        samples: what :func:`gather_samples` gave for the same request and seed; gathered anew where left out.
        precisions: how the numbers of matrices are to be stored, by key: of those with block terms, and of others,
            which stay dense and are rounded. A matrix that no inputs are for stays as it is.

    Returns:
        The checkpoint with the tensors that changed, its weight errors measured anew, and for each layer a step that
        says what was measured on the sequences held back.

    Raises:
        BTCompressError: the inputs are not those of layers with chosen matrices, one of the matrices meets only zeros
            or cannot be rounded, or training diverged.
        CheckpointError: the dense checkpoint does not fit.
    """
    precisions = precisions or {}
    chosen = {*compressed.chosen, *precisions}
    every = sources_of(compressed, request.inputs, chosen)
    sources = [source for source in every if source.chosen(chosen)]
    passed_over = [source.name for source in every if source not in sources]
    if not sources:
        raise BTCompressError(
            f"{', '.join(passed_over)} has no compressed matrices to calibrate. Give the inputs of other layers, or "
            "choose some of its matrices."
        )
    if samples is None:
        samples = _gathered(every, dense, request, config.seed, chosen, on_progress)
    jobs = [job for source in sources for job in _jobs(source, compressed, dense, samples, request, config, precisions)]
    notices = [f"{name} has sample inputs, but no compressed matrices: it was not calibrated." for name in passed_over]
    started = replace(compressed, notices=(*compressed.notices, *notices))
    return weighed_anew(_under_all_names(do_jobs(jobs, started, on_progress), sources), dense)


def _gathered(
    sources: Sequence[Source],
    dense: Checkpoint,
    request: CalibrationRequest,
    seed: int,
    keys: Collection[str] | None,
    on_progress: OnProgress | None,
) -> dict[str, Samples]:
    jobs = [_gathering(source, dense, request, seed, keys) for source in sources]
    return _not_zero(do_jobs(jobs, {}, on_progress))


def _under_all_names(compressed: CompressedCheckpoint, sources: Sequence[Source]) -> CompressedCheckpoint:
    """With what is said of matrices that were rounded said of them under each of their names."""
    rounded = {
        name: compressed.rounded[key]
        for source in sources
        for key in source.keys
        if key in compressed.rounded
        for name in source.aliases(key)
    }
    return compressed.with_tensors(rounded=rounded)


def _gathering(
    source: Source, dense: Checkpoint, request: CalibrationRequest, seed: int, keys: Collection[str] | None
) -> Job[dict[str, Samples]]:
    train, held = source.split(request, seed)
    dtype = dtype_of(source.entry, dense.tensors)

    def do(found: dict[str, Samples], tell: Tell) -> dict[str, Samples]:
        names = {key: [name for name in source.aliases(key) if keys is None or name in keys] for key in source.keys}
        asked = [key for key, own in names.items() if own]
        given = samples_of(dense, source.entry, train, held, dtype, head=source.head, keys=asked, seed=seed, tell=tell)
        return found | {name: samples for key, samples in given.items() for name in names[key]}

    work = work_of_run(source.entry, source.data) if isinstance(source.entry, RecurrentEntry) else 1.0
    return Job(f"running the dense {source.entry.name or 'layer'} over {source.data.name}", work, do)


def _jobs(
    source: Source,
    compressed: CompressedCheckpoint,
    dense: Checkpoint,
    samples: Mapping[str, Samples],
    request: CalibrationRequest,
    config: TrainConfig,
    precisions: Mapping[str, Precision],
) -> Iterator[Job[CompressedCheckpoint]]:
    train, held = source.split(request, config.seed)
    # What a layer under several names has, and how it is stored, may be said of any of them.
    names = {key: source.aliases(key) for key in source.chosen({*compressed.chosen, *precisions})}
    own = {key: samples[name] for key, every in names.items() for name in every if name in samples}
    bits = {
        key: precisions[name]
        for key in own
        for name in names[key]
        if name in precisions and not compressed.has_fewer_bits(key)
    }
    if isinstance(source.entry, RecurrentEntry):
        calibration = RecurrentCalibration(source.entry, source.head, train, held, dense, own, config, bits)
        own_matrices = any(key in names for key in source.entry.matrix_keys)
        yield from calibration.jobs(compressed, train=request.train and own_matrices)
    else:
        key = source.entry.key
        yield from linear_jobs(source.entry, train, held, compressed, dense, own[key], bits.get(key))


def _not_zero(samples: dict[str, Samples]) -> dict[str, Samples]:
    """The samples, if each matrix meets something else than zeros: those any form at all would fit."""
    without = [key for key, sample in samples.items() if not sample.inputs.any()]
    if without:
        raise BTCompressError(
            f"{', '.join(without)}: all inputs on the sequences are zero, so nothing can be fitted to them. Give the "
            "inputs that the model gets, scaled as it gets them (--scale) and in sequences of several steps, or leave "
            "such a matrix as it is (--layer '!NAME')."
        )
    return samples
