"""Which recurrent layers of a result are exported, and to which files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

from btcompress.checkpoint import (
    CompressedCheckpoint,
    RecurrentEntry,
    check_plain,
    check_target,
    replacing,
)
from btcompress.errors import BTCompressError
from btcompress.text import listed

#: What of a name cannot stand in the name of a file everywhere.
_ELSEWHERE = re.compile(r"[^A-Za-z0-9._-]")


def chosen_lstms(compressed: CompressedCheckpoint, name: str | None) -> list[RecurrentEntry]:
    """The recurrent layers and cells of a result that are to be exported.

    Args:
        compressed: the result.
        name: of the only one, which may have no matrix that was factorized or rounded; None for all that have one.

    Raises:
        BTCompressError: there is none, or none of this name.
        CheckpointError: tensors lie beside those of one, which computes something else.
    """
    every = [entry for entry in compressed.recurrent() if isinstance(entry, RecurrentEntry)]
    where, names = f"{compressed.source.name}, compressed", listed([shown_name(entry) for entry in every])
    if not every:
        raise BTCompressError(
            f"there is no LSTM in {where}, nor a GRU or plain RNN, and only these are exported. Give a file with one."
        )
    if name is not None:
        found = [entry for entry in every if entry.name == name]
        if not found:
            raise BTCompressError(
                f"there is no {noun(every)} named {name!r:.80} in {where}. Those that there are: {names}."
            )
        return _plain(found)
    found = [entry for entry in every if any(key in compressed.chosen for key in entry.matrix_keys)]
    if not found:
        raise BTCompressError(
            f"no matrix of the {noun(every)}s in {where} was factorized or rounded ({names}). Name the one to export "
            "(--lstm)."
        )
    return _plain(found)


def _plain(entries: list[RecurrentEntry]) -> list[RecurrentEntry]:
    for entry in entries:
        check_plain(entry, "its export", "Export others (--lstm), or the dense weights (--to dense).")
    return entries


def targets(path: Path, entries: Sequence[RecurrentEntry]) -> list[Path]:
    """The file of each layer: the path itself for one, ``OUT.NAME.ENDING`` of ``OUT.ENDING`` for each of several.

    Of a name, characters that not every file system takes become ``_``; the layer at the top has no name, and has the
    path itself.

    Raises:
        BTCompressError: two layers would have the same file.
    """
    if len(entries) == 1:
        return [path]
    names = [_ELSEWHERE.sub("_", entry.name) for entry in entries]
    found = [path.with_name(f"{path.stem}.{name}{path.suffix}") if name else path for name in names]
    same = [target for target in found if [each.name.lower() for each in found].count(target.name.lower()) > 1]
    if same:
        raise BTCompressError(
            f"several {noun(entries)}s would be written to {same[0]}. Export them one by one (--lstm)."
        )
    return found


def planned(
    compressed: CompressedCheckpoint, path: str | PathLike[str], lstm: str | None, *, force: bool
) -> list[tuple[RecurrentEntry, Path]]:
    """Each layer that is to be exported, and its file, once all of these may be written.

    Raises:
        BTCompressError: as :func:`chosen_lstms` and :func:`targets`.
        OutputError: a file cannot or may not be written there.
    """
    entries = chosen_lstms(compressed, lstm)
    pairs = list(zip(entries, targets(Path(path), entries), strict=True))
    for _, target in pairs:
        check_target(target, force=force, inputs=compressed.files)
    return pairs


@contextmanager
def replacing_all(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """As :func:`btcompress.checkpoint.replacing`: no file takes its place before all are written.

    Raises:
        OutputError: likewise.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(replacing(path)) for path in paths]


def noun(entries: Iterable[RecurrentEntry]) -> str:
    """What some layers are, in messages."""
    types = {entry.type for entry in entries}
    return "LSTM" if types <= {"lstm"} else types.pop().upper() if len(types) == 1 else "recurrent layer"


def shown_name(entry: RecurrentEntry) -> str:
    """The name of a layer, as messages have it."""
    return entry.name or "(top)"
