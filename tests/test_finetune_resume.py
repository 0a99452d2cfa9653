import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.errors import BTCompressError, OutputError
from btcompress.finetune import TrainConfig, request
from tuning import SMALL, Classifier, draw, saved_pair, tune


@pytest.fixture
def files(tmp_path):
    dense, compressed = saved_pair(tmp_path, nn.LSTM(24, 6))
    np.savez(tmp_path / "data.npz", x=draw(60, 5, 24))
    return dense, compressed, tmp_path / "data.npz"


class StoppedError(Exception):
    pass


def interrupting(after):
    def on_epoch(epoch):
        if epoch.epoch == after:
            raise StoppedError

    return on_epoch


@pytest.mark.parametrize("after", [1, 2])
def test_resumed_training_ends_in_the_bytes_of_an_uninterrupted_one(after, files, tmp_path):
    dense, compressed, data = files
    tune(tmp_path, compressed, data, dense, name="whole")
    with pytest.raises(StoppedError):
        tune(tmp_path, compressed, data, dense, name="cut", on_epoch=interrupting(after))
    assert not (tmp_path / "cut").exists()
    tune(tmp_path, compressed, data, dense, name="cut", resume=True)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "cut.state").exists()


@pytest.fixture
def exact(tmp_path):
    """Files of which nothing gets better, as there is next to no error to begin with."""
    np.savez(tmp_path / "data.npz", x=draw(60, 5, 24))
    return *saved_pair(tmp_path, nn.LSTM(24, 6), tucker_rank=100), tmp_path / "data.npz"


def stuck(files, folder, name, **options):
    """Train at a high rate; the rows."""
    dense, compressed, data = files
    config = TrainConfig(epochs=30, batch_size=8, learning_rate=0.1, warmup=0.0, patience=3, cpu=True)
    tune(folder, compressed, data, dense, config, name, **options)
    return [json.loads(line) for line in (folder / f"{name}.metrics.jsonl").read_text().splitlines()]


def test_without_a_better_metric_the_learning_rate_falls_to_zero_before_training_ends(exact, tmp_path):
    rows = stuck(exact, tmp_path, "stuck")
    rates = [row["learning_rate"] for row in rows]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rates[2] > 0.9 * 0.1
    assert rates[3:] == pytest.approx([0.75 * rates[2], 0.25 * rates[2], 0], abs=1e-12)
    assert [row["epochs"] for row in rows] == [30, 30, 30, 6, 6, 6]


@pytest.mark.parametrize("after", [2, 3, 4, 6])
def test_training_resumed_while_its_learning_rate_falls_ends_in_the_same_bytes(after, exact, tmp_path):
    whole = stuck(exact, tmp_path, "whole")
    with pytest.raises(StoppedError):
        stuck(exact, tmp_path, "cut", on_epoch=interrupting(after))
    assert stuck(exact, tmp_path, "cut", resume=True)[after:] == [
        {**row, "seconds": ANY, "sequences_per_second": ANY} for row in whole[after:]
    ]
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def command(arguments, **environment):
    return subprocess.Popen(
        [*arguments], env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=subprocess.PIPE, text=True
    )


def arguments(dense, compressed, data, output, *more):
    return [
        *("finetune", compressed, "--teacher", dense, "--data", data, "-o", output, "--cpu", "--json"),
        *("--epochs", "80", "--batch-size", "8", "--patience", "0", *more),
    ]


@pytest.fixture
def _interruptible():
    """Commands can be interrupted though the tests run in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_command_that_is_killed_and_interrupted_goes_on_to_the_same_bytes(files, tmp_path, run):
    python = [sys.executable, "-m", "btcompress"]
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    state, metrics = tmp_path / "cut.safetensors.state", tmp_path / "cut.metrics.jsonl"
    for by, epochs, resumed in ((signal.SIGKILL, 3, []), (signal.SIGINT, 12, ["--resume"])):
        running = command(map(str, [*python, *arguments(*files, cut, *resumed)]))
        deadline = time.monotonic() + 60
        while not (state.exists() and metrics.exists() and metrics.read_text().count("\n") >= epochs):
            assert running.poll() is None, running.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(by)
        _, told = running.communicate()
        assert state.exists()
        assert not cut.exists()
    assert running.returncode == 130
    # A machine that is slow is told how far the training is, once it has taken seconds.
    told_last = [line for line in told.splitlines() if not line.startswith("fine-tuning: ")]
    assert told_last == [
        f"Interrupted. The last complete state is kept in {state}: the same command with --resume goes on from there."
    ]
    for resumed, output in ((["--resume"], cut), ([], whole)):
        run(*arguments(*files, output, *resumed))
    assert cut.read_bytes() == whole.read_bytes()


def test_interrupted_training_is_not_started_over_by_accident(files, tmp_path):
    dense, compressed, data = files
    with pytest.raises(BTCompressError, match="nothing to resume"):
        tune(tmp_path, compressed, data, dense, resume=True)
    with pytest.raises(StoppedError):
        tune(tmp_path, compressed, data, dense, on_epoch=interrupting(1))
    with pytest.raises(OutputError, match="--resume"):
        tune(tmp_path, compressed, data, dense)
    with pytest.raises(BTCompressError, match=r"batch_size 8, and now it is 4"):
        tune(tmp_path, compressed, data, dense, replace(SMALL, batch_size=4), resume=True)
    tune(tmp_path, compressed, data, dense, force=True)


def another(path):
    """The same file but for the last of its numbers."""
    if path.suffix == ".npz":
        x = np.load(path)["x"]
        x[-1, -1, -1] += 1
        np.savez(path, x=x)
    elif path.suffix == ".pt":
        tensors = torch.load(path)
        tensors["bias_hh_l0"][-1] += 1
        torch.save(tensors, path)
    else:
        contents = path.read_bytes()
        path.write_bytes(contents[:-1] + bytes([contents[-1] ^ 0x80]))


@pytest.mark.parametrize(
    ("changed", "words"),
    [(0, "--teacher"), (1, "the checkpoint"), (2, "--data"), (3, "--val")],
    ids=["teacher", "compressed", "data", "val"],
)
def test_state_is_not_gone_on_with_on_other_contents(changed, words, files, tmp_path):
    dense, compressed, data = files
    held = tmp_path / "held.npz"
    np.savez(held, x=draw(10, 5, 24, seed=1))
    with pytest.raises(StoppedError):
        tune(tmp_path, compressed, data, dense, held=str(held), on_epoch=interrupting(1))
    another([dense, compressed, data, held][changed])
    with pytest.raises(BTCompressError, match=f"contents of {words} "):
        tune(tmp_path, compressed, data, dense, held=str(held), resume=True)


def test_large_files_are_compared_by_their_size_both_ends_and_pieces_between(tmp_path, monkeypatch):
    monkeypatch.setattr(request, "_MOST_COMPARED", 64)
    monkeypatch.setattr(request, "_PIECE", 8)
    path = tmp_path / "large"
    contents = bytes(range(200))
    told = set()
    for changed in (contents, contents + b"\0", b"\1" + contents[1:], contents[:-1] + b"\0"):
        path.write_bytes(changed)
        told.add(request.contents_digest(path))
    assert len(told) == 4
    path.write_bytes(contents)
    assert request.contents_digest(path) in told
    # 8 pieces of 8 bytes: among any 28 bytes that change, some are compared.
    for start in range(172):
        path.write_bytes(contents[:start] + b"\xff" * 28 + contents[start + 28 :])
        assert request.contents_digest(path) not in told


def test_damaged_state_is_refused_in_words(files, tmp_path):
    dense, compressed, data = files
    with pytest.raises(StoppedError):
        tune(tmp_path, compressed, data, dense, on_epoch=interrupting(1))
    state = tmp_path / "tuned.safetensors.state"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(BTCompressError, match="damaged"):
        tune(tmp_path, compressed, data, dense, resume=True)


def test_diverging_is_an_error_that_leaves_no_result(files, tmp_path):
    dense, compressed, data = files
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=1e36, warmup=0, cpu=True)
    with pytest.raises(BTCompressError, match="--lr"):
        tune(tmp_path, compressed, data, dense, config)
    assert not (tmp_path / "tuned.safetensors").exists()


COUNTED = """
import os
from pathlib import Path
import numpy as np

def data():
    (Path(__file__).parent / f"process{os.environ.get('RANK', '')}").touch()
    arrays = np.load(Path(__file__).parent / "data.npz")
    return [{name: array[row] for name, array in arrays.items()} for row in range(39)]
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


@pytest.mark.parametrize(
    ("launcher", "labels"),
    [(TORCHRUN, True), (ACCELERATE, False)],
    ids=["torchrun, labels", "accelerate, hidden states"],
)
def test_two_processes_end_where_one_does_within_rounding(launcher, labels, tmp_path, run):
    dense, compressed = saved_pair(tmp_path, Classifier().double())
    x = draw(39, 5, 24)  # leaves a batch of 3: parts of 2 and 1, of which the second process has none
    arrays = {"x": x, "lengths": np.arange(39) % 5 + 1} | ({"y": x[:, 0, :3].argmax(1)} if labels else {})
    np.savez(tmp_path / "data.npz", **arrays)
    module = tmp_path.name  # as no other test has imported
    (tmp_path / f"{module}.py").write_text(COUNTED)
    short = ["--epochs", "3", "--accumulate", "2", "--path", tmp_path]
    one, two = (
        arguments(dense, compressed, f"{module}:data", tmp_path / name, *short)
        for name in ("one.safetensors", "two.safetensors")
    )
    run(*one)
    done = command(map(str, [sys.executable, "-m", *launcher, "-m", "btcompress", *two]))
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert {path.name for path in tmp_path.glob("process*")} == {"process", "process0", "process1"}
    first, second = (btcompress.load(tmp_path / name) for name in ("one.safetensors", "two.safetensors"))
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(second.tensors[name], tensor, rtol=1e-6, atol=1e-9)
    for key in ("before", "after"):
        assert second.history[-1][key] == pytest.approx(first.history[-1][key], rel=1e-9)
