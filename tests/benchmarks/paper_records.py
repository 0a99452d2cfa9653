"""What is known of a model, in files that are whole or absent and that one process at a time makes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import Timeout

from btcompress.checkpoint import claimed, replacing
from btcompress.errors import OutputError

#: Seconds between two looks at what another process is making.
WAIT = 1.0


class BusyError(Exception):
    """Another process is making this at the moment."""


class MissingError(Exception):
    """This has not been made yet, and nothing is made now."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One training.

    Attributes:
        curve: the metric on the examples held back, before training and after each epoch; empty where it diverged.
        seconds: of each epoch.
    """

    curve: tuple[float, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a model is.

    Attributes:
        params: of ``W``.
        n_bytes: of ``W``.
        lstm_params: of the LSTM with ``W``, ``U`` and biases.
        model_params: of the model, all of that included.
        model_bytes: likewise.
    """

    params: int
    n_bytes: int
    lstm_params: int
    model_params: int
    model_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One model of one task, size and seed.

    Attributes:
        task: its name.
        size: its name.
        seed: of the data, the first weights and the order of training.
        form: of ``W``.
        start: what training began with; empty for the dense model.
        stage: what was done to it: ``trained``, ``before training`` or ``calibrated without labels``.
        params: of ``W``.
        n_bytes: of ``W``.
        model_params: of the model, ``W`` included.
        model_bytes: likewise.
        learning_rate: at its peak; None where nothing was trained for the task.
        weight_decay: of that.
        curve: as :class:`Trained` has it; empty where nothing was trained.
        scores: on the test set, in the order of the task's measures.
    """

    task: str
    size: str
    seed: int
    form: str
    start: str
    stage: str
    params: int
    n_bytes: int
    model_params: int
    model_bytes: int
    learning_rate: float | None
    weight_decay: float | None
    curve: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Noisy:
    """What a trained model scores on noisy inputs.

    Attributes:
        task: its name.
        size: its name.
        seed: of the data and the training.
        form: of ``W``.
        start: what training began with.
        kind: of the noise.
        strength: of it.
        scores: on the noisy test set.
    """

    task: str
    size: str
    seed: int
    form: str
    start: str
    kind: str
    strength: float
    scores: tuple[float, ...]


Record = TypeVar("Record", Trained, Sizes, Measured, Noisy)


def kept(path: Path, kind: type[Record], make: Callable[[], Record] | None) -> Record:
    """What a file says, or what is made now and then stands there.

    Raises:
        BusyError: another process is making it.
        MissingError: the file is not there, and it is not said how to make it.
    """
    if path.exists():
        return read(path, kind)
    if make is None:
        raise MissingError(str(path))
    with claim(path):
        if path.exists():  # another process was done with it in the meantime
            return read(path, kind)
        record = make()
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(record)) + "\n")
    return record


def read(path: Path, kind: type[Record]) -> Record:
    """The record in a file."""
    values: dict[str, Any] = json.loads(path.read_text())
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Keep other processes from making a file.

    Raises:
        BusyError: another one is at it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(claimed(path))
        except OutputError as error:
            if isinstance(error.__cause__, Timeout):
                raise BusyError(str(path)) from error
            raise
        yield


@contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """The same, once another process is done with it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claim(path))
                break
            except BusyError:
                time.sleep(WAIT)
        yield
