"""Files that Keras writes: ``.h5`` of a model or of its weights, ``.weights.h5``, and ``.keras`` archives of these.

Tensors get the names that Keras shows them by: the layer, the cell in it, and ``kernel``, ``recurrent_kernel``,
``bias``, where a file has numbers. Nothing of a model is built, and none of its code runs.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from btcompress.checkpoint.foreign import Foreign
from btcompress.checkpoint.hdf5files import Hdf5, read_hdf5
from btcompress.checkpoint.zips import Member, members_of, stored_checksums, unpacked
from btcompress.dialects import Dialect, Found, Refused, keras, tensorflow1
from btcompress.dialects.kerasconfig import ModelConfig
from btcompress.errors import CheckpointError
from btcompress.text import listed

#: Where the weights of a whole model lie, and what else lies beside them or among them, which is none.
_WEIGHTS = "model_weights"
_NO_WEIGHTS = re.compile(r"(?:optimizer|optimizer_weights)/.*|(?:.*/)?seed_generator(?:_[0-9]+)?/.*", re.DOTALL)

#: Lists of layers in a file with numbers, also as versions before 3 called them.
_LISTS = ("layers", "_layer_checkpoint_dependencies", "cells")
_NUMBERED = re.compile(r"(?P<path>.*)/vars/(?P<number>0|[1-9][0-9]*)", re.DOTALL)
_NAMES = (
    (re.compile(r"cell|.*_cell(?:_[0-9]+)?"), ("kernel", "recurrent_kernel", "bias")),
    (re.compile(r"dense(?:_[0-9]+)?"), ("kernel", "bias")),
    (re.compile(r"embedding(?:_[0-9]+)?"), ("embeddings",)),
)

_MOST_CONFIG = 1 << 26
_MOST_SHOWN = 8


def read_file(path: Path) -> Foreign:
    """Read such a file.

    Raises:
        CheckpointError: it is damaged, holds what is not read, or the package that reads it is not installed.
        MemoryLimitError: what is packed in it needs more memory than there is.
    """
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if not is_archive:
        return _foreign(read_hdf5(path, 0, path.stat().st_size, str(path)), None, str(path))
    members = members_of(path)
    weights = [member for name, member in members.items() if name.endswith(".h5")]
    if len(weights) != 1:
        raise CheckpointError(
            f"{path} is a Keras model whose weights lie in {len(weights)} parts. Save them in one: "
            "model.save_weights('model.weights.h5')."
        )
    config = members.get("config.json")
    text = None if config is None else unpacked(path, config, _MOST_CONFIG).decode("utf-8", "replace")
    found = _foreign(_of_member(path, weights[0]), text, str(path))
    return replace(found, checksums=stored_checksums(members))


def _of_member(path: Path, member: Member) -> Hdf5:
    """What the HDF5 file in an archive holds: mapped where it lies there as it is."""
    label = f"{path}, {member.name},"
    if member.stored:
        return read_hdf5(path, member.start, member.size, label)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "model.weights.h5")
        whole.write_bytes(unpacked(path, member))
        return read_hdf5(whole, 0, member.size, label)


def _foreign(read: Hdf5, text: str | None, label: str) -> Foreign:
    """The tensors under Keras's names, and the layers that these make."""
    whole = any(name.startswith(f"{_WEIGHTS}/") for name in read.tensors)
    said = read.texts.get("", {})
    text = said.get("model_config") if text is None else text
    config = None if text is None else ModelConfig.of(text)
    version = said.get("keras_version") or read.texts.get(_WEIGHTS, {}).get("keras_version", "")
    taken: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in read.tensors.items():
        if _NO_WEIGHTS.fullmatch(name) or (whole and not name.startswith(f"{_WEIGHTS}/")):
            left_out.append(name)
        else:
            taken[name.removeprefix(f"{_WEIGHTS}/") if whole else name] = tensor
    if not taken:
        raise CheckpointError(f"{label} holds no weights. Save them with Keras: model.save_weights('my.weights.h5').")
    names = _names(taken, read.texts, config, numbered=any("/vars/" in f"/{name}" for name in taken))
    tensors = {names[name]: tensor for name, tensor in taken.items()}
    notices = []
    if left_out:
        notices.append(
            "Left out, tensors beside the weights, such as those of optimizer and random generators: "
            f"{listed(left_out, _MOST_SHOWN)}."
        )
    return Foreign(tensors, tuple(_found(tensors, config, version)), tuple(notices))


def _found(tensors: Mapping[str, Tensor], config: ModelConfig | None, version: str) -> Iterator[tuple[Dialect, Found]]:
    in_keras = ((keras.DIALECT, each) for each in keras.recurrent_in(tensors, config, version))
    recurrent: list[tuple[Dialect, Found]] = [*in_keras]
    recurrent += ((tensorflow1.DIALECT, each) for each in tensorflow1.find(tensors))
    yield from recurrent
    keys = {key for _, each in recurrent for key in each.keys}
    names = Counter(each.name for _, each in recurrent if not isinstance(each, Refused))
    for other in keras.others_in({key: tensor for key, tensor in tensors.items() if key not in keys}, config):
        if other.name not in names:
            yield keras.DIALECT, other


def _names(
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, Mapping[str, str]],
    config: ModelConfig | None,
    *,
    numbered: bool,
) -> dict[str, str]:
    """The name of each tensor, by its path in the file: the path itself where a shorter one would not be its alone."""
    if numbered:
        names = {path: _of_numbered(path, tensors, texts, config) for path in tensors}
    else:
        names = {path: _of_named(path) for path in tensors}
    counts = Counter(names.values())
    groups: dict[str, bool] = defaultdict(bool)
    for path, name in names.items():
        groups[path.partition("/")[0]] |= counts[name] > 1
    return {path: path if groups[path.partition("/")[0]] else name for path, name in names.items()}


def _of_named(path: str) -> str:
    """Of a file that names tensors: the group of the layer, then what follows it in the tensor's own name.

    That name may begin with the model and the layer once more: ``first/sequential/first/lstm_cell/kernel``.
    """
    group, *rest = path.split("/")
    again = re.compile(rf"{re.escape(group)}(?:_[0-9]+)?")
    last = max((n + 1 for n, part in enumerate(rest[:-1]) if again.fullmatch(part)), default=0)
    return "/".join([group, *rest[last:]])


def _of_numbered(
    path: str, tensors: Mapping[str, Tensor], texts: Mapping[str, Mapping[str, str]], config: ModelConfig | None
) -> str:
    """Of a file that numbers tensors: the names of the layers, which lie beside them or follow from the configuration.

    ``layers/lstm_1/cell/vars/0`` is ``second/cell/kernel`` where the layer's name is ``second``.
    """
    match = _NUMBERED.fullmatch(path)
    if match is None:
        return path
    parts = match["path"].split("/")
    named = []
    for n, part in enumerate(parts):
        if n and parts[n - 1] in _LISTS:
            home = "/".join(parts[: n + 1])
            own = texts.get(f"{home}/vars", {}).get("name")
            known = None if config is None else config.numbers.get(home.replace(_LISTS[1], _LISTS[0]))
            named.append(own or known or part)
        elif part not in _LISTS:
            named.append(part)
    number = int(match["number"])
    names = _variables(match["path"], (parts[-1], texts.get(f"{match['path']}/vars", {}).get("name", "")), tensors)
    last = (names[number],) if number < len(names) else ("vars", match["number"])
    return "/".join([*(part.replace("/", ".") for part in named), *last])


def _variables(path: str, known: Sequence[str], tensors: Mapping[str, Tensor]) -> Sequence[str]:
    """The names of a layer's tensors, in their order; none where what it is known as is no class whose order is."""
    count = sum(f"{path}/vars/{n}" in tensors for n in range(4))
    for pattern, names in _NAMES:
        if any(map(pattern.fullmatch, known)) and 1 <= count <= len(names):
            is_cell = "recurrent_kernel" in names
            return names if not is_cell or count >= 2 else ()
    return ()
