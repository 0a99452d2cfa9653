"""Sound files of every kind, small and made by code: what the mutators begin with."""

import io
import json
import tempfile
from collections import OrderedDict, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import yaml
from torch import nn

import btcompress
from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix, Layout, from_state_dict, read
from btcompress.checkpoint.layout import Number, Place
from btcompress.checkpoint.others import others_stored_as
from btcompress.kinds import KINDS
from btcompress.modes import ShapeRequest
from btcompress.packing import Integers
from btcompress.plan import Wish, make_plan, meet, save_plan
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.timings import BenchCase, BenchReport, LeftOut, Machine, WayTiming
from forms import in_fewer_bits, random_form

_W = "lstm.weight_ih_l0"


def _filled(module):
    """A module's state dict, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    state = module.state_dict()
    for tensor in state.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return state


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 2), nn.Linear(2, 3)


def _trained():
    """A checkpoint as training scripts save it: weights, optimizer, counters."""
    state = _filled(_Net())
    moments = {n: {"step": torch.tensor(1.0), "exp_avg": tensor.clone()} for n, tensor in enumerate(state.values())}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": list(moments)}]}
    values = {"epoch": 3, "best": torch.tensor(0.5), "rng": torch.zeros(4, dtype=torch.uint8), "lr": [0.1, None]}
    return {"model": state, "optimizer": optimizer, **values}


def _views():
    base = torch.arange(60.0)
    return {
        "weight_ih_l0": base[4:20].view(8, 2),
        "weight_hh_l0": base[20:36].view(2, 8).t(),
        "tied": base[4:20].view(8, 2),
        "wide": base[:3].expand(5, 3),
        "none": base[:0],
        "one": base[7],
    }


def _dtypes():
    names = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")
    return {f"t.{name}": torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}


def _states():
    """State dicts and what holds them, by a word for each."""
    lstm = _filled(nn.LSTM(6, 3))
    embedding = torch.arange(12.0).reshape(4, 3)
    return {
        "lstm": lstm,
        "deep": _filled(nn.LSTM(3, 2, num_layers=2, bidirectional=True, bias=False)),
        "projected": _filled(nn.LSTM(4, 3, proj_size=2)),
        "cell": {f"cell.{key}": tensor.bfloat16() for key, tensor in _filled(nn.LSTMCell(5, 2)).items()},
        "net": _filled(_Net()),
        "trained": _trained(),
        "parts": {"encoder": dict(lstm), "decoder": [OrderedDict(lstm), {"deep": {"bias": torch.ones(3)}}]},
        "counted": {
            "net": dict(lstm),
            "cfg": defaultdict(int, a=1),
            "size": torch.Size([1, 2]),
            "d": torch.device("cpu"),
        },
        "parameters": OrderedDict(_Net().state_dict(keep_vars=True)),
        "tied": {"emb.weight": embedding, "out.weight": embedding, "out.bias": torch.ones(4)},
        "views": _views(),
        "dtypes": _dtypes(),
        "gru": _filled(nn.GRU(4, 2)),
    }


def _saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


@cache
def torch_zips():
    """Files that ``torch.save`` writes today."""
    states = _states()
    later = {
        f"{name}, protocol {n}": _saved(states[name], pickle_protocol=n) for name in ("net", "views") for n in (3, 4, 5)
    }
    return {**{name: _saved(state) for name, state in states.items()}, **later}


@cache
def legacy_torch():
    """Files that ``torch.save`` wrote before zip archives."""
    states = {name: state for name, state in _states().items() if name not in ("parts", "deep")}
    return {name: _saved(state, _use_new_zipfile_serialization=False) for name, state in states.items()}


@cache
def safetensors_files():
    """Dense ``.safetensors`` files."""
    states = {name: state for name, state in _states().items() if name in ("lstm", "cell", "dtypes", "gru", "net")}
    files = {name: safetensors.torch.save(dict(state), {"format": "pt"}) for name, state in states.items()}
    files["bare"] = safetensors.torch.save({"weight_ih_l0": torch.ones(8, 2), "none": torch.ones(0, 3)})
    return files


#: The shards that lie beside every index.
SHARDS = ("shard-1.safetensors", "shard-2.pt")


@cache
def shards():
    """The bytes of each shard by its name."""
    net = _filled(_Net())
    first = {key: net[key] for key in net if "lstm" in key}
    second = {key: net[key] for key in net if "lstm" not in key}
    return dict(zip(SHARDS, (safetensors.torch.save(first), _saved(second)), strict=True))


@cache
def indexes():
    """Indexes of the shards."""
    keys = list(_filled(_Net()))
    weight_map = {key: SHARDS["lstm" not in key] for key in keys}
    first = {key: shard for key, shard in weight_map.items() if shard == SHARDS[0]}
    values = {"whole": {"metadata": {"total_size": 99}, "weight_map": weight_map}, "first": {"weight_map": first}}
    return {name: json.dumps(value, indent=1).encode() for name, value in values.items()}


_SHAPES = {
    "fused": MatrixShape(BlockTermShape((2, 5), (4, 3), (3, 2), n_blocks=3, n_gates=4)),
    "padded": MatrixShape(BlockTermShape((3, 2, 2), (8, 2, 1), (2, 3, 1), 2, in_size=10, out_size=12, n_gates=4)),
    "low rank": MatrixShape(BlockTermShape.low_rank(12, 10, 3, n_gates=4)),
    "separate low rank": MatrixShape(BlockTermShape.low_rank(3, 10, 2), "separate"),
    "kronecker": MatrixShape(BlockTermShape((3, 4), (4, 3), (5, 5), in_size=10, n_gates=4, core="identity")),
    "ordered": MatrixShape(BlockTermShape((2, 5), (4, 3), (2, 2), 2, n_gates=4, row_order=True, column_order=True)),
    "separate ordered": MatrixShape(
        BlockTermShape((5, 2), (1, 3), (2, 3), row_order=True, column_order=True), "separate"
    ),
    "separate": MatrixShape(BlockTermShape((5, 2), (1, 3), (2, 3), n_blocks=2), "separate"),
    "separate GRU": MatrixShape(BlockTermShape((5, 2), (2, 2), (2, 3)), "separate", 3),
}
#: The form, dtype and precisions of results whose tensors are stored in fewer bits: of block terms, and of a matrix.
_FEWER_BITS = {
    "integers": ("fused", torch.float32, Integers(4), Integers(3, 8)),
    "integers by rows": ("low rank", torch.bfloat16, None, Integers(8, 2**40)),
    "integers of few bits": ("separate ordered", torch.float64, Integers(2, 8), Integers(5, 8)),
    "floats": ("kronecker", torch.float32, torch.bfloat16, torch.float16),
    "half and integers": ("padded", torch.float16, Integers(7, 9), Integers(6, 9)),
}
_STEPS = (
    {"step": "factorize", "seed": 3, "left_dense": [{"name": "head.weight", "reason": "small"}]},
    {
        "step": "calibrate",
        "lstm": "lstm",
        "hidden_state_error_before": 0.5,
        "hidden_state_error_after": 0.25,
        "epochs": 3,
        "n_train": 8,
        "n_held": 2,
        "cancellation": 1.5,
    },
    {
        "step": "finetune",
        "metric": "accuracy",
        "higher_is_better": True,
        "dense": None,
        "before": 0.5,
        "after": 0.75,
        "epochs": 4,
        "best_epoch": 2,
        "n_train": 8,
        "n_held": 2,
        "cancellation": 2.0,
    },
)


_BENCH = BenchReport(
    Machine("cpu", "a processor", 2, "2.6"),
    (
        BenchCase(
            "lstm",
            "prediction",
            1,
            50,
            (
                WayTiming("dense_onednn", 0.25, (0.125, 0.5), 0.0, 9, 1, 80, 700, 160),
                WayTiming("block_terms", 0.5, (0.25, 0.75), 0.125, 9, 4, 60),
            ),
            (LeftOut("int8", "too small"),),
        ),
    ),
    ("nothing else",),
    (),
    ("slower",),
)


def _compressed(shape, dtype, steps):
    generator = torch.Generator().manual_seed(2)
    sizes = {_W: (12, 10), "lstm.weight_hh_l0": (12, 3), "head.weight": (2, 3), "head.bias": (2,)}
    state = {key: torch.randn(size, generator=generator).to(dtype) for key, size in sizes.items()}
    state |= {"tied": state["head.weight"], "count": torch.tensor(3), "nothing": torch.empty(0, 4)}
    parts = tuple(random_form(shape.part, generator, dtype) for _ in range(shape.n_parts))
    matrix = CompressedMatrix(shape, dtype, weight_error=0.25, svd_rank=1, svd_error=0.5)
    return CompressedCheckpoint.of(from_state_dict(state, "model.pt"), {_W: matrix}, {_W: parts}, steps, ["said"])


def _layout(keys):
    """Two state dicts, one nested in the other, with one tensor apart, and plain values of all kinds."""
    places = {key: Place(key) for key in keys}
    apart = places.pop("count")
    head = {key.removeprefix("head."): places.pop(key) for key in ("head.weight", "head.bias")}
    values = {"epoch": 3, "lr": 0.5, "name": "x", "done": True, "none": None, 7: (1, [2.5], {})}
    numbers = {"best": Number(0.25, torch.float16), "seen": Number(9, torch.int64, 1)}
    root = {"nets": [{**places, "head": head}, apart, None], "args": {**values, **numbers}}
    return Layout(root, {"a": "b"}, {"head.bias": "lstm.weight_hh_l0"})


@cache
def results():
    """Results of all versions of the format, gates, dtypes and precisions."""
    made = {}
    for n, (name, shape) in enumerate(_SHAPES.items()):
        dtype = (torch.float32, torch.float64, torch.float16, torch.bfloat16)[n % 4]
        made[name] = _compressed(shape, dtype, _STEPS[: 1 + n % 3])
    for name, (shape, dtype, terms, precision) in _FEWER_BITS.items():
        rounded = dict.fromkeys(("lstm.weight_hh_l0", "head.weight"), precision)
        fewer = in_fewer_bits(_compressed(_SHAPES[shape], dtype, _STEPS[:1]), terms, rounded)
        made[name] = others_stored_as(fewer, torch.float16)
    for name in ("separate", "integers"):
        made[f"{name}, measured"] = replace(made[name], bench=_BENCH)
    for name in ("separate", "integers"):
        made[f"{name}, arranged"] = replace(made[name], layout=_layout(made[name].keys))
    made["nonlinearity"] = replace(made["low rank"], nonlinearities={"lstm": "relu"})
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, compressed in made.items():
            path = Path(folder) / f"{name}.safetensors"
            btcompress.save(compressed, path)
            files[name] = path.read_bytes()
    return files


@cache
def planned():
    """The checkpoint that every plan is for, and all of its matrices that can be factorized."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        path.write_bytes(_saved(_filled(nn.LSTM(6, 4, num_layers=2))))
        checkpoint = from_state_dict(read(path).tensors, "model.pt")
    return checkpoint, make_plan(checkpoint, ShapeRequest(1, 1), matrices=KINDS, allow_growth=True)


@cache
def plans():
    """Plans as ``btcompress plan`` writes them, and as people edit them."""
    checkpoint, every = planned()
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, wish in (
            ("small", Wish(target_ratio=3)),
            ("dense", Wish(max_params=120)),
            ("near", Wish(max_error=0.5)),
        ):
            path = Path(folder) / "plan.yaml"
            save_plan(meet(checkpoint, every, wish), path, name="model.pt", sha256=None)
            files[name] = path.read_bytes()
    form = {"in_modes": [2, 3], "out_modes": [4, 4], "tucker_ranks": [2, 2], "cp_rank": 1}
    gates = {"in_modes": [4, 1], "out_modes": [1, 4], "tucker_ranks": [1, 1], "core": "identity", "gates": "separate"}
    otherwise = {"otherwise": {"above_error": 0.3, "low_rank": 1, "gates": "fused"}}
    by_hand = {
        "form": {"weight_ih_l0": form, "weight_hh_l0": {"dense": True, "reason": "by hand"}},
        "gates": {"weight_ih_l1": gates, "weight_ih_l0": {**form, **otherwise, "row_order": True}},
        "none": {},
    }
    for name, matrices in by_hand.items():
        files[name] = yaml.safe_dump({"version": 1, "matrices": matrices}, sort_keys=False).encode()
    return files


def _sequences():
    draw = np.random.default_rng(4)
    x = draw.normal(size=(4, 5, 6)).astype(np.float32)
    return {
        "x": {"x": x},
        "labels": {"x": x, "y": np.arange(4)},
        "targets": {"x": x.astype(np.float64), "y": draw.normal(size=(4, 2)), "lengths": np.array([5, 1, 3, 4])},
        "bytes": {"x": (x * 9).astype(np.int8), "y": np.array([True, False, True, True]), "other": x},
        "states": {"x": x, "h0": draw.normal(size=(4, 2, 3)), "c0": draw.normal(size=(4, 2, 5))},
        "recorded": {
            "net.lstm/x": x.reshape(20, 6),
            "net.lstm/lengths": np.array([4, 9, 1, 6]),
            "net.lstm/h0": x[:, :2, :3].copy(),
            "net.lstm/c0": x[:, :2, 3:].copy(),
            "net.lstm/has_states": np.array(True),
        },
        "column major": {"x": np.asfortranarray(x.astype(np.float16))},
    }


def _written(write, *arguments, **arrays):
    buffer = io.BytesIO()
    write(buffer, *arguments, **arrays)
    return buffer.getvalue()


@cache
def npz_files():
    """Sequences as ``numpy.savez`` writes them, stored and compressed."""
    files = {name: _written(np.savez, **arrays) for name, arrays in _sequences().items()}
    return files | {
        f"{name}, compressed": _written(np.savez_compressed, **arrays) for name, arrays in _sequences().items()
    }


@cache
def npy_files():
    """Sequences as ``numpy.save`` writes them."""
    return {name: _written(np.save, arrays["x"]) for name, arrays in _sequences().items() if "x" in arrays}


@cache
def safetensors_data():
    """Sequences in ``.safetensors`` files."""
    files = {name: arrays for name, arrays in _sequences().items() if name != "column major"}
    return {
        name: safetensors.torch.save({k: torch.from_numpy(v) for k, v in each.items()}) for name, each in files.items()
    }
