"""Fine-tune a compressed checkpoint: choose network and task, train, write the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from btcompress.checkpoint import (
    Checkpoint,
    CompressedCheckpoint,
    LSTMEntry,
    check_target,
    read,
    read_compressed,
    write,
)
from btcompress.checkpoint.tensors import find_aliases
from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.blocks import balance, worst_cancellation
from btcompress.finetune.config import TrainConfig, Way
from btcompress.finetune.curves import Curves, check_curves
from btcompress.finetune.data import Batch, Data, open_data, split
from btcompress.finetune.loop import Epoch, OnEpoch, Trainer
from btcompress.finetune.networks import Network, Recurrent, RecurrentWithHead, choose_lstm, find_head, is_factorized
from btcompress.finetune.references import resolve
from btcompress.finetune.request import FineTuneRequest, identity
from btcompress.finetune.state import StateFolder
from btcompress.finetune.tasks import HiddenStates, Labels, OwnLoss, Task, label_kind
from btcompress.finetune.user import build_student, build_teacher
from btcompress.shapes import MatrixShape


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

    A user's ``model`` is trained as it is; else labels mean an LSTM with a linear head; else the LSTM learns
    to give the hidden states of the teacher's. Seeds the global generators of ``random``, NumPy and torch.

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
    check_target(request.output, force=force, inputs=request.inputs)
    folder = StateFolder(request.output, {})
    if not resume:
        folder.check_absent(force=force, inputs=request.inputs)
    if request.curves is not None:
        check_curves(request.curves, replace=force or resume)
    compressed = read_compressed(request.compressed)
    train, held = _open(request, config)
    dense = None if request.teacher is None else read(request.teacher, request.container)
    way, network, task = _network_and_task(request, config, compressed, dense, train, held)
    config = config.of_way(way)
    _freeze(network, config.freeze)
    balance(network)

    folder = replace(folder, identity=identity(request, config, dense))
    trainer = Trainer(network, task, train, held, config, loose=way == "own model")
    with _drawing(trainer, request.curves, on_epoch) as on_each:
        factorized, best = trainer.run(folder, on_each, resume=resume)
    network.load_state_dict(best.tensors)
    tensors = _as_stored(network, compressed)
    measured = {
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "dense": _dense_metric(trainer),
        "before": factorized,
        "after": trainer.measure(network),
    }
    step = {
        "step": "finetune",
        "way": way,
        **measured,
        "epochs": len(trainer.rows),
        "best_epoch": best.epoch,
        "n_train": len(train),
        "n_held": len(held),
        "cancellation": worst_cancellation(network),
        "config": asdict(config),
    }
    result = compressed.with_step(step, tensors)
    is_main = trainer.accelerator.is_main_process
    if is_main:
        write(result, request.output, force=force)
        folder.remove()
    trainer.accelerator.wait_for_everyone()
    return FineTuned(result, request.output, folder.metrics, request.curves, is_main)


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
    data = open_data(request.data, request.scale, request.folder)
    if request.held is None:
        return split(data, request.held_fraction, config.seed)
    return data, open_data(request.held, request.scale, request.folder)


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
        return "own model", *_own_model(request, request.model, config, compressed, dense, first)
    entry = choose_lstm(compressed, request.layer)
    _check_inputs(train, first, entry)
    if request.layer is None and first.y is not None:
        return "labels", *_labelled(config, compressed, dense, entry, first.y)
    if dense is None:
        raise BTCompressError(
            "without labels, an LSTM learns from the dense one. Give the dense checkpoint with --teacher, or labels y."
        )
    if not is_factorized(compressed, entry):
        raise BTCompressError(
            f"{entry.name or 'the LSTM'} has no block-term matrices, so it has nothing to learn from the dense one. "
            "Give labels y, or the whole model with --model."
        )
    teacher = Recurrent(entry, dense.tensors, {}, _dtype(compressed, entry))
    return "hidden states", _student(compressed, entry), HiddenStates(teacher)


def _own_model(
    request: FineTuneRequest,
    reference: str,
    config: TrainConfig,
    compressed: CompressedCheckpoint,
    dense: Checkpoint | None,
    first: Batch,
) -> tuple[Network, Task[Any]]:
    factory = resolve("--model", reference, request.folder)
    student = build_student(reference, factory, compressed)
    teacher = None if dense is None else build_teacher(reference, factory, dense, student)
    if request.loss is not None:
        return student, OwnLoss(resolve("--loss", request.loss, request.folder), teacher)
    if first.y is None:
        raise BTCompressError(f"{request.data} has no labels y, and no --loss is given. Give one of them.")
    return student, Labels(label_kind(first.y), teacher, config.temperature, config.distill)


def _labelled(
    config: TrainConfig, compressed: CompressedCheckpoint, dense: Checkpoint | None, entry: LSTMEntry, y: Tensor
) -> tuple[Network, Task[Any]]:
    head = find_head(compressed, entry)
    kind = label_kind(y)
    per_step = y.dim() == (2 if kind == "classes" else 3)
    recurrent = _student(compressed, entry)
    student = RecurrentWithHead(recurrent, head, compressed.tensors, _shapes(compressed), per_step=per_step)
    teacher = None
    if dense is not None:
        recurrent = Recurrent(entry, dense.tensors, {}, _dtype(compressed, entry))
        teacher = RecurrentWithHead(recurrent, head, dense.tensors, {}, per_step=per_step)
    return student, Labels(kind, teacher, config.temperature, config.distill)


def _student(compressed: CompressedCheckpoint, entry: LSTMEntry) -> Recurrent:
    return Recurrent(entry, compressed.tensors, _shapes(compressed), _dtype(compressed, entry))


def _shapes(compressed: CompressedCheckpoint) -> dict[str, MatrixShape]:
    return {key: matrix.shape for key, matrix in compressed.matrices.items()}


def _dtype(compressed: CompressedCheckpoint, entry: LSTMEntry) -> torch.dtype:
    """The dtype to train in: small ones would lose the small steps."""
    outline = compressed.outline()
    own = {outline[key].dtype for key in entry.recurrent_keys}
    return torch.float64 if own == {torch.float64} else torch.float32


def _check_inputs(data: Data, first: Batch, entry: LSTMEntry) -> None:
    if first.x.dim() != 3 or first.x.shape[2] != entry.input_size:
        raise ShapeError(
            f"{data.name}: x has sequences of shape {tuple(first.x.shape[1:])}, but {entry.name or 'the LSTM'} takes "
            f"(T, {entry.input_size}): {entry.input_size} inputs at each step. Give the inputs of this LSTM."
        )


def _check_alike(train: Data, first: Batch, held: Data, other: Batch, *, own_model: bool) -> None:
    """Refuse to measure on data of another kind than those trained on.

    Without lengths all steps count, so data with and without go together; but a user's network would be
    called in two ways.
    """

    def described(batch: Batch) -> str:
        y = "no y" if batch.y is None else f"y of {'values' if batch.y.is_floating_point() else 'classes'}"
        return f"{batch.x.shape[-1] if batch.x.dim() > 1 else 1} inputs and {y}"

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


def _freeze(network: Network, patterns: tuple[str, ...]) -> None:
    """Keep the tensors whose names in the file match as they are."""
    named = _parameters(network)
    for pattern in patterns:
        matched = [name for name in named if fnmatchcase(name, pattern)]
        if not matched:
            raise BTCompressError(f"--freeze {pattern!r} matches none of {', '.join(named)}.")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise BTCompressError("--freeze leaves nothing to train. Freeze less.")


def _parameters(network: Network) -> Mapping[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.file_tensors().items() if isinstance(tensor, nn.Parameter)}


def _as_stored(network: Network, compressed: CompressedCheckpoint) -> dict[str, Tensor]:
    """The network's tensors in the file's dtypes, to which the network itself is rounded as well."""
    live = network.file_tensors()
    aliases = find_aliases(live)
    stored: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in live.items():
            dtype = compressed.tensors[name].dtype
            stored[name] = stored[aliases[name]] if name in aliases else tensor.detach().cpu().to(dtype, copy=True)
            tensor.copy_(stored[name])
    return stored


def _dense_metric(trainer: Trainer) -> float | None:
    """The teacher's metric; 0 by definition where the teacher is the measure."""
    if isinstance(trainer.task, HiddenStates):
        return 0.0
    return None if trainer.task.teacher is None else trainer.measure(trainer.task.teacher)
