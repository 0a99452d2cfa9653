"""Nothing that a command reads is its target, whatever the option and however it is linked."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import nn

import btcompress
from btcompress.checkpoint.atomic import _beside
from btcompress.cli import main

WISH = ("--target-ratio", "2")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model in one file and one in shards, sequences, a module that makes some, and a plan."""
    state = {"lstm." + key: tensor for key, tensor in nn.LSTM(12, 8).state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    shards = tmp_path / "sharded"
    shards.mkdir()
    weight_map = {key: f"{n % 2}.safetensors" for n, key in enumerate(state)}
    for shard in set(weight_map.values()):
        save_file({key: state[key] for key, where in weight_map.items() if where == shard}, shards / shard)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    np.save(tmp_path / "cal.npy", np.random.default_rng(0).normal(size=(20, 4, 12)).astype(np.float32))
    (tmp_path / "mine_of_sequences.py").write_text(
        "import torch\ndef made():\n    return [torch.ones(4, 12) * n for n in range(1, 20)]\n"
    )
    entry = {"in_modes": [3, 4], "out_modes": [8, 4], "tucker_ranks": [1, 1]}
    (tmp_path / "p.yaml").write_text(json.dumps({"version": 1, "matrices": {"lstm.weight_ih_l0": entry}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def refused(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["btcompress", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


READ = {
    "the model": ("model.pt", ("model.pt",)),
    "the index": ("sharded/model.safetensors.index.json", ("sharded",)),
    "a shard of a folder": ("sharded/1.safetensors", ("sharded",)),
    "a shard of an index": ("sharded/0.safetensors", ("sharded/model.safetensors.index.json",)),
    "the sequences": ("cal.npy", ("model.pt", "--calibration", "cal.npy")),
    "the module": ("mine_of_sequences.py", ("model.pt", "--calibration", "mine_of_sequences:made")),
}
LINKS = {
    "by its name": lambda path: path,
    "by another spelling": lambda path: path.parent / ".." / path.resolve().parent.name / path.name,
    "by its whole name": lambda path: path.resolve(),
    "by a symbolic link": lambda path: linked(path, os.symlink),
    "by a hard link": lambda path: linked(path, os.link),
}


def linked(path, link):
    link(path.resolve(), "link")
    return "link"


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("case", READ)
def test_what_is_read_is_never_the_target_of_factorize_or_plan(case, link, place, capsys, monkeypatch):
    name, arguments = READ[case]
    target = LINKS[link](place.relative_to(place) / name)
    before = contents(place)
    for command in (("factorize", *arguments, "-o"), ("plan", *arguments, *WISH, "--save-plan")):
        assert "is never overwritten" in refused((*command, target, "--force"), capsys, monkeypatch)
    assert contents(place) == before


@pytest.mark.parametrize("link", LINKS)
def test_a_plan_that_is_read_is_never_the_target(link, place, capsys, monkeypatch):
    target = LINKS[link](place.relative_to(place) / "p.yaml")
    before = contents(place)
    arguments = ("factorize", "model.pt", "--plan", "p.yaml", "-o", target, "--force")
    assert "is never overwritten" in refused(arguments, capsys, monkeypatch)
    assert contents(place) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_default_target_is_no_exception(link, place, capsys, monkeypatch):
    link(place / "cal.npy", place / "model.bt.safetensors")
    before = contents(place)
    arguments = ("factorize", "model.pt", "--calibration", "cal.npy", "--force")
    assert "is never overwritten" in refused(arguments, capsys, monkeypatch)
    assert contents(place) == before


@pytest.mark.parametrize(
    "arguments", [("factorize", "model.pt", "-o", "out"), ("plan", "model.pt", *WISH, "--save-plan", "out")]
)
def test_a_target_that_another_process_writes_is_found_before_any_work(arguments, place, capsys, monkeypatch):
    monkeypatch.setattr("btcompress.plan.make_plan", lambda *_, **__: pytest.fail("work was begun"))
    with FileLock(_beside(place / "out", "lock")):
        assert "another btcompress is writing" in refused(arguments, capsys, monkeypatch)


def test_the_target_is_kept_while_the_work_goes_on(place, monkeypatch):
    seen = []
    real = btcompress.plan.make_plan

    def make_plan(*arguments, **options):
        seen.append(_beside(place / "out", "lock").exists())
        return real(*arguments, **options)

    monkeypatch.setattr("btcompress.plan.make_plan", make_plan)
    monkeypatch.setattr(sys, "argv", ["btcompress", "factorize", "model.pt", "-o", "out", "--tucker-rank", "1"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert seen == [True]
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == []
