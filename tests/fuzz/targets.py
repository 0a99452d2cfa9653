"""For each kind of file: read it as the commands do, and compare what was accepted with an independent reading.

A check returns where the answer is right and lets a ``BTCompressError`` pass where the file is refused. Anything else
that it raises is a fault: :class:`WrongAnswerError` for a wrong answer, whatever was raised for one that is none.
"""

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

import btcompress
from btcompress.checkpoint import read
from btcompress.checkpoint.layout import Number, Place
from btcompress.checkpoint.layoutrecords import layout_text
from btcompress.finetune.data import open_data
from btcompress.kinds import KINDS as MATRIX_KINDS
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan, read_plan
from fuzz import graphs, limits, readings, samples, states
from fuzz.files import WrongAnswerError, placed, reading, same
from fuzz.mutators import legacy, npy, odd, raw, safetensors, yamls, zips

#: More entries than these are not formed; what claims more bytes than the second must be refused.
_FEW_ENTRIES = 2**20
_FAR_TOO_MANY_BYTES = 2**32


# Dense checkpoints


def dense(name, data, folder):
    """Any dense checkpoint, as ``inspect`` reads it and plans for it."""
    for shard, content in samples.shards().items():
        if not (folder / shard).exists():
            placed(folder, shard, content)
    checkpoint = read(placed(folder, name, data))
    make_plan(checkpoint, ShapeRequest(), matrices=MATRIX_KINDS)
    if sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.tensors.values()) > limits.ALLOWED:
        result = btcompress.factorize(folder / name, cp_rank=1, tucker_rank=1)
        btcompress.save(result, folder / "grown.safetensors", force=True)
        raise WrongAnswerError("formed what has no place in memory")
    found = {key: readings.values(tensor) for key, tensor in checkpoint.tensors.items()}
    if not data.startswith(b"PK") and data[8:9] == b"{":
        with reading():
            expected, _ = readings.safetensors(data)
        _compare(found, expected)
    elif data.lstrip().startswith(b"{"):
        with reading():
            weight_map = json.loads(data)["weight_map"]
            tensors = {shard: dict(_shard_tensors(shard)) for shard in set(weight_map.values())}
            expected = {key: tensors[shard][key] for key, shard in weight_map.items()}
        _compare(found, expected)
    else:
        fewer = any("Left out" in notice or "single numbers" in notice for notice in checkpoint.notices)
        _compare_torch(found, data, fewer)
    if checkpoint.layout is not None:
        keys = list(checkpoint.tensors)
        again = json.loads(layout_text(checkpoint.layout, keys), parse_constant=readings.refuse_constant)
        with reading():
            same(_nodes(checkpoint.layout.root), readings.arranged({"keys": keys, "layout": again}), "the layout")


def _nodes(node):
    """The nodes of a layout as :func:`readings.arranged` has them."""
    if isinstance(node, Place):
        return ("tensor", node.key)
    if isinstance(node, Number):
        return ("number", node.value, str(node.dtype)[6:], node.n_axes)
    if isinstance(node, dict):
        return ("dict", {key: _nodes(each) for key, each in node.items()})
    return (type(node).__name__, list(map(_nodes, node))) if isinstance(node, list | tuple) else node


def _shard_tensors(shard):
    content = samples.shards()[shard]
    return readings.safetensors(content)[0] if shard.endswith("safetensors") else readings.by_torch(content)


def _compare(found, expected):
    same(sorted(found), sorted(expected), "the list of tensors")
    for key, value in found.items():
        _compare_tensor(key, value, [expected[key]])


def _compare_tensor(key, value, candidates):
    """A tensor's dtype, shape and bytes are those of one of several; bytes that no one formed are not compared."""
    if not any((value[:2] == other[:2] and None in (value[2], other[2])) or value == other for other in candidates):
        differing = "dtype or shape" if all(value[:2] != other[:2] for other in candidates) else "values"
        raise WrongAnswerError(f"the {differing} of a tensor: an independent reading finds others", key[:200])


def _compare_torch(found, data, left_out):
    with reading():
        tree = readings.by_parts(data)
    _compare_tree(found, tree, left_out)
    if not tree.endless:
        theirs = None
        # More is read than torch reads, such as classes left out and later protocols: then the parts alone tell.
        with contextlib.suppress(Exception, limits.OutOfTime):
            loads = [readings.by_torch(data) for _ in range(3)]
            # In some damaged files torch leaves memory as it was, which is another each time, or zeros.
            theirs = loads[0] if data.startswith(b"PK") and loads[0] == loads[1] == loads[2] else None
        if theirs is not None and not _zeroed(theirs, tree):
            _compare_tree(found, theirs, left_out)


def _zeroed(theirs, tree):
    """Whether torch found nothing but zeros where the parts, whose checksums were compared, are something else."""
    differing = [ours for ours, each in zip(theirs, tree, strict=False) if ours != each]
    return bool(differing) and all(not any(value[2] or b"") for _, value in differing)


def _compare_tree(found, tree, left_out):
    if tree.flat:
        same(list(found), [path for path, _ in tree], "the list of tensors")
    elif not left_out:
        same(len(found), len(tree), "the number of tensors")
    for key, value in found.items():
        _compare_tensor(key, value, [each for path, each in tree if path == key or path.endswith(f".{key}")])


# Results


def compressed(data, folder):
    """A result: loaded, reported on, written again, and made dense."""
    path = placed(folder, "model.bt.safetensors", data)
    loaded = btcompress.load(path)
    with reading():
        tensors, _ = readings.safetensors(data)
        about = readings.description(data)
        sizes = readings.dense_sizes(about)
    _compare_description(loaded, btcompress.report(loaded).to_dict(), about)
    precisions = about.get("precisions", {})
    for key in about["keys"]:
        stored = about["aliases"].get(key, key)
        if key not in about["matrices"] and stored not in precisions:
            _compare_tensor(key, readings.values(loaded.tensors[key]), [tensors[stored]] if stored in tensors else [])
    again = folder / "again.safetensors"
    btcompress.save(loaded, again, force=True)
    same(btcompress.load(again).keys, loaded.keys, "the list of keys written again")
    same(btcompress.load(again).layout, loaded.layout, "the layout written again")
    _compare_precisions(loaded, about)
    if sum(sizes.values()) <= _FEW_ENTRIES:
        _compare_dense(btcompress.to_dense(loaded), loaded, about, path)
    elif sum(sizes.values()) * 2 > _FAR_TOO_MANY_BYTES:
        btcompress.to_dense(loaded)
        raise WrongAnswerError("formed what has no place in memory")


def _compare_description(loaded, report, about):
    same(list(loaded.keys), about["keys"], "the list of keys")
    same(list(loaded.history), about["history"], "the history")
    same(
        [loaded.source.n_params, loaded.source.n_bytes], [about["source"][n] for n in ("n_params", "n_bytes")], "a size"
    )
    rows = {row["name"]: row for row in report["matrices"]}
    same(sorted(rows), sorted({*about["matrices"], *about.get("rounded", {})}), "the list of matrices")
    for key, m in about["matrices"].items():
        shape = loaded.matrices[key].shape
        same(list(shape.part.in_modes + shape.part.out_modes), m["in_modes"] + m["out_modes"], "the modes")
        same([shape.part.n_blocks, list(shape.part.ranks)], [m["cp_rank"], m["tucker_ranks"]], "the ranks")
        same(loaded.matrices[key].weight_error, float(m["weight_error"]), "a weight error")
    same(report["bench"] is None, about.get("bench") is None, "whether there is a bench")
    if loaded.bench is not None:
        told, cases = report["bench"], about["bench"]["cases"]
        same(
            [(case["batch"], case["steps"]) for case in told["cases"]],
            [(c["batch"], c["steps"]) for c in cases],
            "sizes",
        )
        ways = [way["seconds"] for case in cases for way in case["ways"]]
        same([way["seconds"] for case in told["cases"] for way in case["ways"]], ways, "the seconds of a bench")
    with reading():
        layout, expected = about.get("layout") or {}, readings.arranged(about)
    same(loaded.layout is None, about.get("layout") is None, "whether there is a layout")
    if loaded.layout is not None:
        same(_nodes(loaded.layout.root), expected, "the layout")
        same(loaded.layout.metadata, layout.get("metadata", {}), "texts of a layout")
        same(loaded.layout.ties, layout.get("ties", {}), "ties of a layout")
    json.dumps(report, allow_nan=False)


def _compare_precisions(loaded, about):
    for name, p in about.get("precisions", {}).items():
        how = loaded.stored[name]
        if "bits" in p:
            said = [how.integers.bits, how.integers.group, list(how.shape)]
            same(said, [p["bits"], p["group"], p["shape"]], "a precision")
        else:
            same(str(how), f"torch.{p['stored']}", "a precision")
    errors = {key: float(value["weight_error"]) for key, value in about.get("rounded", {}).items()}
    same({key: matrix.weight_error for key, matrix in loaded.rounded.items()}, errors, "the rounded matrices")


def _compare_dense(found, loaded, about, path):
    """The dense tensors are those of the reader that the description of the format prints."""
    with reading():
        expected = readings.read_dense(_for_numpy(path, about))
    same(list(found), list(expected), "the list of dense tensors")
    for key in about["keys"]:
        if about["aliases"].get(key, key) in about.get("precisions", {}):
            ours = found[key].float() if found[key].dtype == torch.bfloat16 else found[key]
            _same_array(ours, expected[key], "a tensor in fewer bits")
    for key, m in about["matrices"].items():
        bound = readings.magnitude(about, loaded.tensors, key)
        if not math.isfinite(bound):
            continue
        ours, theirs = found[key].double().numpy(), expected[key].astype(np.float64)
        same(ours.shape, theirs.shape, "the shape of a dense matrix")
        limits = torch.finfo(getattr(torch, m["dtype"]))
        if bound >= limits.max:
            continue
        if not np.allclose(ours, theirs, rtol=2 * limits.eps, atol=1e-9 * bound + limits.tiny * limits.eps):
            raise WrongAnswerError("a dense matrix is not that of the reader in docs/format.md")


def _for_numpy(path, about):
    """The same result in dtypes that NumPy has."""
    tensors = load_safetensors(path.read_bytes())
    names = ("float64", "float32", "float16", "bfloat16")
    if all(m["dtype"] in names for m in about["matrices"].values()) and all(
        not tensor.is_floating_point() or str(tensor.dtype)[6:] in names for tensor in tensors.values()
    ):
        return path
    plain = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    matrices = {key: {**m, "dtype": "float64"} for key, m in about["matrices"].items()}
    other = path.with_name("numpy.safetensors")
    other.unlink(missing_ok=True)
    save_file(plain, other, {"btcompress": json.dumps({**about, "matrices": matrices})})
    return other


# Plans


def plan(data, folder):
    """A plan file for a small checkpoint."""
    checkpoint, every = samples.planned()
    found = read_plan(placed(folder, "plan.yaml", data), checkpoint, every)
    with reading():
        value = readings.plan(data)
        entries = value["matrices"]
        sizes = {each.name: each.shape for each in every.matrices}
    planned = {each.name: each for each in found.matrices}
    dense = {each.name for each in found.left_dense} - {each.name for each in every.left_dense}
    same(sorted({*planned, *dense}), sorted(entries), "the list of matrices")
    for name, each in planned.items():
        with reading():
            _compare_planned(each, entries[name], sizes[name], found.notices)


def _compare_planned(planned, entry, known, notices):
    shape = planned.shape.part
    same(entry.get("dense", False), False, "dense")
    same((planned.shape.in_size, planned.shape.out_size), (known.in_size, known.out_size), "the size")
    same(list(shape.in_modes), entry["in_modes"], "in_modes")
    same(list(shape.out_modes), entry["out_modes"], "out_modes")
    same(shape.n_blocks, entry.get("cp_rank", 1), "cp_rank")
    same(shape.core, entry.get("core", "full"), "core")
    same(planned.shape.gates, entry.get("gates", "fused"), "gates")
    same(
        [shape.row_order, shape.column_order],
        [entry.get(name, False) for name in ("row_order", "column_order")],
        "orders",
    )
    if list(shape.ranks) != entry["tucker_ranks"]:
        lowered = all(ours <= theirs for ours, theirs in zip(shape.ranks, entry["tucker_ranks"], strict=True))
        said = any(notice.startswith(f"{planned.name}: Tucker ranks lowered") for notice in notices)
        same((lowered, said), (True, True), "the notice of lowered ranks")
    otherwise = entry.get("otherwise")
    same(planned.fallback is None, otherwise is None, "otherwise")
    if otherwise is not None:
        same(planned.fallback.max_error, float(otherwise["above_error"]), "above_error")
        same(planned.fallback.shape is None, otherwise.get("dense") is True, "otherwise: dense")


# Sequences


def sequences(name, data, folder):
    """A file of sequences, of which the first rows and the last are taken."""
    path = placed(folder, name, data)
    source = open_data(str(path), 0.5)
    rows = sorted({*range(min(len(source), 3)), len(source) - 1})
    batch = source.batch(torch.tensor(rows))
    with reading():
        arrays = readings.arrays(data, path.suffix, source.layer)
        x, n_sequences = arrays["x"], len(arrays["x"])
        wide = np.float64 if x.dtype == np.float64 else np.float32
        if x.ndim == 2:
            n_sequences, ends = len(arrays["lengths"]), np.cumsum(arrays["lengths"])
            pieces = np.split(x, ends)
            same(len(pieces[-1]), 0, "the number of steps beyond the lengths")
            padded = np.zeros((len(rows), max(len(pieces[row]) for row in rows), x.shape[1]), wide)
            for place, row in enumerate(rows):
                padded[place, : len(pieces[row])] = pieces[row].astype(wide) * 0.5
        else:
            padded = x[rows].astype(wide) * 0.5
    same(len(source), n_sequences, "the number of sequences")
    _same_array(batch.x, padded.astype(wide), "x")
    states = [state.transpose(0, 1) for state in batch.state or ()]
    states += [None] * (2 - len(states))  # a GRU's state is one
    for name, part in zip(("y", "lengths", "h0", "c0"), (batch.y, batch.lengths, *states), strict=True):
        array = arrays.get(name)
        same(part is None, array is None, f"the absence of {name}")
        if array is not None:
            if array.dtype.kind not in "fiub" or len(array) != n_sequences:
                raise WrongAnswerError(f"{name} is no array of one entry for each sequence")
            if name in ("h0", "c0"):
                kind = np.float64 if array.dtype == np.float64 else np.float32
            else:
                kind = np.float64 if array.dtype.kind == "f" else np.int64
            _same_array(part, array[rows].astype(kind), name)


def _same_array(found, expected, what):
    if not np.array_equal(found.numpy(), expected, equal_nan=True) or found.numpy().dtype != expected.dtype:
        raise WrongAnswerError(f"{what} is not what an independent reading finds")


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        samples: sound files by a word for each.
        mutate: makes another file of one and a generator.
        check: reads bytes in a folder and compares.
        file: the name that the check gives the bytes in its folder.
        weight: the share of the cases.
    """

    samples: Callable
    mutate: Callable
    check: Callable[[bytes, Path], None]
    file: str
    weight: int = 1


def _index_mutation(data, rng):
    try:
        return (
            odd.edited_json(data.decode(), rng).encode("utf-8", "replace")
            if rng.random() < 0.9
            else raw.mutate(data, rng)
        )
    except (ValueError, RecursionError):
        return raw.mutate(data, rng)


def _dense(name, files, mutate, weight):
    return Target(files, mutate, partial(dense, name), name, weight)


def _sequences(name, files, mutate):
    return Target(files, mutate, partial(sequences, name), name)


def _graphs(name, files, mutate, other):
    return Target(files, mutate, partial(graphs.check, other, name), name)


#: All kinds by their names.
TARGETS = {
    "torch": _dense("model.pt", samples.torch_zips, zips.mutate, 5),
    "legacy": _dense("old.pt", samples.legacy_torch, legacy.mutate, 2),
    "safetensors": _dense("model.safetensors", samples.safetensors_files, safetensors.mutate, 2),
    "index": _dense("index.json", samples.indexes, _index_mutation, 1),
    "compressed": Target(samples.results, safetensors.described("btcompress"), compressed, "model.bt.safetensors", 4),
    "plan": Target(samples.plans, yamls.mutate, plan, "plan.yaml", 2),
    "npz": _sequences("data.npz", samples.npz_files, zips.mutate),
    "npy": _sequences("data.npy", samples.npy_files, npy.mutate),
    "data": _sequences("data.safetensors", samples.safetensors_data, safetensors.mutate),
    "state": Target(states.state_files, states.mutate, states.check, states.FILE, 2),
    "onnx": _graphs("model.onnx", graphs.onnx_files, graphs.mutate_onnx, graphs.by_onnx),
    "flax": _graphs("params.msgpack", graphs.flax_files, raw.mutate, graphs.by_tree),
    "mxnet": _graphs("net.params", graphs.mxnet_files, raw.mutate, graphs.by_struct),
}

#: The kind of each case, over and over: kinds take turns by their weights.
SCHEDULE = tuple(
    name for turn in range(max(t.weight for t in TARGETS.values())) for name in TARGETS if TARGETS[name].weight > turn
)
