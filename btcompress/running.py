"""Run a recipe of one or several steps: each result is kept, and an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from btcompress.checkpoint import (
    CompressedCheckpoint,
    check_target,
    claimed,
    digest,
    read_compressed,
    replacing,
    write_dense,
)
from btcompress.compression import Opened, Progress, compress_to
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch, StateFile, finetune
from btcompress.finetune.request import contents_digest
from btcompress.recipe import FactorizeStep, FineTuneStep, Recipe, Step
from btcompress.results import StepProgress

OnRun: TypeAlias = Callable[[StepProgress | Progress | Epoch], None]

_VERSION = 1
_START_OVER = "Start over with --force (force=True)."


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a run is.

    Attributes:
        version: of this record.
        identity: digest of the recipe and of all that it reads.
        done: digests of the results of the steps that are done.
        begun: steps that were begun; what lies at their targets is the run's own.
    """

    version: int
    identity: str
    done: list[str]
    begun: int


@dataclass(frozen=True, slots=True)
class RunFile:
    """Where a run keeps how far it is beside its result, until the last step is done.

    Attributes:
        output: the result of the last step.
    """

    output: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.output.with_name(f"{self.output.name}.run")

    def load(self) -> _Record | None:
        """How far an interrupted run got; None where there is none.

        Raises:
            BTCompressError: the file is damaged, or is something else.
        """
        if not self.path.exists():
            return None
        try:
            record = msgspec.json.decode(self.path.read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise BTCompressError(f"{self.path} is no record of a run, or is damaged. {_START_OVER}") from error
        if record.version != _VERSION:
            raise BTCompressError(f"{self.path} is of another btcompress. {_START_OVER}")
        return record

    def save(self, record: _Record) -> None:
        """Write how far the run is, whole or not at all."""
        with replacing(self.path) as temporary:
            temporary.write_bytes(msgspec.json.encode(record))


def run(recipe: Recipe, *, force: bool = False, on_progress: OnRun | None = None) -> CompressedCheckpoint:
    """Do the steps of a recipe, each on the result of the one before, and keep all results.

    A run that was interrupted at any moment goes on where it was, and ends in the same bytes.

    Args:
        recipe: what to do.
        force: replace files that exist, and start over a run that was interrupted.
        on_progress: called as each step begins and ends, and with where it stands.

    Returns:
        The result of the last step, as it was written.

    Raises:
        OutputError: a result cannot or must not be written, or another process runs the recipe.
        BTCompressError: as the steps; or an interrupted run was of another recipe, or read other files.
    """
    file, outputs = RunFile(recipe.output), recipe.outputs
    first = _first(recipe)
    read = _files(recipe, first)
    check_target(file.path, force=True, inputs=read)
    with claimed(file.path):
        identity = _identity(recipe, read)
        record = None if force else file.load()
        if record is None:
            for output in outputs:
                check_target(output, force=force, inputs=read)
            record = _Record(_VERSION, identity, [], 0)
        if record.identity != identity:
            raise BTCompressError(
                f"the run of {recipe.output} that was interrupted was of another recipe, or a file that it reads has "
                f"changed since. {_START_OVER}"
            )
        done = _still_there(record.done, outputs)
        sources = (recipe.model, *outputs)
        for n, step in enumerate(recipe.steps):
            _tell(on_progress, recipe, n, "kept" if n < len(done) else "begun")
            if n < len(done):
                continue
            own = force or n < record.begun
            record = _Record(_VERSION, identity, done, max(record.begun, n + 1))
            file.save(record)
            again = n < record.begun and not force
            opened = first if n == 0 else None
            _do(step, sources[n], outputs[n], opened, own=own, again=again, on_progress=on_progress)
            done = [*done, digest([outputs[n]])]
            file.save(_Record(_VERSION, identity, done, record.begun))
            _tell(on_progress, recipe, n, "done")
        file.path.unlink(missing_ok=True)
    return read_compressed(recipe.output)


def _first(recipe: Recipe) -> Opened | None:
    """What the first step begins with, read once where that is factorized."""
    step = recipe.steps[0]
    return Opened.of(recipe.model, step) if isinstance(step, FactorizeStep) else None


def _do(
    step: Step, source: Path, target: Path, opened: Opened | None, *, own: bool, again: bool, on_progress: OnRun | None
) -> None:
    """Do one step.

    Args:
        step: what to do.
        source: the file to begin with.
        target: the file to write.
        opened: what was read from the source already, if it was.
        own: what lies there may be replaced.
        again: the step was begun before, and may have left a state to go on from.
        on_progress: called with where it stands.
    """
    if isinstance(step, FactorizeStep):
        compress_to(target, opened or source, step, force=own, on_progress=on_progress)
    elif isinstance(step, FineTuneStep):
        request = step.request(source, target)
        resume = again and StateFile(target).exists()
        finetune(request, step.config, force=own, resume=resume, on_epoch=on_progress)
    else:
        result = read_compressed(source)
        write_dense(result.dense_state_dict(), target, layout=result.dense_layout(), force=own)


def _still_there(digests: Sequence[str], outputs: Sequence[Path]) -> list[str]:
    """The digests of the results that are still there, up to the first that is gone.

    Raises:
        BTCompressError: one has changed since.
    """
    kept = []
    for known, output in zip(digests, outputs, strict=False):
        if not output.exists():
            break
        if digest([output]) != known:
            raise BTCompressError(f"{output} has changed since this run wrote it. {_START_OVER}")
        kept.append(known)
    return kept


def _files(recipe: Recipe, first: Opened | None) -> list[Path]:
    """All files that the steps read, other than each other's results."""
    opened = (recipe.model,) if first is None else first.files
    return [*opened, *(file for step in recipe.steps for file in step.files if file not in recipe.outputs)]


def _identity(recipe: Recipe, read: Sequence[Path]) -> str:
    """Digest of what is done, and of the contents of what it is done with."""
    contents = [contents_digest(path) for path in read if path.is_file()]
    text = json.dumps([recipe.to_dict(), contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _tell(on_progress: OnRun | None, recipe: Recipe, n: int, state: str) -> None:
    if on_progress is not None:
        on_progress(StepProgress(recipe.steps[n].kind, n, len(recipe.steps), str(recipe.outputs[n]), state))
