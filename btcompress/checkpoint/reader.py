"""Reading dense checkpoints: ``.safetensors``, whatever ``torch.save`` wrote, and either one in shards."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from btcompress.checkpoint.ahead import begun_digest
from btcompress.checkpoint.containers import Flattened, flatten
from btcompress.checkpoint.folding import fold
from btcompress.checkpoint.foreign import is_foreign, read_foreign
from btcompress.checkpoint.layout import USUAL_TEXT, Layout, UnplacedError, left_out_text
from btcompress.checkpoint.layoutrecords import LAYOUT_KEY, with_layout
from btcompress.checkpoint.names import OtherRecurrent, RecurrentEntry, find_recurrent
from btcompress.checkpoint.plainvalues import texts_kept
from btcompress.checkpoint.recognise import Kind, load_index, recognise
from btcompress.checkpoint.safetensorsfiles import read_tensors
from btcompress.checkpoint.source import Source, Stretch
from btcompress.checkpoint.tensors import count_params, find_aliases
from btcompress.checkpoint.torchfiles import read_archive, read_legacy
from btcompress.dialects import Dialect, Found, convert, converted
from btcompress.errors import CheckpointError
from btcompress.shapes import Nonlinearity
from btcompress.text import listed, valid_unicode

#: Bytes of the longest file name that file systems hold.
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The tensors of a dense checkpoint.

    Attributes:
        tensors: by name, in the order of the file; on the CPU, memory-mapped where the format allows.
        source: what to record of where they came from.
        notices: what a user should know about how the file was read.
        files: the files that the tensors lie in, which must not change while these are in use.
        layout: how they lay there, and the plain values beside them; None for a plain state dict.
        nonlinearities: of plain RNNs, by their names, where something says them; ``"tanh"`` is taken else.
        refused: recurrent layers that are written in ways of other projects and cannot be brought into torch's.
    """

    tensors: dict[str, Tensor]
    source: Source
    notices: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    layout: Layout | None = None
    nonlinearities: dict[str, Nonlinearity] = field(default_factory=dict)
    refused: tuple[OtherRecurrent, ...] = ()

    def recurrent(self) -> tuple[RecurrentEntry | OtherRecurrent, ...]:
        """Its recurrent layers, and what looks like some; see :func:`btcompress.checkpoint.find_recurrent`."""
        refused = {each.name for each in self.refused}
        found = find_recurrent(self.tensors, self.nonlinearities)
        own = (each for each in found if isinstance(each, RecurrentEntry) or each.name not in refused)
        return (*own, *self.refused)

    def with_nonlinearity(self, given: Nonlinearity | None) -> Checkpoint:
        """The same with this nonlinearity of all plain RNNs; where it is None, tanh is taken of those that say none.

        Raises:
            CheckpointError: there is no plain RNN, or one has another as the file says.
        """
        plain = [each.name for each in self.recurrent() if isinstance(each, RecurrentEntry) and each.type == "rnn"]
        untold = [name for name in plain if name not in self.nonlinearities]
        if given is None:
            if not untold:
                return self
            told = f"{listed([name or 'the top' for name in untold])}: a plain RNN, taken to apply tanh, as no file of "
            told += "weights says it; --nonlinearity relu is the other."
            return self if told in self.notices else replace(self, notices=(*self.notices, told))
        if not plain:
            raise CheckpointError(
                f"{self.source.name} holds no plain RNN, so there is no nonlinearity to say. Leave --nonlinearity out."
            )
        others = [name for name in plain if self.nonlinearities.get(name, given) != given]
        if others:
            raise CheckpointError(
                f"the file says that {others[0] or 'the RNN'} applies {self.nonlinearities[others[0]]}, not {given}. "
                "Leave --nonlinearity out."
            )
        return replace(self, nonlinearities=self.nonlinearities | dict.fromkeys(untold, given))


def read(path: str | PathLike[str], container: str | None = None, *, strict: bool = False) -> Checkpoint:
    """Read a checkpoint; nothing in it is ever run.

    Objects of classes that torch does not save weights with are not loaded but left out by name; of a module that was
    pickled whole, or a TorchScript archive, its state dict is read.

    The kind of file is told by its content. A folder is searched for the one checkpoint in it. Keys are
    those of the state dict in the file; several state dicts in one file are all read, with the path to
    each before its keys. Weights that are stored by weight norm, spectral norm, pruning or weight drop are formed, and
    have their plain keys.

    Args:
        path: a file, the index of a sharded checkpoint, or a folder.
        container: where a file holds several state dicts, the path of the one to read.
        strict: refuse a file that holds anything else than weights and plain values.

    Raises:
        CheckpointError: the file is missing, damaged, or is of a kind that is not read; the text says which and what
            to do.
        MemoryLimitError: what is packed in the file needs more memory than there is.
    """
    path = Path(path)
    path = _only_checkpoint(path) if path.is_dir() else path
    kind = recognise(path)
    if kind == "btcompress":
        raise CheckpointError(
            f"{path} is compressed already. Give the dense checkpoint that it was made from, or write one from it "
            "(btcompress export --to dense)."
        )
    found = None
    if kind == "index":
        weight_map = _weight_map(path)
        files = (path, *(path.parent / shard for shard in sorted(set(weight_map.values()))))
        flat, checksums = _read_shards(path, weight_map, container, strict=strict)
    elif is_foreign(kind):
        if container is not None:
            raise CheckpointError(f"{path} holds one model: leave the container out.")
        foreign = read_foreign(path, kind)
        files = (path, *foreign.files)
        flat, found = Flattened(dict(foreign.tensors), foreign.notices), foreign.found
        checksums = {path: foreign.checksums}
    else:
        files = (path,)
        flat, own = _read_file(path, kind, container, strict=strict)
        checksums = {path: own}
    n_bytes = sum(file.stat().st_size for file in files)
    source = Source(valid_unicode(path.name), n_bytes, begun_digest(files, checksums), 0)
    return _in_torchs_names(_folded(flat, str(path)), source, str(path), tuple(file.resolve() for file in files), found)


def from_state_dict(state_dict: Mapping[str, Any], name: str = "state dict") -> Checkpoint:
    """Take a state dict, or containers of them, from memory; tensors on the CPU are not copied.

    Args:
        state_dict: as ``module.state_dict()`` gives it.
        name: what to call it in messages and records.

    Raises:
        CheckpointError: as :func:`read`, for what the mapping holds.
    """
    flat = flatten(state_dict, name)
    aliases = find_aliases(flat.tensors)
    tensors: dict[str, Tensor] = {}
    for key, tensor in flat.tensors.items():
        tensors[key] = tensors[aliases[key]] if key in aliases else tensor.cpu()
    n_bytes = sum(tensor.nbytes for key, tensor in tensors.items() if key not in aliases)
    flat = _folded(replace(flat, tensors=tensors), name)
    return _in_torchs_names(flat, Source(valid_unicode(name), n_bytes, None, 0), name)


def _in_torchs_names(
    flat: Flattened,
    source: Source,
    label: str,
    files: tuple[Path, ...] = (),
    found: Iterable[tuple[Dialect, Found]] | None = None,
) -> Checkpoint:
    """The checkpoint, its recurrent layers as torch's classes have them; of converted ones the layout is not kept."""
    conversion = convert(flat.tensors, label) if found is None else converted(flat.tensors, found, label)
    layout = flat.layout
    if conversion.converted and layout is not None:
        layout = Layout(None, layout.metadata) if layout.metadata else None
    return Checkpoint(
        conversion.tensors,
        replace(source, n_params=count_params(conversion.tensors)),
        (*flat.notices, *conversion.notices),
        files,
        layout,
        conversion.nonlinearities,
        tuple(
            OtherRecurrent(f"{each.name}." if each.name else "", "unknown", each.reason, each.keys)
            for each in conversion.refused
        ),
    )


def _folded(flat: Flattened, label: str) -> Flattened:
    """The same with plain weights in the place of those that are stored otherwise."""
    folded = fold(flat.tensors, label)
    layout, notices = flat.layout, (*flat.notices, *folded.notices)
    if layout is not None and (folded.renamed or folded.left_out):
        try:
            layout = layout.renamed(folded.renamed, folded.left_out)
        except UnplacedError as why:
            layout = Layout(None, layout.metadata, layout.ties) if layout.metadata else None
            notices = (*notices, left_out_text(str(why)))
    return Flattened(folded.tensors, notices, layout)


def _only_checkpoint(folder: Path) -> Path:
    """The one checkpoint in a folder: shards are part of their index, and a result never hides its source."""
    found: dict[str, Kind] = {}
    try:
        for path in sorted(folder.iterdir()):
            try:
                found[path.name] = recognise(path)
            except CheckpointError:
                continue
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error
    shards = {name for index, kind in found.items() if kind == "index" for name in _weight_map(folder / index).values()}
    names = [name for name in found if name not in shards]
    dense = [name for name in names if found[name] != "btcompress"]
    # The same model is often there for other frameworks as well.
    dense = [name for name in dense if not is_foreign(found[name])] or dense
    if len(dense or names) != 1:
        what = f"{len(names)} checkpoints: {', '.join(names)}" if names else "no checkpoint that can be read"
        raise CheckpointError(f"{folder} is a folder with {what}. Give the file to read.")
    return folder / (dense or names)[0]


def _read_file(path: Path, kind: Kind, container: str | None, *, strict: bool) -> tuple[Flattened, Sequence[Stretch]]:
    """The tensors of one file, and the checksums that it has of its own."""
    if kind == "safetensors":
        return _from_safetensors(path, container), ()
    found = read_legacy(path) if kind == "legacy torch" else read_archive(path)
    if strict and found.called:
        raise CheckpointError(
            f"{path} holds more than tensors: loading it with pickle would run {found.called[0]}, which a file of "
            "weights has no need of. Save a state dict alone, or leave out --strict: such objects are then left out by "
            "name, and nothing is run all the same."
        )
    flat = flatten(found.value, str(path), container)
    return replace(flat, notices=(*found.notices, *flat.notices)), found.checksums


def _from_safetensors(path: Path, container: str | None) -> Flattened:
    """The tensors of a file that names them alone, in the layout that it may have been given with them."""
    tensors, texts = read_tensors(path)
    if LAYOUT_KEY in texts:
        tensors, layout = with_layout(texts[LAYOUT_KEY], tensors, path)
        flat = flatten(tensors, str(path), container)
        return replace(flat, layout=layout)
    flat = flatten(tensors, str(path), container)
    kept, notices = texts_kept({name: text for name, text in texts.items() if (name, text) != USUAL_TEXT})
    return replace(flat, notices=(*flat.notices, *notices), layout=Layout(metadata=kept) if kept else None)


def _weight_map(index: Path) -> dict[str, str]:
    """The shard that an index gives for each tensor."""
    weight_map: dict[str, str] = (load_index(index) or {}).get("weight_map", {})
    if any(key.startswith("/") for key in weight_map):
        raise CheckpointError(
            f"{index} is an index as Keras writes it. Save the weights in one file, and give that: "
            "model.save_weights('model.weights.h5')."
        )
    for shard in weight_map.values():
        # An index is data from elsewhere, so it may only ever point at its neighbours.
        usable = isinstance(shard, str) and len(shard.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
        if not usable or shard in ("", ".", "..") or re.search(r"[/\\:\0]", shard):
            raise CheckpointError(
                f"{index} names a shard {reprlib.repr(shard)}, but shards must be files beside their index."
            )
    if not weight_map:
        raise CheckpointError(f"{index} is an index of no tensors. Download or save it again.")
    return weight_map


def _read_shards(
    index: Path, weight_map: Mapping[str, str], container: str | None, *, strict: bool
) -> tuple[Flattened, dict[Path, Sequence[Stretch]]]:
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).exists()]
    if missing:
        raise CheckpointError(f"{index} needs {', '.join(missing)} beside it, which is missing. Download it as well.")
    if container is not None:
        raise CheckpointError(f"{index} is an index of one plain state dict: leave the container out.")
    notices: list[str] = []
    found: dict[str, dict[str, Tensor]] = {}
    checksums: dict[Path, Sequence[Stretch]] = {}
    for shard in shards:
        path = index.parent / shard
        kind = recognise(path)
        if kind in ("index", "btcompress"):
            raise CheckpointError(f"{index} names the shard {shard}, which is no dense weight file. Download it again.")
        if is_foreign(kind):
            raise CheckpointError(
                f"{index} is an index of files of another framework. Save the model in one file, and give that."
            )
        flat, checksums[path] = _read_file(path, kind, None, strict=strict)
        found[shard] = flat.tensors
        notices += flat.notices
    tensors = {}
    for key, shard in weight_map.items():
        if key not in found[shard]:
            raise CheckpointError(f"{index} says that {key} is in {shard}, where it is not. Download both again.")
        tensors[key] = found[shard].pop(key)
    unlisted = [key for shard in shards for key in found[shard]]
    if unlisted:
        notices.append(f"Left out, tensors that the index does not name: {', '.join(unlisted)}.")
    return Flattened(tensors, tuple(notices)), checksums
