"""Fine-tune a compressed checkpoint: choose network and task, train, write the result."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btcompress import memory
from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    RecurrentEntry,
    check_plain,
    check_storable,
    read,
    read_compressed,
    write,
)
from btcompress.errors import BTCompressError, OutputError, ShapeError
from btcompress.finetune.blocks import balance, worst_cancellation
from btcompress.finetune.config import TrainConfig, Way
from btcompress.finetune.curves import Curves, check_curves
from btcompress.finetune.data import Batch, Data, open_data, split
from btcompress.finetune.decisions import agreement_of, agreement_on
from btcompress.finetune.epoch import Epoch, OnEpoch
from btcompress.finetune.loop import Trainer
from btcompress.finetune.networks import (
    Network,
    RecurrentWithHead,
    check_inputs,
    choose_lstm,
    find_head,
    freeze,
    is_compressed_in,
    named,
    shapes_of,
    stored_tensors,
    student_of,
    teacher_of,
    training_dtype,
)
from btcompress.finetune.processes import is_first
from btcompress.finetune.readback import check_same_outputs
from btcompress.finetune.references import resolve
from btcompress.finetune.request import FineTuneRequest, contents_digest, identity
from btcompress.finetune.state import StateFile
from btcompress.finetune.tasks import HiddenStates, Labels, OwnLoss, Task, TeacherOutputs, label_kind
from btcompress.finetune.user import build_student, build_teacher
from btcompress.results import LearningCurve

_OWN_NETWORK = (
    "Factorize the checkpoint without it (--layer '!NAME') and train your own network with --model, or train the dense "
    "form (btcompress export --to dense) in your own code."
)


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """A fine-tuned checkpoint, and where things lie.

    Attributes:
        compressed: the result; its last step says what was measured.
        output: its file.
        metrics: the metrics file.
        curves: the folder of curves for TensorBoard; None where none were asked for.
        is_main: this process wrote them; others of the same training did not.
    """

    compressed: CompressedCheckpoint
    output: Path
    metrics: Path
    curves: Path | None
    is_main: bool


def finetune(
    request: FineTuneRequest,
    config: TrainConfig = TrainConfig(),
    *,
    force: bool = False,
    resume: bool = False,
    on_epoch: OnEpoch | None = None,
) -> FineTuned:
    """Train a compressed checkpoint on and write the result, whole or not at all.

    A user's ``model`` is trained as it is, to give the teacher's outputs where there are neither labels nor a loss;
    else labels mean a recurrent layer with a linear head; else such a layer learns to give the hidden states of the
    teacher's. Seeds the global generators of ``random``, NumPy and torch.

    Args:
        request: what, on what, and where to.
        config: how.
        force: replace an existing result, and start over an interrupted training.
        resume: go on from the last complete epoch of an interrupted training.
        on_epoch: called after each epoch, in the main process.

    Raises:
        BTCompressError: files, data, network and options do not fit together, or training diverged.
        OutputError: the result cannot be written.
    """
    file = StateFile(request.output)
    _check_targets(request, file, force=force, resume=resume)
    with file.claimed() if is_first() else nullcontext():
        return _finetune(request, config, file, on_epoch, force=force, resume=resume)


def _finetune(
    request: FineTuneRequest,
    config: TrainConfig,
    file: StateFile,
    on_epoch: OnEpoch | None,
    *,
    force: bool,
    resume: bool,
) -> FineTuned:
    compressed = read_compressed(request.compressed)
    train, held = _open(request, config)
    dense = None if request.teacher is None else read(request.teacher, request.container, strict=request.strict)
    way, network, task = _network_and_task(request, config, compressed, dense, train, held)
    _check_targets(request, file, () if dense is None else dense.files, force=force, resume=resume)
    lstm = {"lstm": choose_lstm(compressed, request.layer).name} if way == "hidden states" else {}
    earlier = _trained_before(compressed, lstm.get("lstm"))
    error = None if earlier is None else _hidden_state_error(earlier)
    config = config.of_way(way, trained=earlier is not None, error=error)
    freeze(network, config.freeze)
    balance(network, [tensor for name, tensor in network.file_tensors().items() if name in compressed.stored])

    trainer = Trainer(
        network,
        task,
        train,
        held,
        config,
        stored=compressed.stored,
        cautious=way == "hidden states",
        loose=way == "own model",
    )
    file = replace(file, identity=identity(request, config, dense))
    if resume:
        file, saved = file.load(trainer.outline)
        finished = trainer.is_over(saved.rows, saved.before)
        if not (force or finished or _is_free(file)):
            raise OutputError(
                f"{request.output} already exists, and is not what lay there when the training began. Move it away, or "
                "replace it with --force beside --resume."
            )
    else:
        saved, file = None, replace(file, replaces=_digest_of(request.output))
    agreement = partial(_agreement, request, way, dense=dense, trainer=trainer)
    told = {
        "step": "finetune",
        "way": way,
        **lstm,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "dense": _dense_metric(trainer),
        "n_train": len(train),
        "n_held": len(held),
        "config": asdict(config),
        "agreement_before": agreement(compressed),
    }
    # What is measured at the end is a finite number each, as these are.
    unknown = {"before": 0.0, "after": 0.0, "epochs": 0, "best_epoch": 0, "cancellation": 0.0, "agreement_after": None}
    check_storable(compressed.with_step({**told, **unknown}))
    # A state beside the network, its gradients and what the optimizer keeps.
    memory.require(
        2 * trainer.state_size, f"Training {request.compressed}", "Train fewer tensors (--freeze), or elsewhere."
    )
    file.check_room(trainer.state_size, sum(tensor.nbytes for tensor in compressed.tensors.values()))
    with _drawing(trainer, request.curves, on_epoch) as on_each:
        before, best = trainer.run(file, on_each, saved=saved)
    stored = trainer.take(best)
    tensors = stored_tensors(network, compressed)
    result = compressed.with_tensors(tensors, stored)
    step = {
        **told,
        "before": before,
        "after": _finite(trainer.measure_any(network)),
        "epochs": len(trainer.rows),
        "best_epoch": best.epoch,
        "cancellation": worst_cancellation(network),
        "agreement_after": agreement(result),
        "learning_curves": [asdict(LearningCurve.of(before, (row.metric for row in trainer.rows)))],
    }
    result = result.with_step(step)
    is_main = trainer.accelerator.is_main_process
    if is_main:
        # What lies there may be this very result, where a kill came before the state was removed.
        check = partial(check_same_outputs, result)
        write(result, request.output, force=force or _is_free(file), again=resume, check=check)
        file.remove()
    trainer.accelerator.wait_for_everyone()
    return FineTuned(result, request.output, file.metrics, request.curves, is_main)


def _check_targets(
    request: FineTuneRequest, file: StateFile, more_inputs: Collection[Path] = (), *, force: bool, resume: bool
) -> None:
    """Refuse what cannot or may not be written; what is read is never written, whatever it is called there."""
    inputs = (*request.inputs, *more_inputs)
    file.check(force=force, resume=resume, inputs=inputs)
    if request.curves is not None:
        check_curves(request.curves, replace=force or resume, taken=(*inputs, *file.targets))


def _digest_of(output: Path) -> str | None:
    return contents_digest(output) if output.exists() else None


def _is_free(file: StateFile) -> bool:
    """Whether the place of the result holds nothing, or still what the training was begun with ``force`` to replace."""
    return _digest_of(file.output) in (None, file.replaces)


@contextmanager
def _drawing(trainer: Trainer, folder: Path | None, on_epoch: OnEpoch | None) -> Iterator[OnEpoch | None]:
    """What to call after each epoch, so that the main process draws curves too; whole once the training is."""
    if folder is None or not trainer.accelerator.is_main_process:
        yield on_epoch
        return
    curves = Curves(folder)

    def on_each(epoch: Epoch) -> None:
        curves.write(trainer.rows)
        if on_epoch is not None:
            on_epoch(epoch)

    try:
        yield on_each
        curves.write(trainer.rows)
    finally:
        curves.close()


def _open(request: FineTuneRequest, config: TrainConfig) -> tuple[Data, Data]:
    data = open_data(request.data, request.scale, request.folder, layer=request.layer)
    if request.held is None:
        return split(data, request.held_fraction, config.seed)
    return data, open_data(request.held, request.scale, request.folder, layer=request.layer)


def _network_and_task(
    request: FineTuneRequest,
    config: TrainConfig,
    compressed: CompressedCheckpoint,
    dense: Checkpoint | None,
    train: Data,
    held: Data,
) -> tuple[Way, Network, Task[Any]]:
    first, other = (data.batch(torch.tensor([0])) for data in (train, held))
    _check_alike(train, first, held, other, own_model=request.model is not None)
    if request.loss is not None and request.model is None:
        raise BTCompressError("--loss is for a network of your own. Name it with --model.")
    if request.model is not None:
        some = train.batch(torch.arange(min(len(train), config.batch_size)))
        return "own model", *_own_model(request, request.model, config, compressed, dense, some)
    entry = choose_lstm(compressed, request.layer)
    check_plain(entry, "training without a network of your own", _OWN_NETWORK)
    check_inputs(train, first, entry)
    if request.layer is None and first.y is not None:
        return "labels", *_labelled(config, compressed, dense, entry, first.y)
    if dense is None:
        raise BTCompressError(
            f"without labels, {named(entry)} learns from the dense one. Give the dense checkpoint with "
            "--teacher, or labels y."
        )
    if not is_compressed_in(compressed, entry):
        raise BTCompressError(
            f"{named(entry)} has no compressed matrices, so it has nothing to learn from the dense one. "
            "Give labels y, or the whole model with --model."
        )
    teacher = teacher_of(dense, entry, training_dtype(compressed.outline(), entry))
    return "hidden states", student_of(compressed, entry), HiddenStates(teacher)


def _own_model(
    request: FineTuneRequest,
    reference: str,
    config: TrainConfig,
    compressed: CompressedCheckpoint,
    dense: Checkpoint | None,
    some: Batch,
) -> tuple[Network, Task[Any]]:
    factory = resolve("--model", reference, request.folder)
    student = build_student(reference, factory, compressed)
    teacher = None if dense is None else build_teacher(reference, factory, dense, student)
    if request.loss is not None:
        return student, OwnLoss(resolve("--loss", request.loss, request.folder), teacher)
    if some.y is not None:
        return student, Labels(label_kind(some.y), teacher, config.temperature, config.distill)
    if teacher is None:
        raise BTCompressError(
            f"{request.data} has no labels y, and no --loss is given. Give one of them, or the dense checkpoint with "
            "--teacher, to learn to give its outputs."
        )
    return student, TeacherOutputs(teacher, some.to(torch.device("cpu"), next(student.parameters()).dtype))


def _labelled(
    config: TrainConfig, compressed: CompressedCheckpoint, dense: Checkpoint | None, entry: RecurrentEntry, y: Tensor
) -> tuple[Network, Task[Any]]:
    head = find_head(compressed, entry)
    kind = label_kind(y)
    per_step = y.dim() == (2 if kind == "classes" else 3)
    recurrent = student_of(compressed, entry)
    student = RecurrentWithHead(recurrent, head, compressed.tensors, shapes_of(compressed), per_step=per_step)
    teacher = None
    if dense is not None:
        recurrent = teacher_of(dense, entry, training_dtype(compressed.outline(), entry))
        teacher = RecurrentWithHead(recurrent, head, dense.tensors, {}, per_step=per_step)
    return student, Labels(kind, teacher, config.temperature, config.distill)


def _check_alike(train: Data, first: Batch, held: Data, other: Batch, *, own_model: bool) -> None:
    """Refuse to measure on data of another kind than those trained on.

    Without lengths all steps count, so data with and without go together; but a user's network would be
    called in two ways.
    """

    def described(batch: Batch) -> str:
        y = "no y" if batch.y is None else f"y of {'values' if batch.y.is_floating_point() else 'classes'}"
        states = "" if batch.state is None else " and initial states"
        return f"{batch.x.shape[-1] if batch.x.dim() > 1 else 1} inputs and {y}{states}"

    if described(first) != described(other):
        raise ShapeError(
            f"{train.name} has {described(first)}, but {held.name}, to measure on, has {described(other)}. "
            "Give data of one kind."
        )
    if own_model and (first.lengths is None) != (other.lengths is None):
        with_them, without = (train.name, held.name) if other.lengths is None else (held.name, train.name)
        raise BTCompressError(
            f"{with_them} has lengths and {without} has none, so the network would be called with lengths on one and "
            "without on the other. Give both lengths, or neither; the number of steps where all count."
        )


def _trained_before(compressed: CompressedCheckpoint, lstm: str | None) -> dict[str, Any] | None:
    """The last step that calibrated or fine-tuned since the file was factorized; this layer, where one is named."""
    for step in reversed(compressed.history):
        if step.get("step") == "factorize":
            break
        if step.get("step") in ("calibrate", "finetune") and (lstm is None or step.get("lstm", lstm) == lstm):
            return step
    return None


def _hidden_state_error(step: Mapping[str, Any]) -> float | None:
    """The one that a step ended at; None where it measured something else."""
    if step.get("metric") == HiddenStates.metric:
        return float(step["after"])
    return step.get("hidden_state_error_after")


def _finite(metric: float) -> float:
    """A metric as the record can hold it: the largest number for one that is none."""
    return metric if math.isfinite(metric) else sys.float_info.max


def _dense_metric(trainer: Trainer) -> float | None:
    """The teacher's metric; 0 by definition where the teacher is the measure."""
    if isinstance(trainer.task, HiddenStates | TeacherOutputs):
        return 0.0
    return None if trainer.task.teacher is None else trainer.measure(trainer.task.teacher)


def _agreement(
    request: FineTuneRequest, way: Way, now: CompressedCheckpoint, *, dense: Checkpoint | None, trainer: Trainer
) -> dict[str, Any] | None:
    """How often decisions agree with the dense model's on the sequences held back, as the record has it.

    Args:
        request: what is trained.
        way: how.
        now: the tensors that the network of the trainer has.
        dense: the teacher's checkpoint.
        trainer: holds networks and sequences.

    Returns:
        None where there is no teacher, or nothing that is known to decide.
    """
    held, batch_size = trainer.held, trainer.config.batch_size
    if dense is None or trainer.task.teacher is None:
        return None
    if way == "hidden states":
        found = agreement_on(now, dense, choose_lstm(now, request.layer), held, batch_size)
    else:
        found = agreement_of(trainer.network, trainer.task.teacher, held, batch_size, trainer.device, trainer.dtype)
    return None if found is None else asdict(found)
