"""What an HDF5 file holds: told by a process of its own, which the library that reads such files may take down.

A program, run by :mod:`btcompress.checkpoint.hdf5files`: its arguments are the file, and where in it the HDF5 file
begins and ends; it writes JSON to standard output. It looks at the description of the data alone, never at the data,
follows nothing out of the file, and has limits of memory and time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from io import RawIOBase, UnsupportedOperation
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from h5py.h5d import DatasetID
    from h5py.h5g import GroupID
    from h5py.h5t import TypeID
    from typing_extensions import Buffer

#: What the process may take: bytes of address space, and seconds of the processor.
MOST_BYTES, MOST_SECONDS = 1 << 32, 20
#: Most links of a file, groups within one another, and bytes of a text.
_MOST_LINKS, _MOST_DEPTH, _MOST_TEXT = 1 << 20, 64, 1 << 26
#: Texts that are told of: of the file or the group of its weights, of the group of a layer, and of a tensor.
_TEXTS = ("model_config", "keras_version", "name", "dtype")
#: Turns the search for plugins off, by which a file could choose code to run.
_SETTINGS = {"HDF5_PLUGIN_PRELOAD": "::", "HDF5_PLUGIN_PATH": "", "HDF5_USE_FILE_LOCKING": "FALSE"}


class RefusedError(Exception):
    """Something that is not read, as the end of a sentence about the file."""


def described(path: str, start: int, size: int) -> dict[str, Any]:
    """What an HDF5 file that lies in a file holds.

    Args:
        path: of the file.
        start: where the HDF5 file begins in it, in bytes.
        size: of the HDF5 file, in bytes.

    Returns:
        ``datasets``, each with ``path``, ``dtype`` as torch calls it, ``shape``, and ``start`` in the HDF5 file in
        bytes; and ``texts`` by the path of the group or tensor that has them.

    Raises:
        RefusedError: it holds what is not read.
        Exception: whatever the library raises for a damaged file.
    """
    from h5py import File, h5d

    with open(path, "rb") as file, File(_Window(file, start, size), "r") as opened:  # noqa: PTH123
        datasets: list[dict[str, Any]] = []
        texts: dict[str, dict[str, str]] = {}
        for name, found in _objects(opened.id):
            own = dict(_texts(found))
            if own:
                texts[name] = own
            if isinstance(found, h5d.DatasetID):
                datasets.append({"path": name, **_described(found, name, own.get("dtype"), size)})
        return {"datasets": datasets, "texts": texts}


class _Window(RawIOBase):
    """Bytes of a file from one place to another, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        if not 0 <= self._at <= self._at + len(view) <= self._size:
            # The library would take what it did not get for read.
            raise EOFError("it ends before what it describes")
        self._file.seek(self._start + self._at)
        self._at += len(view)
        view[:] = self._file.read(len(view))
        return len(view)

    def write(self, _data: Buffer) -> int:
        raise UnsupportedOperation("only to read")

    def truncate(self, _size: int | None = None) -> int:
        raise UnsupportedOperation("only to read")

    def flush(self) -> None:
        pass


def _objects(root: GroupID) -> Iterator[tuple[str, GroupID | DatasetID]]:
    """Every group and every tensor below a group, each by its first path; a group twice would be a circle."""
    from h5py import h5d, h5g, h5l, h5o

    seen: set[int] = set()
    waiting: list[tuple[str, int, GroupID | DatasetID]] = [("", 0, h5g.open(root, b"/"))]
    n_links = 0
    while waiting:
        name, depth, found = waiting.pop()
        if isinstance(found, h5g.GroupID):
            address = h5o.get_info(found).addr
            if address in seen or depth > _MOST_DEPTH:
                raise RefusedError(f"has groups twice, in a circle or too deep, at {_shown(name)}")
            seen.add(address)
        yield name, found
        if not isinstance(found, h5g.GroupID):
            continue
        links: list[bytes] = []
        found.links.iterate(links.append)
        n_links += len(links)
        if n_links > _MOST_LINKS:
            raise RefusedError(f"has more than {_MOST_LINKS:,} links")
        for link in reversed(links):
            path = f"{name}/{link.decode('utf-8', 'surrogateescape')}".lstrip("/")
            kind = found.links.get_info(link).type
            if kind != h5l.TYPE_HARD:
                what = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}.get(kind, "a link")
                raise RefusedError(f"has {what} at {_shown(path)}")
            below = h5o.open(found, link)
            if not isinstance(below, h5g.GroupID | h5d.DatasetID):
                raise RefusedError(f"has neither a group nor a tensor at {_shown(path)}")
            waiting.append((path, depth + 1, below))


def _described(dataset: DatasetID, name: str, told: str | None, size: int) -> dict[str, Any]:
    """The dtype, shape and place of a tensor."""
    from h5py import h5d, h5s

    properties = dataset.get_create_plist()
    if properties.get_external_count():
        raise RefusedError(f"has a tensor whose data lie in another file: {_shown(name)}")
    layout = properties.get_layout()
    if layout == h5d.VIRTUAL:
        raise RefusedError(f"has a tensor that is made of others, of this file or another: {_shown(name)}")
    if layout != h5d.CONTIGUOUS or properties.get_nfilters():
        raise RefusedError(f"has a tensor in chunks, packed or in its own header: {_shown(name)}")
    space = dataset.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        raise RefusedError(f"has a tensor without a shape: {_shown(name)}")
    shape = [int(each) for each in space.get_simple_extent_dims()]
    dtype, n_bytes = _dtype(dataset.get_type(), told)
    if dtype is None:
        raise RefusedError(f"has a tensor of a dtype that is not read, such as text or objects: {_shown(name)}")
    n_bytes *= prod(shape)
    start = dataset.get_offset() if n_bytes else 0
    if start is None:
        raise RefusedError(f"has a tensor that no data were written for: {_shown(name)}")
    if n_bytes > size or not 0 <= start <= size - n_bytes or (n_bytes and dataset.get_storage_size() != n_bytes):
        raise RefusedError(f"has a tensor whose data do not lie where they should: {_shown(name)}")
    return {"dtype": dtype, "shape": shape, "start": int(start)}


def _dtype(kind: TypeID, told: str | None) -> tuple[str | None, int]:
    """What torch calls a dtype, and bytes of a value; None for one that is not read as it lies there."""
    from h5py import h5t

    size = int(kind.get_size())
    if kind.get_class() == h5t.OPAQUE and size == 2 and told == "bfloat16":
        return "bfloat16", size
    if kind.get_class() == h5t.ENUM and size == 1 and kind.dtype == bool:
        return "bool", size
    plain = {
        "float16": h5t.IEEE_F16LE,
        "float32": h5t.IEEE_F32LE,
        "float64": h5t.IEEE_F64LE,
        **{f"int{bits}": getattr(h5t, f"STD_I{bits}LE") for bits in (8, 16, 32, 64)},
        **{f"uint{bits}": getattr(h5t, f"STD_U{bits}LE") for bits in (8, 16, 32, 64)},
    }
    return next((name for name, each in plain.items() if kind.equal(each)), None), size


def _texts(found: GroupID | DatasetID) -> Iterator[tuple[str, str]]:
    """The texts of a group or a tensor that are told of."""
    from h5py import Dataset, Group, h5a, h5g, h5s, h5t

    for key in _TEXTS:
        if not h5a.exists(found, key.encode()):
            continue
        about = h5a.open(found, key.encode())
        is_text = (
            about.get_type().get_class() == h5t.STRING and about.get_space().get_simple_extent_type() == h5s.SCALAR
        )
        if not is_text or about.get_storage_size() > _MOST_TEXT:
            continue
        value = (Group if isinstance(found, h5g.GroupID) else Dataset)(found).attrs[key]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if isinstance(text, str) and len(text) <= _MOST_TEXT:
            yield key, text


def _shown(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:200]}..."


def _limit() -> None:
    """Set the limits, where the system has such."""
    try:
        import resource
    except ImportError:
        return
    for which, most in (
        (resource.RLIMIT_AS, MOST_BYTES),
        (resource.RLIMIT_CPU, MOST_SECONDS),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def answer(path: str, start: int, size: int) -> dict[str, Any]:
    """What the file holds, or why it is ``refused``, or how it is ``damaged``."""
    try:
        return described(path, start, size)
    except RefusedError as refused:
        return {"refused": str(refused)}
    except Exception as error:  # whatever the library raises, the file is damaged
        return {"damaged": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    """Write the answer on the file that the arguments name."""
    path, start, size = sys.argv[1:]
    os.environ.update(_SETTINGS)
    for name in [name for name in os.environ if name.startswith("HDF5_VOL") or name == "HDF5_DRIVER"]:
        del os.environ[name]
    _limit()
    sys.stdout.write(json.dumps(answer(path, int(start), int(size))))


if __name__ == "__main__":
    main()
