"""How a dense checkpoint was arranged: read of any containers, kept in a result, and trusted with nothing."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import btcompress
from btcompress.checkpoint import from_state_dict, read
from btcompress.checkpoint.layout import Layout, Number, Place
from btcompress.checkpoint.layoutrecords import LAYOUT_KEY
from btcompress.errors import CheckpointError

W = "lstm.weight_ih_l0"


def lstm_state(seed=0, prefix="lstm."):
    torch.manual_seed(seed)
    return {prefix + key: value for key, value in torch.nn.LSTM(6, 4).state_dict().items()}


SD, OTHER, BARE = lstm_state(0), lstm_state(1), lstm_state(2, "")
PART = {"weight": torch.ones(2, 3)}

#: Checkpoints that come back as they are.
KEPT = {
    "plain": SD,
    "a name and plain values": {"state_dict": SD, "epoch": 3, "lr": 1e-3, "best": None, "done": False, "arch": "gru é"},
    "values before the state dict": {"epoch": 3, "model": {"net": SD}, "sizes": [1, 2, (3, [])], "empty": {}},
    "numbers for keys": {0: SD, "args": {1: "a", -2: "b", "1": 1}},
    "a tuple": (7, SD, "x"),
    "a list of two": [SD, OTHER],
    "two and values": {"encoder": {"net": SD, "depth": 2}, "decoder": OTHER, "version": "1"},
    "values among tensors": {**SD, "step": 7, "note": "x"},
    "nested mappings": {"embed.weight": PART["weight"], "lstm": {**BARE, "kind": "lstm"}, "out": {"proj": PART}},
    "tensors between mappings": {"lstm": BARE, "a": torch.ones(2, 2), "out": PART, "b.c": torch.ones(3)},
    "lists of tensors": {**SD, "more": [torch.ones(2, 2), 5, torch.ones(1)], "pair": (torch.ones(2), torch.ones(3))},
    "tensors under numbers": {**SD, "scales": {0: torch.ones(2), 1: torch.ones(3)}},
    "single numbers": {
        "model": SD,
        "best": torch.tensor(0.1),
        "seen": torch.tensor([[3]]),
        "half": torch.tensor([-0.5]).half(),
        "flag": torch.tensor(True),
    },
    "empty names": {"": SD, "x": {"": 1}},
}


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def arranged(checkpoint):
    return (checkpoint.layout or Layout()).filled(checkpoint.tensors)


def factorized(value, **settings):
    return btcompress.factorize(value, cp_rank=1, tucker_rank=2, **settings)


def described(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["btcompress"])


# Reading


@pytest.mark.parametrize("case", KEPT)
def test_containers_and_plain_values_come_back_as_they_were(tmp_path, case):
    torch.save(KEPT[case], tmp_path / "model.pt")
    assert same(arranged(read(tmp_path / "model.pt")), KEPT[case])
    assert same(arranged(from_state_dict(KEPT[case])), KEPT[case])


@pytest.mark.parametrize("value", [SD, {**SD, "raw": b"x"}, torch.nn.LSTM(2, 3)])
def test_a_plain_state_dict_has_no_layout(tmp_path, value):
    torch.save(value, tmp_path / "model.pt")
    assert read(tmp_path / "model.pt").layout is None


def test_what_is_left_out_of_a_sequence_leaves_its_place():
    optimizer = {"state": {}, "param_groups": []}
    value = {"optimizers": [optimizer], "all": (optimizer, SD, b"x", 3), "rng": torch.ones(9), "more": {"rng": [b"x"]}}
    assert same(arranged(from_state_dict(value)), {"all": (None, SD, None, 3), "more": {}})


def test_the_containers_of_one_that_was_named_stay(tmp_path):
    torch.save({"averaged": {"ema": SD, "swa": OTHER}, "epoch": 3}, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt", "averaged.swa")
    assert list(found.tensors) == list(SD)
    assert same(arranged(found), {"averaged": {"swa": OTHER}, "epoch": 3})


def test_a_layout_that_cannot_be_kept_is_left_out_with_a_notice():
    found = from_state_dict({0.5: SD, "epoch": 3})
    assert found.layout is None
    assert any("the layout of the file (the key 0.5 of tensors)" in notice for notice in found.notices)


def test_texts_in_the_header_of_a_safetensors_file_are_kept_but_for_the_usual(tmp_path):
    for texts, kept in (({"format": "pt"}, None), ({"format": "pt", "a": "b"}, {"a": "b"}), (None, None)):
        save_file(SD, tmp_path / "model.safetensors", texts)
        layout = read(tmp_path / "model.safetensors").layout
        assert (layout and layout.metadata) == kept


def wide():
    return {"n": list(range(100_000)), "names": {f"k{n}": n for n in range(100_000)}}


def long():
    return {"text": "x" * 10_000_000, "k" * 10_000: 1, "digits": "7" * 500}


def deep():
    value = 1
    for _ in range(28):
        value = {"a": [value]} if isinstance(value, int) else {"a": value}
    return value


def doubling():
    value = [[n] for n in range(100)]
    for _ in range(25):
        value = [value, value]
    return {f"k{n}": value for n in range(1000)}


@pytest.mark.parametrize("make", [wide, long, deep, doubling])
def test_values_made_to_exhaust_the_reader_are_left_out_by_name_and_all_else_is_kept(make):
    start = time.process_time()
    found = from_state_dict({"before": 1, "hostile": make(), "state_dict": SD, "after": [2]})
    assert time.process_time() - start < 20  # without bounds it takes hours
    kept = arranged(found)
    assert same({**kept, "hostile": 0}, {"before": 1, "hostile": 0, "state_dict": SD, "after": [2]})
    assert len(json.dumps(kept["hostile"])) < 1000
    assert any("values beside the tensors: hostile." in notice for notice in found.notices)


def test_small_values_beside_large_ones_are_kept_up_to_a_bound():
    found = from_state_dict({"state_dict": SD, "texts": {str(n): "x" * 1000 for n in range(1000)}, "epoch": 3})
    kept = arranged(found)
    assert 200 < len(kept["texts"]) < 300
    assert kept["epoch"] == 3


def test_too_many_containers_leave_the_layout_out():
    value = {f"block{n}": {"weight": torch.ones(2)} for n in range(5000)}
    found = from_state_dict({"model": {**value, "x": torch.ones(2)}})
    assert len(found.tensors) == 5001
    assert found.layout is None
    assert any("more than 4,096 containers" in notice for notice in found.notices)


@pytest.mark.parametrize(
    "value", [torch.tensor(math.nan), torch.tensor(math.inf), torch.ones(2), torch.tensor(1j), torch.empty(0)]
)
def test_other_tensors_beside_state_dicts_are_left_out(value):
    found = from_state_dict({"model": {"a.weight": torch.ones(2)}, "odd": value})
    assert found.layout == Layout({"model": {"a.weight": Place("a.weight")}})
    assert any("tensors beside the state dicts: odd" in notice for notice in found.notices)


# Results


@pytest.mark.parametrize("case", KEPT)
def test_a_result_keeps_the_layout(tmp_path, case):
    torch.save(KEPT[case], tmp_path / "model.pt")
    compressed = factorized(tmp_path / "model.pt")
    btcompress.save(compressed, tmp_path / "a.safetensors")
    loaded = btcompress.load(tmp_path / "a.safetensors")
    assert loaded.layout == compressed.layout
    assert ("layout" in described(tmp_path / "a.safetensors")) == (case != "plain")
    outline = loaded.dense_layout().filled(loaded.dense_state_dict())
    expected = {key: value.shape for key, value in from_state_dict(KEPT[case]).tensors.items()}
    assert {key: value.shape for key, value in from_state_dict(outline).tensors.items()} == expected


def test_names_in_a_layout_are_not_said_again_in_a_file(tmp_path):
    btcompress.save(factorized({"net": {"a": SD, "b": OTHER}}), tmp_path / "a.safetensors")
    runs = [
        ["a", {"dict": [{"prefix": "net.a.", "tensors": [0, 4]}]}],
        ["b", {"dict": [{"prefix": "net.b.", "tensors": [4, 4]}]}],
    ]
    assert described(tmp_path / "a.safetensors")["layout"] == {"root": {"dict": [["net", {"dict": runs}]]}}


def test_a_result_that_is_factorized_further_keeps_it(tmp_path):
    value = {"state_dict": {**SD, **lstm_state(3, "rnn.")}, "epoch": 3}
    first = factorized(value, layers=["lstm"])
    btcompress.save(first, tmp_path / "a.safetensors")
    second = factorized(tmp_path / "a.safetensors", layers=["rnn"])
    assert second.layout == first.layout
    assert second.with_step({"step": "x"}).layout == first.layout
    assert second.only(["lstm.bias_ih_l0"]).layout is None


def test_a_step_dense_of_a_recipe_keeps_it(tmp_path):
    tied = lstm_state(3, "rnn.")
    torch.save({"state_dict": {**SD, **tied, "tied": tied["rnn.bias_ih_l0"]}, "epoch": 3}, tmp_path / "model.pt")
    step = btcompress.FactorizeStep(cp_rank=1, tucker_rank=2)
    steps = (step, btcompress.DenseStep(), step)
    done = btcompress.run(btcompress.Recipe(tmp_path / "model.pt", tmp_path / "a.safetensors", steps))
    assert list(done.keys) == [*SD, *tied, "tied"]
    assert done.layout.filled(dict.fromkeys(done.keys, 0))["epoch"] == 3
    assert done.dense_layout().ties == {"tied": "rnn.bias_ih_l0"}


def test_a_file_without_a_layout_is_one_plain_state_dict(tmp_path):
    btcompress.save(factorized(SD), tmp_path / "a.safetensors")
    loaded = btcompress.load(tmp_path / "a.safetensors")
    assert loaded.layout is None
    assert list(loaded.dense_layout().filled(loaded.dense_state_dict())) == list(SD)


# Damaged


RUN = {"tensors": [0, 4], "prefix": ""}

DAMAGED = {
    "no container": {"tensor": 0},
    "a key without a place": {"dict": [["a", {"dict": [{"tensors": [0, 3]}]}]]},
    "a key placed twice": {"dict": [RUN, ["b", {"tensor": 1}]]},
    "a run beyond the keys": {"dict": [{"tensors": [0, 5]}]},
    "an endless run": {"dict": [{"tensors": [0, 2**62]}]},
    "a run of less than nothing": {"dict": [RUN, {"tensors": [0, -1]}]},
    "a run from before the first": {"dict": [{"tensors": [-1, 4]}]},
    "a run that is no pair": {"dict": [{"tensors": [0]}]},
    "a run of booleans": {"dict": [{"tensors": [False, 4]}]},
    "another prefix": {"dict": [{"tensors": [0, 4], "prefix": "x."}]},
    "a prefix that is no text": {"dict": [{"tensors": [0, 4], "prefix": 3}]},
    "a tensor that is none": {"dict": [RUN, ["a", {"tensor": 4}]]},
    "a tensor that is a text": {"dict": [RUN, ["a", {"tensor": "0"}]]},
    "two entries of one name": {"dict": [RUN, ["lstm.bias_ih_l0", 3]]},
    "an entry of three": {"dict": [RUN, ["a", 1, 2]]},
    "an entry of none": {"dict": [RUN, None]},
    "a key that is a list": {"dict": [RUN, [[1], 2]]},
    "a key that is null": {"dict": [RUN, [None, 2]]},
    "a key that is a float": {"dict": [RUN, [0.5, 2]]},
    "entries that are no list": {"dict": {"a": 1}},
    "an unknown kind": {"dict": [RUN, ["a", {"set": [1]}]]},
    "two kinds": {"dict": [RUN], "list": []},
    "a bare list": {"dict": [RUN, ["a", [1]]]},
    "an endless integer": {"dict": [RUN, ["a", 2**63]]},
    "a number too large": {"dict": [RUN, ["a", {"number": 1e39, "dtype": "float32"}]]},
    "a number between numbers": {"dict": [RUN, ["a", {"number": 0.1, "dtype": "float32"}]]},
    "a number of no dtype": {"dict": [RUN, ["a", {"number": 1.0, "dtype": "serialize"}]]},
    "a number that is a text": {"dict": [RUN, ["a", {"number": "1", "dtype": "float32"}]]},
    "a number of endless axes": {"dict": [RUN, ["a", {"number": 1.0, "dtype": "float32", "axes": 2**40}]]},
    "a byte too large": {"dict": [RUN, ["a", {"number": 256, "dtype": "uint8"}]]},
    "a root that is a list": [RUN],
}


def nested(depth):
    value = {"dict": [RUN]}
    for _ in range(depth):
        value = {"list": [value]}
    return value


DAMAGED["deep"] = nested(70)
DAMAGED["very deep"] = nested(300)


def with_layout(path, layout):
    """The file with another layout in its description."""
    btcompress.save(factorized({"state_dict": SD}), path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    save_file(tensors, path, {"btcompress": json.dumps({**described(path), "layout": layout})})


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_layouts_are_refused(tmp_path, case):
    with_layout(tmp_path / "a.safetensors", {"root": DAMAGED[case]})
    with pytest.raises(CheckpointError, match="cannot be read"):
        btcompress.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "layout",
    [
        3,
        {"metadata": {"a": 1}},
        {"metadata": []},
        {"ties": {W: "lstm.bias_ih_l0"}},
        {"ties": {"lstm.bias_ih_l0": "x"}},
        {"ties": {"lstm.bias_ih_l0": "lstm.bias_ih_l0"}},
        {"ties": {"lstm.bias_ih_l0": W, "lstm.bias_hh_l0": "lstm.bias_ih_l0"}},
    ],
)
def test_damaged_parts_of_a_layout_are_refused(tmp_path, layout):
    with_layout(tmp_path / "a.safetensors", layout)
    with pytest.raises(CheckpointError, match="cannot be read"):
        btcompress.load(tmp_path / "a.safetensors")


def test_other_fields_of_a_layout_are_passed_over(tmp_path):
    with_layout(tmp_path / "a.safetensors", {"root": {"dict": [{**RUN, "new": 1}]}, "new": 2})
    assert list(btcompress.load(tmp_path / "a.safetensors").layout.root) == list(SD)


@pytest.mark.parametrize(
    "root",
    [
        {"a": Place(W)},
        {**{key: Place(key) for key in SD}, "a": Place("x")},
        {**{key: Place(key) for key in SD}, "a": [Place(W)]},
    ],
)
def test_a_layout_of_other_keys_is_refused_in_memory(root):
    with pytest.raises(CheckpointError, match="layout"):
        replace(factorized(SD), layout=Layout(root))


@pytest.mark.parametrize("value", [math.nan, 2**70, b"x", {1, 2}, Number(math.inf, torch.float32), "\ud800"])
def test_a_layout_that_could_not_be_read_again_is_not_written(tmp_path, value):
    root = {**{key: Place(key) for key in SD}, "a": value}
    with pytest.raises(CheckpointError):
        btcompress.save(replace(factorized(SD), layout=Layout(root)), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": ["a"]}', '{"keys": [1]}', '{"keys": ["w"], "ties": {"w": "w"}}']
)
def test_damaged_layouts_of_dense_tensors_are_refused(tmp_path, text):
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", {LAYOUT_KEY: text})
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "a.safetensors")
