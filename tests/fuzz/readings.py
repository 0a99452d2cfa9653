"""Independent readings: what files hold, found without any of the code under test."""

import io
import json
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import yaml

#: More bytes than these are compared by nobody: what is formed here would take too long.
_MOST_BYTES = 1 << 26

_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class UnreadableError(Exception):
    """This reading has no word on these bytes."""


def values(tensor):
    """A tensor as dtype, shape and the bytes of its entries in C order; None for more than can be compared."""
    tensor = torch.Tensor.detach(tensor)  # a file may have given this one attributes of its own
    about = str(tensor.dtype), tuple(tensor.shape)
    if tensor.numel() * tensor.element_size() > _MOST_BYTES:
        return *about, None
    plain = tensor.contiguous()
    plain = plain.as_strided((plain.numel(),), (1,))
    return *about, plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


# .safetensors


def safetensors(data):
    """Dtype, shape and bytes of each tensor, and the metadata, by the words of the format's specification."""
    n = int.from_bytes(data[:8], "little")
    if len(data) < 8 or n > len(data) - 8:
        raise UnreadableError("the header is longer than the file")
    header = json.loads(data[8 : 8 + n].decode())
    about = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        content = data[8 + n :][begin:end]
        dtype = _SAFETENSORS[entry["dtype"]]
        if len(content) != math.prod(entry["shape"]) * getattr(torch, dtype).itemsize or not 0 <= begin <= end:
            raise UnreadableError(f"{name} is not as long as its shape says")
        tensors[name] = (f"torch.{dtype}", tuple(entry["shape"]), content)
    return tensors, about


# torch.save


class Tree(list):
    """All tensors of a file by their full paths, in order; ``flat`` where it is one mapping of names to tensors."""

    flat = False
    endless = False


def by_torch(data):
    """What torch itself loads, without a memory map."""
    return _tree(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True, mmap=False), values)


def by_parts(data):
    """What the parts of such a file hold, put together here: members of an archive, storages of an older file.

    Its attribute ``endless`` says whether it has keys that torch might not come to an end with.
    """
    return _by_zip(data) if data.startswith(b"PK") else _by_legacy(data)


def _by_zip(data):
    """By :mod:`zipfile`, which checks sums and sizes, and a pickle of names alone."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise UnreadableError("not one pickle")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UnreadableError("another byte order")
        pickled = _Names(io.BytesIO(archive.read(names[0])))
        value = pickled.load()
        tree = _tree(value, lambda record: record.values(record.whole(archive.read(f"{folder}data/{record.key}"))))
    tree.endless = pickled.odd_keys
    return tree


def _by_legacy(data):
    file = io.BytesIO(data)
    pickles = [_Names(file) for _ in range(5)]
    *_, value, keys = [pickle.load() for pickle in pickles]
    storages = {}
    for key in keys:
        n = int.from_bytes(file.read(8), "little", signed=True)
        storages[key] = file.read(n * getattr(torch, pickles[3].storages[key][1]).itemsize)
    tree = _tree(value, lambda record: record.values(storages[record.key]))
    tree.endless = any(each.odd_keys for each in pickles)
    return tree


class _Anything:
    """Stands for whatever a pickle names that is no tensor; entries that are set on it can be looked through."""

    def __new__(cls, *_, **__):
        made = object.__new__(cls)
        made.entries = {}
        return made

    def __init__(self, *_, **__):
        pass

    def __call__(self, *_, **__):
        return _Anything()

    def __setstate__(self, _):
        pass

    def __setitem__(self, key, value):
        self.entries[key] = value

    def append(self, *_):
        pass

    def extend(self, *_):
        pass


class _Name(str):
    """The dtype of a storage by its name, which a pickle may also call."""

    def __call__(self, *_):
        return _Anything()


class _Mapping(dict):
    """A dictionary whose attributes do not matter."""

    def __setstate__(self, _):
        pass


class _Record:
    """A tensor as the pickle describes it."""

    def __init__(self, storage, offset, size, stride, *_):
        (_, self.dtype, self.key, _, self.n), self.offset = storage[:5], offset
        self.size, self.stride = tuple(size), tuple(stride)

    def whole(self, data):
        """The bytes of the storage, if they are as many as the pickle says; older files say it again beside them."""
        if len(data) != self.n * getattr(torch, self.dtype).itemsize:
            raise UnreadableError("a storage is not as long as it is said to be")
        return data

    def values(self, data):
        """As :func:`values`, of the bytes of the storage."""
        dtype = getattr(torch, self.dtype)
        if math.prod(self.size) * dtype.itemsize > _MOST_BYTES:
            return str(dtype), self.size, None
        if not math.prod(self.size):
            return str(dtype), self.size, b""
        places = np.array(self.offset)
        for size, stride in zip(self.size, self.stride, strict=True):
            places = places[..., None] + np.arange(size) * stride
        if places.min() < 0 or places.max() >= len(data) // dtype.itemsize:
            raise UnreadableError("a tensor lies outside its storage")
        whole = data[: len(data) // dtype.itemsize * dtype.itemsize]
        return str(dtype), self.size, np.frombuffer(whole, f"V{dtype.itemsize}")[places.reshape(-1)].tobytes()


_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}


class _Names(pickle._Unpickler):
    """Finds nothing but names: no code is imported, whatever the pickle asks for. As torch, takes any protocol.

    Keys that are no text, bytes or number are never hashed, which may take endless time, but replaced.
    """

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}
        self.odd_keys = False

    def _set(self, items):
        for key, value in zip(items[::2], items[1::2], strict=True):
            plain = isinstance(key, str | bytes | int | float | None)
            self.odd_keys |= not plain
            self.stack[-1][key if plain else object()] = value

    def _set_one(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _make_dict(self):
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def _make(self):
        args, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(kind.__new__(kind, *args) if isinstance(kind, type) else _Anything())

    def _make_with_names(self):
        self.stack.pop()
        self._make()

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.NEWOBJ[0]: _make,
        pickle.NEWOBJ_EX[0]: _make_with_names,
        pickle.PROTO[0]: lambda self: self.read(1),
        pickle.FRAME[0]: lambda self: self.read(8),
        pickle.SETITEM[0]: _set_one,
        pickle.SETITEMS[0]: lambda self: self._set(self.pop_mark()),
        pickle.DICT[0]: _make_dict,
        pickle.EMPTY_SET[0]: lambda self: self.stack.append([]),
        pickle.ADDITEMS[0]: lambda self: self.stack[-1].extend(self.pop_mark()),
        pickle.FROZENSET[0]: lambda self: self.stack.append(self.pop_mark()),
    }

    def find_class(self, module, name):
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return _Name(_STORAGES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return _Mapping
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Record
        if (module, name) in (
            ("torch._utils", "_rebuild_parameter"),
            ("torch._utils", "_rebuild_parameter_with_state"),
        ):
            return lambda record, *_: record
        if (module, name) == ("torch", "Size"):
            return tuple
        return _Anything

    def persistent_load(self, pid):
        return self.storages.setdefault(pid[2], pid)  # what is said of a storage first holds


def _tree(value, read):
    """Every tensor below a value by its path."""
    found = Tree()
    tensors = torch.Tensor | _Record
    empty = {}

    def below(item):
        if isinstance(item, _Anything):
            item = item.entries
        if isinstance(item, dict):
            return list(dict.items(item))
        return list(enumerate(item)) if isinstance(item, list | tuple) else []

    def holds(item):
        """Whether there is a tensor in it; each is looked through once, however often it is there."""
        pending = [(item, iter(below(item)))]
        while pending:
            current, rest = pending[-1]
            known = empty.setdefault(id(current), [current, not isinstance(current, tensors)])
            each = next(rest, None)
            if each is None or not known[1]:
                pending.pop()
                if pending and not known[1]:
                    empty[id(pending[-1][0])][1] = False
            elif id(each[1]) not in empty:
                pending.append((each[1], iter(below(each[1]))))
            elif not empty[id(each[1])][1]:
                known[1] = False
        return not empty[id(item)][1]

    pending = [("", value)]
    while pending:
        path, item = pending.pop()
        if len(found) > 100_000:
            raise UnreadableError("too much to look through")
        if isinstance(item, tensors):
            found.append((path, read(item)))
        elif holds(item):
            pending += reversed([(f"{path}.{key}" if path else str(key), each) for key, each in below(item)])
    items = dict.items(value) if isinstance(value, dict) else [(None, None)]
    found.flat = all(isinstance(key, str) and isinstance(each, tensors) for key, each in items)
    return found


# Results


def _document():
    """The reader printed in the description of the format."""
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    return names["read_dense"]


#: Reads a result as ``docs/format.md`` prints it.
read_dense = _document()


def refuse_constant(text):
    """For :func:`json.loads`: NaN and infinity are no JSON."""
    raise UnreadableError(f"{text} is not JSON")


def description(data):
    """The metadata of a result, if it is as the document says."""
    _, about = safetensors(data)
    about = json.loads(about["btcompress"], parse_constant=refuse_constant)
    source = about["source"]
    _demand(_whole(about["version"], 1) and about["version"] <= 5, "version")
    _demand(_whole(source["n_bytes"]) and _whole(source["n_params"]) and isinstance(source["name"], str), "source")
    _demand(all(isinstance(step, dict) for step in about["history"]), "history")
    _demand(all(isinstance(notice, str) for notice in about["notices"]), "notices")
    _demand(all(isinstance(key, str) for key in about["keys"]), "keys")
    for key, m in about["matrices"].items():
        sizes = (*m["in_modes"], *m["out_modes"], *m["tucker_ranks"])
        _demand(all(_whole(size, 1) for size in (*sizes, m["cp_rank"], m["in_size"], m["out_size"], m["n_gates"])), key)
        _demand(len(m["in_modes"]) == len(m["out_modes"]) == len(m["tucker_ranks"]) > 0, key)
        _demand(m["in_size"] <= math.prod(m["in_modes"]) and m["out_size"] <= math.prod(m["out_modes"]), key)
        _demand(m["out_size"] % m["n_gates"] == 0 == math.prod(m["out_modes"]) % m["n_gates"], key)
        _demand(m.get("n_separate", 4) in (3, 4), key)
        _demand(_finite(m["weight_error"]) and _finite(m["svd_error"]) and _whole(m["svd_rank"]), key)
    for name, p in about.get("precisions", {}).items():
        dtypes = ("float64", "float32", "float16", "bfloat16")
        _demand(p["dtype"] in dtypes and p.get("stored", "float16") in dtypes, name)
        if "bits" in p:
            _demand(_whole(p["bits"], 2) and p["bits"] <= 8 and _whole(p["group"], 8) and p["group"] <= 2**40, name)
            _demand(p["shape"] and all(_whole(size, 1) for size in p["shape"]), name)
    _demand(all(_finite(value["weight_error"]) for value in about.get("rounded", {}).values()), "rounded")
    _demand(about["version"] >= 4 or not about.get("precisions"), "precisions")
    _demand(set(about.get("nonlinearities", {}).values()) <= {"tanh", "relu"}, "nonlinearities")
    _demand(about["version"] == 5 or not about.get("nonlinearities"), "nonlinearities")
    separate = {m["n_separate"] for m in about["matrices"].values() if m["gates"] == "separate" and "n_separate" in m}
    _demand(about["version"] == 5 or 3 not in separate, "separate gates of a GRU")
    return about


def arranged(about):
    """The containers of a description, each tensor and each number in them as the JSON object that says it."""
    layout, placed = about.get("layout") or {}, []

    def read(node):
        if not isinstance(node, dict):
            plain = node is None or isinstance(node, str | bool) or abs(node) < math.inf
            _demand(plain and (not isinstance(node, int) or abs(node) < 2**63), "a plain value")
            return node
        ((kind, below),) = [
            (name, node[name]) for name in ("dict", "list", "tuple", "tensor", "number") if name in node
        ]
        if kind == "dict":
            pairs = [pair for entry in below for pair in (run(entry) if isinstance(entry, dict) else [entry])]
            found = {key: each if isinstance(each, tuple) else read(each) for key, each in pairs}
            _demand(len(found) == len(pairs), "keys")
            return ("dict", found)
        if kind in ("list", "tuple"):
            return (kind, [read(each) for each in below])
        if kind == "tensor":
            return place(below)
        return ("number", below, node["dtype"], node.get("axes", 0))

    def place(number):
        _demand(_whole(number), "the number of a tensor")
        placed.append(about["keys"][number])
        return ("tensor", placed[-1])

    def run(entry):
        for number in range(entry["tensors"][0], sum(entry["tensors"])):
            key, prefix = about["keys"][number], entry.get("prefix", "")
            _demand(key.startswith(prefix), "a prefix")
            yield key[len(prefix) :], place(number)

    if layout.get("root") is None:
        return None
    found = read(layout["root"])
    _demand(sorted(placed) == sorted(about["keys"]), "the places of tensors")
    return found


def _demand(condition, where):
    if not condition:
        raise UnreadableError(f"{where} is not as described")


def _whole(value, least=0):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _finite(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def dense_sizes(about):
    """Entries of each factorized matrix of a result."""
    return {key: m["in_size"] * m["out_size"] * len(_parts(key, m)) for key, m in about["matrices"].items()}


def _parts(key, m):
    """The names of the forms of a matrix, whose rows are stacked."""
    gates = "rzn" if m.get("n_separate") == 3 else "ifgo"
    return [key] if m["gates"] == "fused" else [f"{key}.gate_{gate}" for gate in gates]


def magnitude(about, tensors, key):
    """What the entries of a matrix cannot exceed, each of its block terms summed without signs; else infinity."""
    m = about["matrices"][key]
    n_terms = m["cp_rank"] * math.prod(m["tucker_ranks"])
    bound = 0.0
    for name in _parts(key, m):
        product = float(n_terms)
        for each in (f"{name}.cores", *(f"{name}.factors.{k}" for k in range(len(m["in_modes"])))):
            tensor = tensors.get(about["aliases"].get(each, each))
            product *= 1.0 if tensor is None else float(tensor.double().abs().max())
        bound = max(bound, product if math.isfinite(product) else math.inf)
    return bound


# Sequences


def arrays(data, suffix, layer):
    """The arrays of a layer in a data file, by NumPy, which checks sums and sizes, or by the reading above."""
    if suffix == ".npy":
        return {"x": np.load(io.BytesIO(data), allow_pickle=False)}
    names = {part: part if layer is None else f"{layer}/{part}" for part in ("x", "y", "lengths", "h0", "c0")}
    if suffix == ".npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {part: file[name] for part, name in names.items() if name in file.files}
    tensors, _ = safetensors(data)
    return {part: _array(*tensors[name]) for part, name in names.items() if name in tensors}


def _array(dtype, shape, content):
    """An array, of float32 where NumPy has no such dtype."""
    name = dtype.removeprefix("torch.")
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return torch.frombuffer(bytearray(content), dtype=getattr(torch, name)).reshape(shape).float().numpy()
    return np.frombuffer(content, name).reshape(shape)


# Plans


class _Undated(yaml.SafeLoader):
    """What looks like a date is text: plans have none, and some that look so are none."""

    yaml_implicit_resolvers: ClassVar = {
        first: [each for each in resolvers if "timestamp" not in each[0]]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def plan(data):
    """A plan as PyYAML reads it."""
    return yaml.load(data.decode("utf-8"), _Undated)
