"""Fine-tune a compressed checkpoint: choose network and task, train, write the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

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
from btcompress.checkpoint.source import digest
from btcompress.checkpoint.tensors import find_aliases
from btcompress.errors import BTCompressError, ShapeError
from btcompress.finetune.blocks import balance, worst_cancellation
from btcompress.finetune.config import TrainConfig
from btcompress.finetune.data import Batch, Data, open_data, split
from btcompress.finetune.loop import OnEpoch, Trainer
from btcompress.finetune.networks import Network, Recurrent, RecurrentWithHead, choose_lstm, find_head, is_factorized
from btcompress.finetune.references import resolve
from btcompress.finetune.state import StateFolder
from btcompress.finetune.tasks import HiddenStates, Labels, OwnLoss, Task, label_kind
from btcompress.finetune.user import build_student, build_teacher
from btcompress.shapes import MatrixShape

Way = Literal["hidden states", "labels", "own model"]


@dataclass(frozen=True, slots=True)
class FineTuneRequest:
    """What to fine-tune, on what, and where to write it.

    Attributes:
        compressed: the result file to start from.
        data: sequences to train on: a file, or ``package.module:factory``.
        output: the result file to write.
        teacher: the dense checkpoint.
        layer: name of the LSTM that the sequences are inputs of; trains that LSTM alone.
        held: sequences to measure on; taken from ``data`` when left out.
        held_fraction: share of ``data`` that is then held back.
        scale: what to multiply the inputs of files by.
        model: ``package.module:factory`` of the user's network.
        loss: ``package.module:function`` of ``(outputs, y)``.
        folder: where user code is looked for first.
        container: which state dict of the teacher's file.
    """

    compressed: Path
    data: str
    output: Path
    teacher: Path | None = None
    layer: str | None = None
    held: str | None = None
    held_fraction: float = 0.1
    scale: float = 1.0
    model: str | None = None
    loss: str | None = None
    folder: Path | None = None
    container: str | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read, and never overwritten."""
        named = (self.data, *(() if self.held is None else (self.held,)))
        return (self.compressed, *(() if self.teacher is None else (self.teacher,)), *map(Path, named))


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """A fine-tuned checkpoint, and where things lie.

    Attributes:
        compressed: the result; its last step says what was measured.
        output: its file.
        metrics: the metrics file.
        is_main: this process wrote them; others of the same training did not.
    """

    compressed: CompressedCheckpoint
    output: Path
    metrics: Path
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
    compressed = read_compressed(request.compressed)
    folder = StateFolder(request.output, _identity(request, config))
    if not resume:
        folder.check_absent(force=force)
    train, held = _open(request, config)
    dense = None if request.teacher is None else read(request.teacher, request.container)
    way, network, task = _network_and_task(request, config, compressed, dense, train, held)
    _freeze(network, config.freeze)
    balance(network)

    trainer = Trainer(network, task, train, held, config, loose=way == "own model")
    factorized, best = trainer.run(folder, on_epoch, resume=resume)
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
    return FineTuned(result, request.output, folder.metrics, is_main)


def _identity(request: FineTuneRequest, config: TrainConfig) -> dict[str, Any]:
    """What a state must agree on to be gone on with."""
    files = {name: getattr(request, name) for name in ("compressed", "teacher")}
    digests = {name: digest([path]) for name, path in files.items() if path is not None and path.is_file()}
    named = ("data", "layer", "held", "held_fraction", "scale", "model", "loss", "container")
    return {**asdict(config), **{name: getattr(request, name) for name in named}, **digests}


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
    _check_alike(train, first, held, other)
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


def _check_alike(train: Data, first: Batch, held: Data, other: Batch) -> None:
    """Refuse to measure on data of another kind than those trained on."""

    def described(batch: Batch) -> str:
        y = "no y" if batch.y is None else f"y of {'values' if batch.y.is_floating_point() else 'classes'}"
        return f"{batch.x.shape[-1] if batch.x.dim() > 1 else 1} inputs and {y}"

    if described(first) != described(other):
        raise ShapeError(
            f"{train.name} has {described(first)}, but {held.name}, to measure on, has {described(other)}. "
            "Give data of one kind."
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
