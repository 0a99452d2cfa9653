"""The files that commands write: none that the command reads, and each kept for it from the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btcompress.checkpoint import Checkpoint


@contextmanager
def reserved(
    target: Path | None, checkpoint: Checkpoint, *, sequences: str | None, plan_file: Path | None = None, force: bool
) -> Iterator[None]:
    """Keep a target to the end of the block, if it may be written; take it before long work begins.

    Args:
        target: the file to be written; None where nothing is.
        checkpoint: of which no file is ever written over, by whatever name or link.
        sequences: the file or the factory of the calibration, neither.
        plan_file: nor the plan.
        force: whether another file may be replaced.

    Raises:
        OutputError: the target cannot or must not be written, or another process is writing it.
    """
    from btcompress.checkpoint import check_target, claimed
    from btcompress.finetune.references import sources

    if target is None:
        yield
        return
    read = [*checkpoint.files, *(() if sequences is None else sources(sequences))]
    if plan_file is not None:
        read.append(plan_file)
    check_target(target, force=force, inputs=read)
    with claimed(target):
        yield
