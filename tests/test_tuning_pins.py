"""Files of pins: what was measured is pinned again, and whatever else a file may be is refused."""

import json
import os
import random

import pytest
import torch
from torch import nn

import btcompress
from btcompress.errors import BTCompressError
from btcompress.nn import BTLSTM, BTLSTMCell
from btcompress.nn.choice import Place
from btcompress.nn.ways import Way
from btcompress.shapes import BlockTermShape, MatrixShape
from btcompress.tuning import pins
from btcompress.tuning.pins import Pin, write

LOOP = Way("loop", "factors", "dense")
WAY = {"steps": "loop", "inputs": "factors", "recurrent": "dense"}
PIN = {"module": "body", "layer": "l1", "steps": 7, "batch": 2, "trains": False, "way": WAY}


def model():
    made = nn.Module()
    made.body = BTLSTM(6, 4, 2, tucker_rank=2)
    made.head = BTLSTMCell(4, 5)
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pins.json"


def written(path, *values, version=1):
    path.write_text(json.dumps({"version": version, "pins": values}))
    return path


def changed(**values):
    return {**PIN, **values}


def test_what_was_tuned_is_pinned_on_a_model_like_it(path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = BTLSTM(6, 4, 2, tucker_rank=2)
            self.head = BTLSTMCell(4, 5)

        def forward(self, x):
            return self.head(self.body(x)[0][-1])

    tuned, fresh = Model(), nn.DataParallel(Model())
    tuning = btcompress.tune(tuned, torch.randn(3, 2, 6), seconds=1e-9, file=path)
    assert len(tuning.pins) == 3
    assert btcompress.pin(fresh, path) == tuning.pins
    assert fresh.module.body.choice.pinned == tuned.body.choice.pinned
    assert fresh.module.head.choice.pinned == tuned.head.choice.pinned


def test_files_say_what_they_pin(path):
    write([Pin("body", "l1", 7, 2, False, LOOP)], path)
    assert json.loads(path.read_text()) == {"version": 1, "pins": [PIN]}


def test_a_pin_takes_the_place_of_one_and_leaves_the_others(path):
    made = model()
    made.body.choice.pin(Way("kernel", "dense", "dense"), Place("l1", 7, 2, False))
    made.body.choice.pin(Way("kernel", "dense", "dense"))
    btcompress.pin(made, written(path, PIN))
    assert made.body.choice.pinned == {Place("l1", 7, 2, False): LOOP, None: Way("kernel", "dense", "dense")}


def test_ways_that_device_or_dtype_rule_out_are_passed_over(path):
    made = model().bfloat16()
    btcompress.pin(made, written(path, PIN))
    with torch.no_grad():
        made.body(torch.randn(7, 2, 6, dtype=torch.bfloat16))
        kept = made.body.kept_run(torch.randn(7, 2, 6, dtype=torch.bfloat16), None)
        assert kept[1].way.steps != "loop"
        made.float().body(torch.randn(7, 2, 6))
        assert made.body.kept_run(torch.randn(7, 2, 6), None)[1].way == LOOP


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (changed(module="tail"), "on tail, which is no block-term layer of this model.*: body, head. Give"),
        (changed(module=""), "on .top., which is no block-term layer"),
        (changed(module="a\u001b[31m\n" * 99), r"on a\\x1b\[31m\\na.* characters left out"),
        (changed(layer="l2"), "on layer l2 of body, whose layers are l0, l1. Give"),
        (changed(module="head"), "on layer l1 of head, whose layers are cell. Give"),
        (
            changed(way={**WAY, "recurrent": "factors"}),
            "states by factors. on body l1, whose .* form for it. Possible are",
        ),
    ],
    ids=["module", "top", "hostile name", "layer", "layer of a cell", "way"],
)
def test_pins_for_what_a_model_lacks_are_refused_and_none_of_them_pinned(given, message, path):
    made = model()
    with pytest.raises(BTCompressError, match=message):
        btcompress.pin(made, written(path, PIN, given))
    assert not made.body.choice.pinned
    assert not made.head.choice.pinned


def test_low_rank_alone_lets_a_loop_multiply_by_factors(path):
    def recurrent(shape):
        made = nn.Module()
        made.body = BTLSTM(6, 4, 2, shapes={"weight_hh_l1": MatrixShape(shape)})
        return made

    written(path, changed(way={"steps": "loop", "inputs": "dense", "recurrent": "factors"}))
    btcompress.pin(recurrent(BlockTermShape.low_rank(16, 4, 2, n_gates=4)), path)
    with pytest.raises(BTCompressError, match="have not the form for it"):
        btcompress.pin(recurrent(BlockTermShape((2, 2), (4, 4), (2, 2), n_gates=4)), path)


def test_two_ways_for_the_same_calls_are_refused(path):
    with pytest.raises(BTCompressError, match="two ways on body l1, 7 steps, batch 2, prediction"):
        btcompress.pin(model(), written(path, PIN, changed(way={**WAY, "steps": "kernel"})))


@pytest.mark.parametrize("version", [0, 2])
def test_other_versions_are_refused_by_their_number(version, path):
    with pytest.raises(BTCompressError, match=f"has version {version}, but this btcompress reads .* of version 1"):
        btcompress.pin(model(), written(path, {"later": True}, version=version))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\x00\xff",
        b'{"version": 1}',
        b'{"version": true, "pins": []}',
        b'{"version": 1, "pins": {}}',
        b'{"version": 1, "pins": [], "more": 0}',
        b'{"version": 1, "pins": ' + b"[" * 100_000,
        *(json.dumps({"version": 1, "pins": [changed(**value)]}).encode() for value in (
            {"steps": -1},
            {"steps": 2**63},
            {"steps": 1.5},
            {"batch": "2"},
            {"trains": 0},
            {"module": None},
            {"way": "loop"},
            {"way": {**WAY, "steps": "loops"}},
            {"way": {"steps": "loop"}},
            {"more": 1},
        )),
    ],
)  # fmt: skip
def test_what_is_no_file_of_pins_is_refused(data, path):
    path.write_bytes(data)
    with pytest.raises(BTCompressError, match=r"pins\.json is no file of pins, or is damaged: "):
        btcompress.pin(model(), path)


def test_files_that_cannot_be_read_are_refused(path, monkeypatch):
    with pytest.raises(BTCompressError, match="No such file"):
        btcompress.pin(model(), path)
    with pytest.raises(BTCompressError, match="it is a folder"):
        btcompress.pin(model(), path.parent)
    os.mkfifo(path)
    with pytest.raises(BTCompressError, match="no regular file"):
        btcompress.pin(model(), path)
    path.unlink()
    monkeypatch.setattr(pins, "_MOST_BYTES", 100)
    with pytest.raises(BTCompressError, match="more than 100 bytes"):
        btcompress.pin(model(), written(path, PIN))


def test_damaged_files_are_refused_or_pin_what_the_model_has(path):
    draws, made = random.Random(0), model()
    data = written(path, PIN, changed(module="head", layer="cell")).read_bytes()
    ends = set()
    for _ in range(500):
        damaged = bytearray(data)
        for _ in range(draws.choice((1, 1, 2, 5))):
            start = draws.randrange(len(damaged))
            damaged[start : start + draws.choice((0, 1, 1, 9))] = draws.randbytes(draws.choice((0, 1, 1, 3)))
        path.write_bytes(damaged)
        made.body.choice.unpin()
        try:
            found = btcompress.pin(made, path)
        except BTCompressError:
            assert not made.body.choice.pinned
            ends.add("refused")
        else:
            assert all(each.way in made.get_submodule(each.module).ways(each.layer) for each in found)
            ends.add("pinned")
    assert ends == {"refused", "pinned"}
