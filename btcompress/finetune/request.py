"""What to fine-tune, and what makes it the same training as one that was interrupted."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from btcompress.checkpoint import Checkpoint
from btcompress.checkpoint.source import digest
from btcompress.errors import BTCompressError
from btcompress.finetune.config import TrainConfig
from btcompress.finetune.references import sources
from btcompress.text import valid_values

#: Files of more bytes than this are compared by this many bytes of them, in pieces spread evenly.
_MOST_COMPARED = 1 << 30
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class FineTuneRequest:
    """What to fine-tune, on what, and where to write it.

    Attributes:
        compressed: the result file to start from.
        data: sequences to train on: a file, or ``package.module:factory``.
        output: the result file to write.
        teacher: the dense checkpoint.
        layer: name of the recurrent layer that the sequences are inputs of; trains that layer alone.
        held: sequences to measure on; taken from ``data`` when left out.
        held_fraction: share of ``data`` that is then held back.
        scale: what to multiply the inputs of files by.
        model: ``package.module:factory`` of the user's network.
        loss: ``package.module:function`` of ``(outputs, y)``.
        folder: where user code is looked for first.
        container: which state dict of the teacher's file.
        strict: refuse a teacher's file that holds more than weights.
        tensorboard: folder of TensorBoard's curves, of which each training has one named after its output.
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
    strict: bool = False
    tensorboard: Path | None = None

    @property
    def curves(self) -> Path | None:
        """The folder of this training's curves."""
        return None if self.tensorboard is None else self.tensorboard / self.output.name.removesuffix(".safetensors")

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read, and never overwritten: those that user code comes from as well."""
        named = [text for text in (self.data, self.held, self.model, self.loss) if text is not None]
        files = (self.compressed, *(() if self.teacher is None else (self.teacher,)))
        return (*files, *(file for text in named for file in sources(text, self.folder)))


def identity(request: FineTuneRequest, config: TrainConfig, dense: Checkpoint | None) -> dict[str, Any]:
    """What a state must agree on to be gone on with: settings, and what the files hold.

    What a user's code does, data from a factory included, cannot be compared; only its name is.

    Args:
        request: what is trained on what.
        config: how.
        dense: the teacher's checkpoint, as read.

    Returns:
        Values as JSON knows them.

    Raises:
        BTCompressError: a file cannot be read.
    """
    named = ("data", "layer", "held", "held_fraction", "scale", "model", "loss", "container")
    contents = {"contents of the checkpoint": digest([request.compressed])}
    if dense is not None:
        contents["contents of --teacher"] = str(dense.source.sha256)
    for option, text in (("--data", request.data), ("--val", request.held)):
        if text is not None and Path(text).is_file():
            contents[f"contents of {option}"] = contents_digest(Path(text))
    return {
        name: valid_values(value)
        for name, value in {**asdict(config), **{name: getattr(request, name) for name in named}, **contents}.items()
    }


def contents_digest(path: Path) -> str:
    """SHA-256 of a file; beyond 1 GiB, of its size and 1,024 pieces of 1 MiB spread evenly, both ends included.

    Raises:
        BTCompressError: the file cannot be read.
    """
    size = path.stat().st_size
    if size <= _MOST_COMPARED:
        return digest([path])
    n_pieces = _MOST_COMPARED // _PIECE
    sha256 = hashlib.sha256(str(size).encode())
    try:
        with path.open("rb") as file:
            for index in range(n_pieces):
                file.seek((size - _PIECE) * index // (n_pieces - 1))
                sha256.update(file.read(_PIECE))
    except OSError as error:
        raise BTCompressError(f"{path} cannot be read: {error.strerror or error}.") from error
    return sha256.hexdigest()
