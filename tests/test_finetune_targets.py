import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import btcompress
from btcompress.checkpoint import read_compressed
from btcompress.errors import BTCompressError, CheckpointError, MemoryLimitError, OutputError
from btcompress.finetune import TrainConfig, finetuning, networks
from btcompress.memory import limited
from tuning import Classifier, draw, saved_pair, tune

QUICK = TrainConfig(epochs=1, batch_size=4, cpu=True)

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]

def loss(outputs, y):
    return (outputs - y).square().mean()

def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 8, generator=generator), torch.zeros(3, 4)) for _ in range(10)]
"""


@pytest.fixture
def files(tmp_path):
    model = nn.ModuleDict({"lstm": nn.LSTM(8, 4)})
    dense, compressed = saved_pair(tmp_path, model)
    for name in ("data.npz", "val.npz"):
        np.savez(tmp_path / name, x=draw(10, 3, 8))
    return dense, compressed


def sharded(folder, dense):
    """The dense checkpoint in two shards with their index."""
    tensors = torch.load(dense)
    names = sorted(tensors)
    weight_map = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


TARGETS = ["tuned.safetensors", "tuned.metrics.jsonl", "tuned.safetensors.state"]
READ = ["model.bt.safetensors", "data.npz", "val.npz", "part-1.safetensors", "model.safetensors.index.json"]


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", READ)
def test_nothing_that_is_read_is_written_by_whatever_link(name, target, link, files, tmp_path):
    index = sharded(tmp_path, files[0])
    before = {each: (tmp_path / each).read_bytes() for each in READ}
    getattr(tmp_path / target, link)(tmp_path / name)
    with pytest.raises(OutputError, match=r"never overwritten|in the way"):
        tune(tmp_path, files[1], tmp_path / "data.npz", index, QUICK, held=str(tmp_path / "val.npz"), force=True)
    assert {each: (tmp_path / each).read_bytes() for each in READ} == before
    assert os.path.lexists(tmp_path / target)


@pytest.mark.parametrize("target", TARGETS[:2])
@pytest.mark.parametrize("option", ["data", "model", "loss"])
def test_code_that_is_named_is_never_written(option, target, files, tmp_path):
    names = {each: f"code_{each}_for_{option}_{target.replace('.', '_')}" for each in ("data", "model", "loss")}
    for module in names.values():
        (tmp_path / f"{module}.py").write_text(CODE)
    (tmp_path / target).symlink_to(tmp_path / f"{names[option]}.py")
    more = {"model": f"{names['model']}:Net", "loss": f"{names['loss']}:loss", "folder": tmp_path}
    with pytest.raises(OutputError, match="never overwritten"):
        tune(tmp_path, files[1], f"{names['data']}:data", None, QUICK, force=True, **more)
    assert (tmp_path / f"{names[option]}.py").read_text() == CODE
    (tmp_path / target).unlink()
    tune(tmp_path, files[1], f"{names['data']}:data", None, QUICK, **more)


def test_folder_of_curves_is_neither_the_result_nor_a_folder_that_is_read(files, tmp_path):
    dense, compressed = files
    with pytest.raises(OutputError, match="is read, or written as something else"):
        tune(tmp_path, compressed, tmp_path / "data.npz", dense, QUICK, name="tuned", tensorboard=tmp_path, force=True)
    place = tmp_path / "boards" / "tuned"
    place.mkdir(parents=True)
    dense.rename(place / "model.pt")
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(OutputError, match="is read, or written as something else"):
        tune(
            tmp_path,
            compressed,
            tmp_path / "data.npz",
            tmp_path / "link",
            QUICK,
            tensorboard=tmp_path / "boards",
            force=True,
        )
    assert [path.name for path in place.iterdir()] == ["model.pt"]


#: Needs no torch, which takes seconds to import.
HOLD = """
import pathlib, sys
from btcompress.checkpoint.atomic import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("taken", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def taken(tmp_path):
    """The target of these tests, which another process is writing."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "tuned.safetensors")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "taken\n"
        yield other
        other.kill()


def test_second_training_to_the_same_target_is_refused_before_it_reads_anything(taken, files, tmp_path):
    files[1].write_text("no checkpoint")
    with pytest.raises(OutputError, match=r"another btcompress is writing .*tuned\.safetensors"):
        tune(tmp_path, files[1], tmp_path / "data.npz", files[0], QUICK)
    taken.kill()
    taken.wait(60)
    with pytest.raises(CheckpointError):
        tune(tmp_path, files[1], tmp_path / "data.npz", files[0], QUICK)


def test_target_is_taken_for_the_whole_training_and_free_after_it(files, tmp_path):
    told = []

    def on_epoch(epoch):
        code = (
            "import pathlib, sys; from btcompress.checkpoint.atomic import claimed\n"
            "with claimed(pathlib.Path(sys.argv[1])): pass"
        )
        arguments = [sys.executable, "-c", code, str(tmp_path / "tuned.safetensors")]
        told.append(subprocess.run(arguments, capture_output=True, text=True, check=False).stderr)

    tune(tmp_path, files[1], tmp_path / "data.npz", files[0], QUICK, on_epoch=on_epoch)
    assert "another btcompress is writing" in told[0]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".btcompress")]


def test_several_processes_end_together_where_the_first_is_refused(taken, files, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "btcompress",
    ]
    given = ["finetune", files[1], "--data", tmp_path / "data.npz", "--teacher", files[0], "--cpu"]
    began = time.monotonic()
    done = subprocess.run(
        [*launch, *map(str, given), "-o", str(tmp_path / "tuned.safetensors")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert done.stderr.count("another btcompress is writing") == 1
    assert time.monotonic() - began < 100


def test_number_that_is_not_finite_in_the_record_is_refused_before_training(files, tmp_path, monkeypatch):
    def opened(path):
        compressed = read_compressed(path)
        bad = {key: replace(matrix, weight_error=math.nan) for key, matrix in compressed.matrices.items()}
        return replace(compressed, matrices=bad)

    monkeypatch.setattr(finetuning, "read_compressed", opened)
    epochs = []
    with pytest.raises(CheckpointError, match="not finite"):
        tune(tmp_path, files[1], tmp_path / "data.npz", files[0], QUICK, on_epoch=epochs.append)
    assert not epochs
    assert not (tmp_path / "tuned.safetensors.state").exists()


def test_metric_that_is_no_number_in_the_end_is_recorded_as_the_largest_and_reported(files, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning.Trainer, "measure_any", lambda self, network: math.nan)
    monkeypatch.setattr(finetuning.Trainer, "measure", lambda self, network: 0.5)
    step = tune(tmp_path, files[1], tmp_path / "data.npz", files[0], QUICK)
    assert step["after"] == sys.float_info.max
    assert btcompress.report(btcompress.load(tmp_path / "tuned.safetensors")).finetuned[-1].after == sys.float_info.max


def test_numbers_beyond_the_files_dtype_are_stored_as_its_largest(tmp_path):
    _, compressed = saved_pair(tmp_path, Classifier(8, 4).half(), matrices=["linear"])
    network = networks.student_of(read_compressed(compressed), networks.choose_lstm(read_compressed(compressed), None))
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = -1e30
    stored = networks.stored_tensors(network, read_compressed(compressed))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in stored.values())
    assert min(float(tensor.min()) for tensor in stored.values()) == torch.finfo(torch.float16).min


def test_tensor_that_is_no_longer_a_number_ends_training_though_the_metric_is_one(files, tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning.Trainer, "measure_any", lambda self, network: 0.5)
    original = finetuning.Trainer._step

    def step(self, rows, number):
        sums = original(self, rows, number)
        with torch.no_grad():
            self.trained[0].view(-1)[0] = math.inf
        return sums

    monkeypatch.setattr(finetuning.Trainer, "_step", step)
    one_step = replace(QUICK, batch_size=32)
    with pytest.raises(BTCompressError, match=r"diverged in epoch 1: a tensor"):
        tune(tmp_path, files[1], tmp_path / "data.npz", files[0], one_step)


@pytest.mark.parametrize("seed", [2**63, 2**63 - 1])
def test_largest_seed_trains_to_the_end_and_larger_ones_are_refused(seed, files, tmp_path):
    if seed == 2**63:
        with pytest.raises(BTCompressError, match="seed must be a whole number from 0 to"):
            replace(QUICK, seed=seed)
    else:
        tune(tmp_path, files[1], tmp_path / "data.npz", files[0], replace(QUICK, seed=seed))


def test_training_that_would_not_fit_in_memory_is_refused_before_it_begins(files, tmp_path):
    with limited(1000), pytest.raises(MemoryLimitError, match=r"Training .* of memory, but 1\.0 kB are allowed"):
        tune(tmp_path, files[1], tmp_path / "data.npz", files[0], QUICK)
    assert not (tmp_path / "tuned.safetensors").exists()
