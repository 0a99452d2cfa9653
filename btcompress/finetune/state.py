"""The last complete state of a training, in one file that is whole or absent and of which nothing is ever run.

It is a ``.safetensors``: the tensors of the network, of the best one so far and of the optimizer, what those in fewer
bits are rounded from, and under a mark of its own in the header what else there is, sealed by a digest of it all. What
follows from the settings is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from btcompress.checkpoint import check_target, claimed, replacing
from btcompress.checkpoint.safetensorsfiles import read_tensors, write_tensors
from btcompress.checkpoint.tensors import byte_chunks, plain_tensor
from btcompress.errors import BTCompressError, CheckpointError, OutputError
from btcompress.finetune.epoch import Epoch
from btcompress.memory import size_text

#: The key in the header that makes a file ours, and how every such file begins behind the length of its header.
_MARK = "btcompress-training-state"
_BEGINNING = f'{{"__metadata__":{{"{_MARK}":'.encode()
_LENGTH_SIZE = 8
_VERSION = 2

#: What AdamW keeps of each parameter: how many steps it took, and two means of its shape.
_STEPS, _MEANS = "step", ("exp_avg", "exp_avg_sq")
#: What the names of a state's tensors begin with.
_PARTS = ("network", "best", "optimizer", "moved", "best_moved")
#: Digits of a value at most, where messages tell it.
_MOST_TOLD = 60


class Scaler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What mixed precision has learned of its loss scale.

    Attributes:
        scale: factor on the loss.
        growth: steps since it last changed.
    """

    scale: Annotated[float, Meta(gt=0)]
    growth: Annotated[int, Meta(ge=0)]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    identity: dict[str, Any]
    rows: list[Epoch]
    before: float
    scaler: Scaler | None
    replaces: str | None


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    record: msgspec.Raw


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """Where a training stands after an epoch.

    Attributes:
        rows: one for each epoch done.
        before: the metric before training.
        network: the network's tensors.
        best: those of the best state so far.
        optimizer: what the optimizer keeps of each parameter that has had a gradient, by the parameter's number.
        scaler: of mixed precision; None where there is none.
        moved: what the network's tensors in fewer bits are rounded from.
        best_moved: likewise, of the best state so far.
    """

    rows: Sequence[Epoch]
    before: float
    network: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    scaler: Scaler | None = None
    moved: Mapping[str, Tensor] = field(default_factory=dict)
    best_moved: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names that they have in the file."""
        moments = {f"{i}.{name}": value for i, own in self.optimizer.items() for name, value in own.items()}
        parts = {"network": self.network, "best": self.best, "optimizer": moments}
        parts |= {"moved": self.moved, "best_moved": self.best_moved}
        return {f"{part}.{name}": value for part, own in parts.items() for name, value in own.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """What a state must look like to be that of a training.

    Attributes:
        network: the network's tensors, of which only shapes and dtypes count.
        trained: its parameters in the order of the optimizer.
        epochs: how many there are at most.
        steps: of the optimizer in each.
        moved: what tensors in fewer bits are rounded from; likewise.
    """

    network: Mapping[str, Tensor]
    trained: Sequence[Tensor]
    epochs: int
    steps: int
    moved: Mapping[str, Tensor] = field(default_factory=dict)

    def fits(self, rows: Sequence[Epoch], tensors: Mapping[str, Tensor]) -> bool:
        """Whether rows and tensors are such as this training would have kept."""
        counted = len(rows) <= self.epochs and all(
            number == row.epoch <= row.epochs <= self.epochs for number, row in enumerate(rows, 1)
        )
        network = {f"{part}.{name}": value for part in ("network", "best") for name, value in self.network.items()}
        network |= {f"{part}.{name}": value for part in ("moved", "best_moved") for name, value in self.moved.items()}
        moments: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.trained):
            if any(f"optimizer.{i}.{name}" in tensors for name in (_STEPS, *_MEANS)):
                moments |= {f"optimizer.{i}.{name}": parameter for name in _MEANS}
                moments[f"optimizer.{i}.{_STEPS}"] = torch.zeros(())
        expected = {**network, **moments}
        return (
            counted
            and tensors.keys() == expected.keys()
            and all(_kind(tensors[name]) == _kind(value) for name, value in expected.items())
            and all(
                1 <= float(value) <= len(rows) * self.steps
                for name, value in tensors.items()
                if name in moments and name.endswith(f".{_STEPS}")
            )
        )


@dataclass(frozen=True, slots=True)
class StateFile:
    """Where a training keeps its state beside its result, until the result is written.

    Attributes:
        output: the result file.
        identity: settings and inputs as JSON knows them; a state of other ones is never gone on with.
        replaces: digest of an older file in the place of the result, which may be replaced; None for no file.
    """

    output: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    replaces: str | None = None

    @property
    def path(self) -> Path:
        """The file of the state."""
        return self.output.with_name(f"{self.output.name}.state")

    @property
    def metrics(self) -> Path:
        """The metrics file: one JSON object a line, one line an epoch."""
        return self.output.with_name(f"{self.output.name.removesuffix('.safetensors')}.metrics.jsonl")

    @property
    def targets(self) -> tuple[Path, Path, Path]:
        """All files that a training writes."""
        return self.output, self.metrics, self.path

    def exists(self) -> bool:
        """Whether an interrupted training left its state, by the mark that it bears; a damaged one counts."""
        try:
            if not self.path.is_file():
                return False
            with self.path.open("rb") as file:
                return file.read(_LENGTH_SIZE + len(_BEGINNING))[_LENGTH_SIZE:] == _BEGINNING
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror or error}.") from error

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from all that this training writes; see :func:`btcompress.checkpoint.claimed`."""
        with ExitStack() as stack:
            for path in self.targets:
                stack.enter_context(claimed(path))
            yield

    def check(self, *, force: bool, resume: bool, inputs: Iterable[Path] = ()) -> None:
        """Refuse what should not be written or gone on with; costs nothing, so ask before long work.

        Args:
            force: replace results and metrics, and start over an interrupted training.
            resume: go on with an interrupted training.
            inputs: files that must survive whatever ``force`` says.

        Raises:
            OutputError: a file of the training cannot or may not be written.
            BTCompressError: there is nothing to resume.
        """
        inputs = tuple(inputs)
        interrupted = self.exists()
        if not interrupted and os.path.lexists(self.path):
            raise OutputError(
                f"{self.path} is in the way: it is not the state of a training, or is damaged beyond recognition, and "
                "is never removed. Move it away, or choose another name for the result."
            )
        if resume and not interrupted:
            raise BTCompressError(f"there is nothing to resume: {self.path} does not exist. Leave out --resume.")
        if interrupted and not (resume or force):
            beside = f", beside {self.output} itself" if os.path.lexists(self.output) else ""
            also = ", which replaces both" if beside else ""
            raise OutputError(
                f"an interrupted training of {self.output} lies in {self.path}{beside}. Go on with --resume, or start "
                f"over with --force{also}."
            )
        for path in self.targets:
            check_target(path, force=force or resume, inputs=inputs)

    def check_room(self, state_size: int, result_size: int) -> None:
        """Refuse to begin where the disk has no room for what the training will write.

        Args:
            state_size: bytes of the tensors in a state.
            result_size: bytes of those in the result.

        Raises:
            OutputError: there is too little.
        """
        # A state is written beside the one before it, and the result beside the last.
        needed = 2 * state_size + result_size
        free = shutil.disk_usage(self.output.parent).free + (self.path.stat().st_size if self.exists() else 0)
        if needed > free:
            raise OutputError(
                f"{self.output} and the state of its training take up to {size_text(needed)} of disk, but "
                f"{size_text(free)} are free in {self.output.parent}. Make room, or choose another folder."
            )

    def save(self, state: TrainingState) -> None:
        """Write the metrics once there are any, then the state, each whole or not at all.

        Raises:
            OutputError: the operating system refused to write.
            CheckpointError: the network has a tensor of a kind that the file cannot hold.
        """
        if state.rows:
            with replacing(self.metrics) as temporary:
                temporary.write_text("".join(json.dumps(asdict(row)) + "\n" for row in state.rows))
        tensors = {name: plain_tensor(name, value) for name, value in state.tensors.items()}
        record = msgspec.json.encode(
            _Record(_VERSION, dict(self.identity), list(state.rows), state.before, state.scaler, self.replaces)
        )
        sealed = msgspec.json.encode(_Sealed(_digest(record, tensors), msgspec.Raw(record)))
        with replacing(self.path) as temporary:
            write_tensors(temporary, tensors, {_MARK: sealed.decode()})

    def load(self, outline: Outline) -> tuple[StateFile, TrainingState]:
        """The last complete state, and the file to go on with.

        Args:
            outline: what it must look like.

        Raises:
            BTCompressError: it is damaged, or of another training.
        """
        record, tensors = self._read()
        self._check_same(record)
        if not outline.fits(record.rows, tensors):
            raise self._damaged()
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in _PARTS}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            number, _, rest = name.partition(".")
            moments.setdefault(int(number), {})[rest] = value
        network, best, moved, best_moved = (parts[name] for name in _PARTS if name != "optimizer")
        state = TrainingState(record.rows, record.before, network, best, moments, record.scaler, moved, best_moved)
        return replace(self, replaces=record.replaces), state

    def remove(self) -> None:
        """Remove the state, once the result is written; the metrics stay."""
        if self.exists():
            self.path.unlink()

    def _read(self) -> tuple[_Record, dict[str, Tensor]]:
        try:
            tensors, about = read_tensors(self.path)
            sealed = msgspec.json.decode(about.get(_MARK, ""), type=_Sealed)
            if sealed.sha256 != _digest(bytes(sealed.record), tensors):
                raise self._damaged()
            record = msgspec.json.decode(sealed.record, type=_Record)
        except (CheckpointError, OSError, msgspec.MsgspecError, RecursionError) as error:
            raise self._damaged() from error
        return record, tensors

    def _check_same(self, record: _Record) -> None:
        """Refuse the state of another training, and say which setting differs."""
        before = record.identity
        if record.version != _VERSION or before.keys() != self.identity.keys():
            raise BTCompressError(f"{self.path} is damaged, or of another btcompress. Start over with --force.")
        for name, value in self.identity.items():
            if before[name] != value:
                raise BTCompressError(
                    f"the interrupted training had {name} {_told(before[name])}, and now it is {_told(value)}. Resume "
                    "with what it was started with, or start over with --force."
                )

    def _damaged(self) -> BTCompressError:
        return BTCompressError(f"{self.path} is damaged. Start over with --force.")


def _digest(record: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 of all that a state says, in one order."""
    sha256 = hashlib.sha256(record)
    for name in sorted(tensors):
        sha256.update(f"\n{name} {_kind(tensors[name])}\n".encode())
        for chunk in byte_chunks(tensors[name]):
            sha256.update(chunk.numpy().data)
    return sha256.hexdigest()


def _kind(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _told(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}..."
