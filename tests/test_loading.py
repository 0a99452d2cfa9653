"""What is loaded and read before a command begins, and what is not."""

import gc
import hashlib
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from btcompress.checkpoint import ahead, read
from btcompress.checkpoint.source import digest
from btcompress.errors import CheckpointError
from btcompress.lazy import on_first_use

#: Runs commands as ``python -m btcompress`` does, and says which of these modules came to be loaded.
LOADED = """
import json, sys
from btcompress.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["btcompress", *command]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
slow = ("scipy", "tensorly", "accelerate", "yaml", "btcompress.plan.planner", "btcompress.finetune.loop")
print("loaded:", *(name for name in slow if name in sys.modules))
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.ModuleDict({"lstm": nn.LSTM(30, 8)}).state_dict(), path)
    return path


@pytest.fixture
def begun(model):
    """The file, of which the digest was worked out ahead."""
    ahead.begin_digest(model)
    assert ahead._begun[model].exception() is None
    yield model
    ahead._begun.clear()


def loaded(*commands):
    """What a process loads that runs these commands one after the other."""
    given = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run([sys.executable, "-c", LOADED, given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


def test_commands_load_only_what_they_need(model, tmp_path):
    target = tmp_path / "out.safetensors"
    # TensorLy, with which fits start, loads SciPy.
    fit = ("factorize", model, "-o", target, "--cp-rank", "2", "--tucker-rank", "2")
    assert loaded(fit) == ["scipy", "tensorly"]
    rounding = ("factorize", model, "-o", target, "--force", "--bits", "8")
    assert loaded(rounding, ("report", target), ("report", target, "--against", model)) == []


@pytest.mark.parametrize("room", ["calibration", "checkpoint", "finetune", "plan", "recipe"])
def test_names_that_load_when_first_used_all_load_and_no_others(room):
    module = importlib.import_module(f"btcompress.{room}")
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"'btcompress.{room}' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_name_is_looked_up_once_and_may_be_another_where_it_lives():
    load = on_first_use("btcompress", {"digest_of_files": "checkpoint.source:digest"})
    import btcompress

    assert load("digest_of_files") is digest
    assert vars(btcompress).pop("digest_of_files") is digest


def test_a_command_looks_for_garbage_again_once_torch_is_loaded():
    script = (
        "import gc\n"
        "from btcompress.cli.loading import with_torch_loaded\n"
        "print(gc.isenabled())\n"
        "with_torch_loaded(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "True"]
    frozen = gc.get_freeze_count()
    from btcompress.cli.loading import with_torch_loaded

    with_torch_loaded(lambda: None)()  # torch is here already, and what it lies among may be garbage
    assert gc.get_freeze_count() == frozen


def test_the_digest_worked_out_ahead_is_that_of_the_file(begun, monkeypatch):
    sha256 = hashlib.sha256(begun.read_bytes()).hexdigest()
    monkeypatch.setattr(ahead, "digest", lambda *_: pytest.fail("it was read through again"))
    assert read(begun).source.sha256 == sha256


def test_a_digest_is_worked_out_anew_where_the_file_changed_since(tmp_path):
    path = tmp_path / "model.safetensors"  # has no checksums that would tell
    save_file(nn.LSTM(30, 8).state_dict(), path)
    os.utime(path, ns=(0, 0))
    ahead.begin_digest(path)
    assert ahead._begun[path].exception() is None
    save_file(nn.LSTM(30, 8).state_dict(), path)
    assert read(path).source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_wrong_with_a_file_is_said_when_it_is_read(model, tmp_path):
    data = bytearray(model.read_bytes())
    place = data.find(torch.load(model)["lstm.weight_ih_l0"].numpy().tobytes())
    data[place] ^= 1
    model.write_bytes(data)
    ahead.begin_digest(model)
    assert isinstance(ahead._begun[model].exception(), CheckpointError)
    with pytest.raises(CheckpointError, match="checksum"):
        read(model)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_what_is_no_file_is_left_to_who_reads_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "not a regular file"), ("missing.pt", "does not exist")):
        ahead.begin_digest(tmp_path / name)
        assert ahead._begun[tmp_path / name].exception(timeout=60) is not None
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path / name)
    ahead._begun.clear()
