"""Reading dense checkpoints: every kind of file, every container, and a clear refusal for all else."""

import argparse
import contextlib
import enum
import hashlib
import io
import json
import math
import os
import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from btcompress.checkpoint import from_state_dict, is_compressed, read
from btcompress.errors import CheckpointError, MemoryLimitError
from btcompress.memory import limited

TORCH_ADVICE = ("weights_only=True", "In PyTorch 2.6", "file an issue", "add_safe_globals")


def lstm_state(seed=0, prefix="lstm."):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight_ih_l0": (12, 5), "weight_hh_l0": (12, 3), "bias_ih_l0": (12,), "bias_hh_l0": (12,)}
    return OrderedDict(
        (prefix + name, torch.randn(shape, dtype=torch.float64, generator=generator)) for name, shape in shapes.items()
    )


def optimizer_state():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def save_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


def refusal(path, **options):
    with pytest.raises(CheckpointError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert not any(words in text for words in TORCH_ADVICE)
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, pickle.UnpicklingError)
    return text


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


# Kinds of files


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pkl", "model"])
@pytest.mark.parametrize("save", [save_file, torch.save, save_legacy])
def test_content_decides_how_a_file_is_read_whatever_its_name(tmp_path, save, name):
    state = lstm_state()
    save(dict(state), tmp_path / name)
    found = read(tmp_path / name)
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[key], state[key]) for key in state)
    assert found.notices == ()
    assert found.files == ((tmp_path / name).resolve(),)


def test_source_records_name_size_digest_and_parameters(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(lstm_state(), path)
    source = read(str(path)).source
    assert source.name == "model.pt"
    assert source.n_bytes == path.stat().st_size
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.n_params == 12 * 5 + 12 * 3 + 12 + 12


@pytest.mark.skipif(sys.platform != "linux", reason="memory maps are listed on Linux alone")
@pytest.mark.parametrize("save", [save_file, torch.save])
def test_tensors_are_memory_mapped(tmp_path, save):
    path = tmp_path / "model.any"
    save(dict(lstm_state()), path)
    found = read(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert found.tensors


def test_files_saved_on_a_gpu_load_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    state = lstm_state()
    torch.save(state, tmp_path / "zip.pt")
    save_legacy(state, tmp_path / "legacy.pt")
    monkeypatch.undo()
    for name in ("zip.pt", "legacy.pt"):
        assert_same(read(tmp_path / name).tensors, state)


def test_shapes_dtypes_and_layouts_pass_unchanged(tmp_path):
    state = {
        "one entry of an odd stride": torch.arange(24.0).reshape(2, 12)[:1, 3:4],
        "one entry, flat": torch.arange(24.0)[3::24],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4, dtype=torch.float16),
        "transposed": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
        "sliced": torch.arange(10.0)[2:7:2],
        "flags": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
        "bytes": torch.tensor([255], dtype=torch.uint8),
        "tiny": torch.ones(3).to(torch.float8_e4m3fn),
    }
    torch.save(state, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt").tensors
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(
            found[key].float() if key == "tiny" else found[key], tensor.float() if key == "tiny" else tensor
        )


def test_parameters_arrive_as_plain_tensors_without_gradient(tmp_path):
    torch.save({"weight": torch.nn.Parameter(torch.ones(2, 3))}, tmp_path / "model.pt")
    tensor = read(tmp_path / "model.pt").tensors["weight"]
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_tied_tensors_stay_tied_and_count_once(tmp_path):
    shared = torch.ones(4, 3)
    torch.save({"embedding.weight": shared, "head.weight": shared, "head.bias": torch.ones(4)}, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert found.tensors["embedding.weight"].data_ptr() == found.tensors["head.weight"].data_ptr()
    assert found.source.n_params == 12 + 4


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("word", "make"),
    [
        ("sparse_coo", lambda: torch.eye(3).to_sparse()),
        ("sparse_csr", lambda: torch.eye(3).to_sparse_csr()),
        ("qint8", lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
        ("no values", lambda: torch.empty(2, device="meta")),
        ("nested", lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        ("complex128", lambda: torch.ones(2, dtype=torch.complex128)),
    ],
)
def test_tensors_that_a_result_cannot_hold_are_refused_by_name(tmp_path, word, make):
    torch.save({"head.odd": make()}, tmp_path / "model.pt")
    text = refusal(tmp_path / "model.pt")
    assert "head.odd" in text
    assert word in text


# Containers


SD, OTHER = lstm_state(0), lstm_state(1, "rnn.")
BARE = lstm_state(2, "")


def prefixed(prefix, state):
    return {f"{prefix}.{key}": tensor for key, tensor in state.items()}


CONTAINERS = {
    "plain": (SD, SD, ()),
    "a known name": ({"state_dict": SD, "epoch": 3}, SD, ()),
    "an unknown name": ({"spam": SD}, SD, ()),
    "deep": ({"a": {"b": {"c": SD}}, "args": {"lr": 0.1, "sizes": [1, 2]}}, SD, ()),
    "in a list": ([SD], SD, ()),
    "in a tuple beside numbers": ((3, SD), SD, ()),
    "with an optimizer": ({"model": SD, "optim": optimizer_state()}, SD, ("optimizer states: optim.",)),
    "with optimizers": (
        {"model": SD, "optimizer_states": [optimizer_state(), optimizer_state()]},
        SD,
        ("optimizer states: optimizer_states.0, optimizer_states.1",),
    ),
    "bookkeeping beside a whole state dict": (
        {
            "model": SD,
            "rng_state": torch.ones(9, dtype=torch.uint8),
            "best_loss": torch.tensor(0.5),
            "mean": torch.ones(4),
        },
        SD,
        ("tensors beside the state dicts: rng_state, mean", "single numbers beside the state dicts: best_loss"),
    ),
    "bookkeeping beside a bare layer": (
        {"model": BARE, "rng_state": torch.ones(9, dtype=torch.uint8), "best_loss": torch.tensor([0.5])},
        BARE,
        ("tensors beside the state dicts: rng_state", "single numbers beside the state dicts: best_loss"),
    ),
    "a list of tensors beside": (
        {"model": SD, "losses": [torch.tensor(1.0)]},
        SD,
        ("single numbers beside the state dicts: losses.0",),
    ),
    "single numbers in a mapping of their own": (
        {"state_dict": SD, "callbacks": {"checkpoint": {"best_score": torch.tensor(0.5), "monitor": "loss"}}},
        SD,
        ("single numbers beside the state dicts: callbacks.checkpoint.best_score",),
    ),
    "single numbers alone": ({"a": {"x": torch.tensor(0.5)}}, {"x": torch.tensor(0.5)}, ()),
    "values that are not kept": (
        {"state_dict": SD, "raw": b"0", "bests": {0.5: 1, "loss": math.inf}, "seed": 2**80, "mask": [1, b"0"]},
        SD,
        ("beside the tensors: raw (bytes), bests.0.5 (its key), bests.loss (not finite), seed (too large), mask",),
    ),
    "two": (
        {"encoder": SD, "decoder": OTHER},
        {**prefixed("encoder", SD), **prefixed("decoder", OTHER)},
        ("2 state dicts are kept", "encoder, decoder"),
    ),
    "two of one object": ({"one": SD, "two": SD}, {**prefixed("one", SD), **prefixed("two", SD)}, ("one, two",)),
    "a list of two": ([SD, OTHER], {**prefixed("0", SD), **prefixed("1", OTHER)}, ("0, 1",)),
    "values among tensors": (
        {**SD, "head._extra_state": {"a": 1}, "step": 7, "note": "x", "none": None},
        SD,
        (),
    ),
    "a mapping among tensors": (
        {"embedding": SD["lstm.weight_hh_l0"], "lstm": BARE, "names": {"a": 1}},
        {"embedding": SD["lstm.weight_hh_l0"], **prefixed("lstm", BARE)},
        (),
    ),
    "a list among tensors": (
        {"a.weight": SD["lstm.bias_hh_l0"], "more": [SD["lstm.bias_ih_l0"]]},
        {"a.weight": SD["lstm.bias_hh_l0"], "more.0": SD["lstm.bias_ih_l0"]},
        (),
    ),
    "wrapped": (prefixed("module._orig_mod", SD), prefixed("module._orig_mod", SD), ()),
}


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize("case", CONTAINERS)
def test_state_dicts_are_found_wherever_they_lie_and_nothing_is_lost_silently(tmp_path, case, save):
    value, expected, notices = CONTAINERS[case]
    save(value, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert_same(found.tensors, expected)
    for words in notices:
        assert any(words in notice for notice in found.notices), found.notices
    assert bool(found.notices) == bool(notices)


def test_long_lists_of_names_are_cut(tmp_path):
    torch.save({**SD, **{f"step{n}": b"x" for n in range(25)}}, tmp_path / "model.pt")
    (notice,) = read(tmp_path / "model.pt").notices
    assert "step9 (bytes) and 15 more" in notice


def test_one_container_can_be_named(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": SD, "averaged": {"ema": OTHER, "swa": SD}}, path)
    assert_same(read(path, container="model").tensors, SD)
    assert_same(read(path, "averaged.ema").tensors, OTHER)
    assert_same(read(path, "averaged").tensors, {**prefixed("ema", OTHER), **prefixed("swa", SD)})
    assert "There are: model, averaged.ema, averaged.swa." in refusal(path, container="average")


def test_a_container_cannot_be_named_where_there_is_none(tmp_path):
    torch.save(SD, tmp_path / "model.pt")
    assert "leave the container out" in refusal(tmp_path / "model.pt", container="model")


@pytest.mark.parametrize(
    "value",
    [
        {"a.b": torch.ones(2, 3), "a": {"b": torch.ones(2)}},
        {"a.b": dict(SD), "a": {"b": dict(SD)}},
        {0: dict(SD), "0": dict(SD)},
    ],
)
def test_two_tensors_of_one_name_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "model.pt")
    assert "Rename one" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(3), "a single tensor"),
        ({"epoch": 3}, "without tensors"),
        ([], "without tensors"),
        (7, "type int"),
        ([torch.ones(3), torch.ones(2)], "0, 1"),
        ({"optimizer": optimizer_state()}, "optimizer"),
        (optimizer_state(), "an optimizer's state"),
        ({1: torch.ones(3)}, "only 1"),
    ],
)
def test_files_without_a_state_dict_say_what_they_hold(tmp_path, value, words):
    torch.save(value, tmp_path / "model.pt")
    text = refusal(tmp_path / "model.pt")
    assert "no state dict" in text
    assert words in text


def circle():
    value = {"weight": torch.ones(2)}
    value["self"] = value
    return value


def well():
    value = dict(SD)
    for _ in range(100):
        value = {"in": value}
    return value


def plain_well():
    value = [1]
    for _ in range(100):
        value = [value]
    return {**SD, "deep": value}


def doubling():
    value = dict(SD)
    for _ in range(28):
        value = {"a": value, "b": value}
    return value


@pytest.mark.parametrize("make", [circle, well, plain_well, doubling])
def test_containers_made_to_exhaust_the_reader_are_refused(tmp_path, make):
    torch.save(make(), tmp_path / "model.pt")
    assert "containers" in refusal(tmp_path / "model.pt")


def test_a_pickle_deeper_than_the_stack_is_refused(tmp_path):
    depth = 200_000
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
        archive.writestr("model/version", "3\n")
    assert "nests containers more than 32 deep" in refusal(tmp_path / "model.pt")


def test_many_plain_values_shared_many_times_are_looked_through_once():
    shared = [[n] for n in range(1000)]
    for _ in range(25):
        shared = [shared, shared]
    assert_same(from_state_dict({"model": SD, "plain": shared}).tensors, SD)


# In memory


def test_a_state_dict_in_memory_is_taken_without_copying():
    module = torch.nn.LSTM(5, 3)
    found = from_state_dict(module.state_dict())
    assert found.tensors["weight_ih_l0"].data_ptr() == module.weight_ih_l0.data_ptr()
    assert not found.tensors["weight_ih_l0"].requires_grad
    assert found.source.sha256 is None
    assert found.source.n_params == sum(p.numel() for p in module.parameters())
    assert found.source.n_bytes == 4 * found.source.n_params
    assert found.files == ()


def test_tensors_tied_on_another_device_are_moved_once(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    shared = torch.ones(4, 3)
    found = from_state_dict({"embedding.weight": shared, "head.weight": shared})
    assert found.tensors["embedding.weight"].data_ptr() == found.tensors["head.weight"].data_ptr()
    assert found.source.n_params == 12
    assert found.source.n_bytes == 48


def test_parameters_without_values_are_refused_in_memory():
    with pytest.raises(CheckpointError, match="weight has a shape but no values"):
        from_state_dict(torch.nn.LazyLinear(3).state_dict(keep_vars=True))


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_a_result_cannot_hold_are_refused(name):
    with pytest.raises(CheckpointError, match="Rename it"):
        from_state_dict({name: torch.ones(2)})


# Shards


def save_sharded(folder, save, suffix, index="model.index.json"):
    names = [f"model-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    first, second = {k: v for k, v in SD.items() if "weight" in k}, {k: v for k, v in SD.items() if "bias" in k}
    save(first, folder / names[0])
    save(second, folder / names[1])
    weight_map = {**dict.fromkeys(first, names[0]), **dict.fromkeys(second, names[1])}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return names, weight_map


@pytest.mark.parametrize(("save", "suffix"), [(save_file, "safetensors"), (torch.save, "bin"), (save_legacy, "bin")])
def test_shards_are_read_through_their_index_or_their_folder(tmp_path, save, suffix):
    names, _ = save_sharded(tmp_path, save, suffix)
    index = tmp_path / "model.index.json"
    parts = [index.read_bytes(), *((tmp_path / name).read_bytes() for name in names)]
    for path in (index, tmp_path):
        found = read(path)
        assert_same(found.tensors, SD)
        assert found.source.name == "model.index.json"
        assert found.source.n_bytes == sum(map(len, parts))
        assert found.source.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
        assert found.files == tuple(file.resolve() for file in (index, *(tmp_path / name for name in names)))


def test_shards_may_be_links_into_a_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    names, _ = save_sharded(tmp_path / "blobs", save_file, "safetensors")
    for name in (*names, "model.index.json"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert_same(read(tmp_path / "snapshot" / "model.index.json").tensors, SD)


def test_missing_shards_are_named(tmp_path):
    names, _ = save_sharded(tmp_path, save_file, "safetensors")
    (tmp_path / names[1]).unlink()
    assert names[1] in refusal(tmp_path / "model.index.json")


@pytest.mark.parametrize(
    "shard",
    ["../secret.pt", "/etc/passwd", "a/b.pt", "..", ".", "", "..\\secret.pt", "C:secret.pt", "a\0b", 7, None, ["a"]],
)
def test_an_index_may_only_point_at_its_neighbours(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save(SD, tmp_path / "secret.pt")
    (folder / "index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "must be files beside their index" in refusal(folder / "index.json")
    assert "must be files beside their index" in refusal(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused_or_noticed(tmp_path):
    names, weight_map = save_sharded(tmp_path, save_file, "safetensors")
    index = tmp_path / "model.index.json"
    index.write_text(json.dumps({"weight_map": {**weight_map, "absent": names[0]}}))
    assert "absent" in refusal(index)
    del weight_map["lstm.weight_hh_l0"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = read(index)
    assert "lstm.weight_hh_l0" not in found.tensors
    assert found.notices == ("Left out, tensors that the index does not name: lstm.weight_hh_l0.",)


def test_an_index_cannot_name_itself_nothing_or_a_container(tmp_path):
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "index.json"}}))
    assert "no dense weight file" in refusal(index)
    index.write_text(json.dumps({"weight_map": {}}))
    assert "no tensors" in refusal(index)
    save_sharded(tmp_path, save_file, "safetensors")
    assert "leave the container out" in refusal(tmp_path / "model.index.json", container="model")


# Folders


def test_a_folder_with_one_checkpoint_is_read(tmp_path):
    torch.save(SD, tmp_path / "model.pt")
    (tmp_path / "README.md").write_text("# About")
    (tmp_path / "more").mkdir()
    assert_same(read(tmp_path).tensors, SD)


def test_a_folder_with_several_checkpoints_names_them(tmp_path):
    torch.save(SD, tmp_path / "a.pt")
    save_file(dict(SD), tmp_path / "b.safetensors")
    assert "2 checkpoints: a.pt, b.safetensors" in refusal(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x04")
    assert "no checkpoint" in refusal(tmp_path)


# Refusals


@pytest.mark.parametrize("save", [torch.save, save_legacy, partial(torch.save, pickle_protocol=4)])
def test_nothing_in_a_hostile_pickle_is_run_and_the_tensors_beside_it_are_read(tmp_path, save):
    marker = tmp_path / "marker"
    path = tmp_path / "model.pt"
    save({**SD, "x": Hostile(marker)}, path)
    found = read(path)
    assert_same(found.tensors, SD)
    assert any("x (posix.mkdir)" in notice for notice in found.notices)
    assert "posix.mkdir" in refusal(path, strict=True)
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": dict.fromkeys(SD, "model.pt")}))
    assert_same(read(tmp_path / "index.json").tensors, SD)
    refusal(tmp_path / "index.json", strict=True)
    assert not marker.exists()


def test_a_hostile_pickle_without_tensors_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    torch.save(Hostile(marker), tmp_path / "model.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({**SD, "x": Hostile(marker)}))
    assert "posix.mkdir" in refusal(tmp_path / "model.pt")
    refusal(tmp_path / "plain.pkl")
    assert not marker.exists()
    pickle.loads((tmp_path / "plain.pkl").read_bytes())
    assert marker.exists()


class Options(argparse.Namespace):
    pass


class Settings(dict):
    pass


class Level(enum.Enum):
    HIGH = 3


class Callback:
    def __init__(self):
        self.best_score = torch.tensor(0.5)


FOREIGN_OBJECTS = {
    "a namespace": (argparse.Namespace(lr=0.1), "argparse.Namespace"),
    "a class of a class": (Options(sizes=[1, 2]), "Options"),
    "a mapping": (Settings(lr=0.1), "Settings"),
    "a member of an enumeration": (Level.HIGH, "Level"),
    "a NumPy number": (np.float64(0.5), "numpy"),
    "a NumPy array": (np.ones(3), "numpy"),
    "a path": (Path("x"), "PosixPath"),
    "a fraction": (Fraction(1, 3), "Fraction"),
    "an object with a tensor": (Callback(), "Callback"),
    "an object that the code has lost": (argparse.Namespace(inner=Callback()), "argparse.Namespace"),
}


@pytest.mark.parametrize("save", [torch.save, save_legacy, partial(torch.save, pickle_protocol=5)])
@pytest.mark.parametrize("case", FOREIGN_OBJECTS)
def test_objects_of_foreign_classes_are_left_out_by_name_and_nothing_is_imported(tmp_path, case, save, monkeypatch):
    value, name = FOREIGN_OBJECTS[case]
    path = tmp_path / "model.pt"
    save({"state_dict": SD, "hyper_parameters": value, "epoch": 3}, path)
    monkeypatch.delitem(sys.modules, "argparse")
    monkeypatch.setitem(sys.modules, "fractions", None)
    found = read(path)
    assert "argparse" not in sys.modules
    assert_same(found.tensors, SD)
    assert any("not loaded: hyper_parameters (" in notice and name in notice for notice in found.notices)
    assert found.layout is not None
    assert found.layout.values == ("epoch",)
    assert name in refusal(path, strict=True)


def test_a_state_dict_in_a_mapping_of_a_foreign_class_is_read(tmp_path):
    torch.save({"state": Settings(SD), "args": Settings(lr=0.1)}, tmp_path / "model.pt")
    assert_same(read(tmp_path / "model.pt").tensors, SD)


class Wrapped:
    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize("odd", [Wrapped(torch.ones(2)), torch.nn.UninitializedParameter()])
def test_a_weight_of_a_foreign_class_is_not_left_out_but_refused(tmp_path, odd):
    torch.save({**SD, "head.weight": odd}, tmp_path / "model.pt")
    assert "head.weight" in refusal(tmp_path / "model.pt")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(5, 3, num_layers=2, bidirectional=True)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)])
        self.head = torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.blocks[0].weight
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.extra = {"not": torch.ones(7)}


@pytest.mark.parametrize("save", [torch.save, save_legacy, partial(torch.save, pickle_protocol=4)])
@pytest.mark.parametrize("around", [lambda net: net, lambda net: {"model": net, "epoch": 3}])
def test_of_a_whole_module_the_state_dict_is_read(tmp_path, save, around):
    net = Net()
    save(around(net), tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert_same(found.tensors, net.state_dict())
    assert any("pickled whole" in notice and "Net" in notice for notice in found.notices)
    assert found.tensors["head.weight"].data_ptr() == found.tensors["blocks.0.weight"].data_ptr()
    assert "Net" in refusal(tmp_path / "model.pt", strict=True)


def test_modules_whose_parts_are_no_modules_are_refused(tmp_path):
    net = Net()
    net._modules["head"] = Wrapped(torch.ones(2))
    torch.save(net, tmp_path / "model.pt")
    assert "head is no plain" in refusal(tmp_path / "model.pt")
    net._modules["head"] = net
    torch.save(net, tmp_path / "model.pt")
    assert "in a circle" in refusal(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(1, 4, 5))])
def test_of_a_torchscript_archive_the_state_dict_is_read(tmp_path, how):
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4))).eval()
    net[0].register_buffer("scale", torch.ones(3))
    script = how(net)
    script.save(str(tmp_path / "model.pt"))
    expected = dict(script.state_dict())
    found = read(tmp_path / "model.pt")
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[key], expected[key]) for key in expected)
    assert any("TorchScript" in notice for notice in found.notices)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_whose_weights_are_built_in_is_refused(tmp_path):
    torch.jit.freeze(torch.jit.script(torch.nn.Linear(2, 3).eval())).save(str(tmp_path / "model.pt"))
    text = refusal(tmp_path / "model.pt")
    assert "TorchScript" in text
    assert "built in" in text


@pytest.mark.parametrize("protocol", [1, 3, 4, 5])
def test_all_pickle_protocols_are_read(tmp_path, protocol):
    torch.save(SD, tmp_path / "model.pt", pickle_protocol=protocol)
    assert_same(read(tmp_path / "model.pt").tensors, SD)


# Archives that are not as torch writes them


def rezipped(path, change=lambda name, data: data, **options):
    """The archive packed again by another tool, its members changed on the way."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_packed_again_hold_the_same_values(tmp_path, compression):
    state = {**SD, "head.weight": torch.arange(1000.0).reshape(10, 100).half(), "ids": torch.arange(7)}
    torch.save(state, tmp_path / "model.pt")
    rezipped(tmp_path / "model.pt", compression=compression)
    assert_same(read(tmp_path / "model.pt").tensors, state)


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("change", [lambda data: data[:-8], lambda data: data + bytes(8), lambda data: b""])
def test_data_that_are_shorter_or_longer_than_the_pickle_says_are_refused(tmp_path, change, packed):
    torch.save(SD, tmp_path / "model.pt")
    rezipped(
        tmp_path / "model.pt",
        lambda name, data: change(data) if name.endswith("data/1") else data,
        compression=packed,
    )
    assert "data/1 is of" in refusal(tmp_path / "model.pt")


def test_one_changed_bit_in_the_data_is_found_by_its_checksum(tmp_path):
    torch.save(SD, tmp_path / "model.pt")
    content = bytearray((tmp_path / "model.pt").read_bytes())
    place = content.index(SD["lstm.weight_hh_l0"].numpy().tobytes())
    content[place + 3] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    assert "checksum" in refusal(tmp_path / "model.pt")


def test_archives_written_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(SD, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read(tmp_path / "model.pt").tensors, SD)


def test_archives_with_two_members_of_one_name_are_refused(tmp_path):
    torch.save(SD, tmp_path / "model.pt")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("model/data/0", bytes(SD["lstm.weight_ih_l0"].nbytes))
    assert "two members of one name" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("order", ["little", "big"])
def test_either_byte_order_is_read(tmp_path, order):
    state = {"a.weight": torch.arange(6.0), "b.weight": torch.arange(3, dtype=torch.int16), "c": torch.ones(2) * 1j}
    torch.save(state, tmp_path / "model.pt")
    widths = {"0": 4, "1": 2, "2": 4}

    def swapped(name, data):
        if name.endswith("byteorder"):
            return order.encode()
        key = name.rpartition("/data/")[2]
        width = widths.get(key, 1) if order != sys.byteorder else 1
        return b"".join(data[n : n + width][::-1] for n in range(0, len(data), width))

    rezipped(tmp_path / "model.pt", swapped)
    assert_same(read(tmp_path / "model.pt").tensors, state)


def pickled(path, data, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"model/data/{name[1:]}", content)


def tensor_pickle(size, stride, numel, kind="FloatStorage", offset=0):
    """A pickle of one tensor, by hand, under the key w."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            args = (Storage(), offset, tuple(size), tuple(stride), False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, args

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", getattr(torch, kind), "0", "cpu", numel) if isinstance(value, Storage) else None

    buffer = io.BytesIO()
    Writer(buffer, 2).dump({"w": Tensor()})
    return buffer.getvalue()


def nested_keys():
    """A dict whose key is a tuple of 2^60 numbers, though it takes some hundred bytes."""
    return b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s."


SMALL_AND_ENDLESS = {
    "a deflated pickle": (lambda path: pickled(path, b"N0" * 2**27 + b"N."), "make sense"),
    "an allowed function that makes gigabytes": (
        lambda path: pickled(path, b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x10\x00\x85R."),
        "no state dict",
    ),
    "a long integer": (lambda path: pickled(path, b"\x80\x02}\x8b\x00\x00\x10\x00" + b"\x7f" * 2**20 + b"NsN."), ""),
    "a tensor of stride 0": (
        lambda path: pickled(path, tensor_pickle([10**6, 10**6], [0, 0], 1), _0=bytes(4)),
        "repeats the 1 numbers",
    ),
    "a tensor of stride 0 of 16 billion entries": (
        lambda path: pickled(path, tensor_pickle([4 * 10**9, 4], [0, 1], 4), _0=bytes(16)),
        "repeats the 4 numbers",
    ),
    "a tensor beyond its data": (
        lambda path: pickled(path, tensor_pickle([3], [1], 2), _0=bytes(8)),
        "damaged",
    ),
    "a tensor of stride beyond its data": (
        lambda path: pickled(path, tensor_pickle([2, 2], [2, 1], 3), _0=bytes(12)),
        "damaged",
    ),
    "a tensor of negative stride": (
        lambda path: pickled(path, tensor_pickle([2], [-1], 2, offset=1), _0=bytes(8)),
        "damaged",
    ),
    "a tensor of endless size": (
        lambda path: pickled(path, tensor_pickle([2**62, 2**62], [0, 0], 1), _0=bytes(4)),
        "damaged",
    ),
    "a tensor of a hundred modes": (
        lambda path: pickled(path, tensor_pickle([1] * 100, [1] * 100, 1), _0=bytes(4)),
        "damaged",
    ),
    "keys that double": (lambda path: pickled(path, nested_keys()), "no state dict"),
    "a huge place in the memo": (lambda path: pickled(path, b"\x80\x02Nr\xff\xff\xff\xff."), "no state dict"),
    "a million operations too many": (lambda path: pickled(path, b"N0" * 2_100_000 + b"N."), "operations"),
}


@pytest.mark.parametrize("case", SMALL_AND_ENDLESS)
def test_small_files_that_would_grow_without_end_are_refused_at_once(tmp_path, case):
    make, words = SMALL_AND_ENDLESS[case]
    make(tmp_path / "model.pt")
    assert words in refusal(tmp_path / "model.pt")


def test_expanded_tensors_of_ordinary_size_are_read(tmp_path):
    state = {"head.bias": torch.ones(1).expand(1000)}
    torch.save(state, tmp_path / "model.pt")
    assert_same(read(tmp_path / "model.pt").tensors, state)


def test_packed_data_that_need_more_memory_than_is_allowed_are_refused(tmp_path):
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "model.pt")
    rezipped(tmp_path / "model.pt", compression=zipfile.ZIP_DEFLATED)
    with limited(10**6), pytest.raises(MemoryLimitError, match=r"4\.0 MB of memory, but 1\.0 MB are allowed"):
        read(tmp_path / "model.pt")


class Shadowing(OrderedDict):
    def __reduce__(self):
        state = {"items": 3, "get": 4, "_metadata": OrderedDict()}
        return OrderedDict, (), state, None, iter(OrderedDict.items(self))


def test_attributes_that_shadow_those_of_containers_change_nothing(tmp_path):
    torch.save(Shadowing(SD), tmp_path / "model.pt")
    assert_same(read(tmp_path / "model.pt").tensors, SD)


def test_a_shard_with_a_name_that_is_too_long_is_refused(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": "x" * 300}}))
    assert "beside their index" in refusal(tmp_path / "index.json")


def array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def arrays(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def plain_zip(path, member="notes.txt"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "x")


FOREIGN = {
    "empty": (lambda path: path.touch(), "is empty"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html><html></html>"), "web page"),
    "text": (lambda path: path.write_text("Höhe: 3\n" * 1000), "text file"),
    "json": (lambda path: path.write_text('{"a": 1}'), "text file"),
    "deep json": (lambda path: path.write_text('{"weight_map":' * 100_000), "text file"),
    "json list": (lambda path: path.write_text('{"weight_map": []}'), "text file"),
    "onnx": (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch\x1a\x00\xff"), "ONNX"),
    "saved model": (lambda path: path.write_bytes(b"\x08\x01\x12\xff\x00"), "TensorFlow SavedModel"),
    "hdf5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "is damaged"),
    "keras": (lambda path: plain_zip(path, "model.weights.h5"), "is damaged"),
    "tflite": (lambda path: path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(50)), "TensorFlow Lite"),
    "npy": (array, "NumPy"),
    "npz": (arrays, "NumPy"),
    "zip": (plain_zip, "unpack"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "gzip"),
    "tar": (lambda path: path.write_bytes(b"a" + bytes(256) + b"ustar\x0000" + bytes(300)), "tar"),
    "numpy pickle": (lambda path: path.write_bytes(pickle.dumps({"a": np.ones(3)})), "pickled NumPy arrays"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)), "a Python pickle"),
    "elf": (lambda path: path.write_bytes(b"\x7fELF\x02\x01\x01\x00" + bytes(50)), "no checkpoint that can be read"),
    "huge header": (lambda path: path.write_bytes(b"\xff" * 8 + b'{"a":1}'), "truncated or damaged"),
    "large header": (lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b'{"a":1}'), "truncated or damaged"),
    "nested header": (
        lambda path: path.write_bytes((10**5).to_bytes(8, "little") + b"{" * 10**5),
        "truncated or damaged",
    ),
    "missing": (lambda path: None, "does not exist"),
    "no regular file": (lambda path: os.mkfifo(path), "not a regular file"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_files_are_refused_for_what_they_are(tmp_path, kind):
    make, words = FOREIGN[kind]
    path = tmp_path / "model.pt"
    make(path)
    text = refusal(path)
    assert words in text
    assert str(path) in text
    assert not is_compressed(path)


def test_folders_given_for_a_shard_are_refused(tmp_path):
    (tmp_path / "shard").mkdir()
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": "shard"}}))
    assert "is a folder" in refusal(tmp_path / "index.json")


def test_files_that_may_not_be_read_are_refused(tmp_path, monkeypatch):
    torch.save(SD, tmp_path / "model.pt")

    def deny(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "cannot be read: Permission denied" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("save", [save_file, torch.save, save_legacy])
def test_truncated_files_are_refused_wherever_they_end(tmp_path, save):
    path = tmp_path / "model.pt"
    save(dict(SD), path)
    content = path.read_bytes()
    ends = {*range(40), *range(40, len(content), 97), len(content) - 1}
    for end in ends:
        path.write_bytes(content[:end])
        refusal(path)


@pytest.mark.parametrize("save", [save_file, torch.save, save_legacy])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path, save, data):
    path = tmp_path / "model.pt"
    save(dict(SD), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert read(path).tensors
