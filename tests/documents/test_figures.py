"""The scripts that draw the figures of the mathematics run, and the pictures are those that they draw."""

import importlib
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

import btcompress

ROOT = Path(__file__).parents[2]
FIGURES, PICTURES = ROOT / "docs" / "figures", ROOT / "docs" / "pictures"
NAMES = ("block_terms", "bytes", "calibrating", "fitting")
#: A figure as Markdown: what it shows in words, its file, and the caption below.
FIGURE = r"!\[([^\]]+)\]\(pictures/(\w+)\.png\)\n\n\*((?:.+\n)+)"


@pytest.fixture
def run(monkeypatch):
    """Run a script as ``python`` does, with these arguments."""
    monkeypatch.syspath_prepend(FIGURES)

    def call(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        importlib.import_module(name).main()

    return call


@pytest.fixture
def network():
    """Two layers, named as those that are measured."""
    torch.manual_seed(0)
    return nn.ModuleDict({"lstm": nn.LSTM(12, 10, 2), "linear": nn.Linear(10, 3)})


def structure(value):
    """The names in it, and how deep they lie; of lists what their first entry is."""
    if isinstance(value, dict):
        return {key: structure(each) for key, each in value.items()}
    return [structure(value[0])] if isinstance(value, list) else type(value)


def test_pictures_are_those_of_the_scripts(run, tmp_path):
    (pinned,) = re.findall(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    run("draw", tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES)
    if matplotlib.__version__ != pinned:
        pytest.skip(f"matplotlib is not {pinned}, which drew the pictures that are compared")
    for name in NAMES:
        assert (tmp_path / f"{name}.png").read_bytes() == (PICTURES / f"{name}.png").read_bytes(), name


def test_pictures_are_small_and_stand_in_the_documents_with_words_and_their_script():
    text = (ROOT / "docs" / "math.md").read_text()
    found = {name: (words, caption) for words, name, caption in re.findall(FIGURE, text)}
    assert found.keys() == set(NAMES)
    for name, (words, caption) in found.items():
        assert (PICTURES / f"{name}.png").stat().st_size < 150_000
        assert len(words) > 60
        (script,) = re.findall(r"`(docs/figures/\w+\.py)`", caption)
        assert (ROOT / script).is_file()


def test_any_checkpoint_with_such_layers_is_measured_and_drawn(run, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(0).normal(size=(10, 4, 12)).astype(np.float32))
    result = btcompress.factorize(tmp_path / "model.pt", matrices=("input", "recurrent"), bits=4)
    btcompress.save(result, tmp_path / "result.safetensors")
    files, written = ("model.pt", "inputs.npz", "result.safetensors"), tmp_path / "measured.json"
    run("measure", *(tmp_path / file for file in files), "--json", written, "--name", "made up", "--epochs", 1)
    measured = json.loads(written.read_text())
    committed = json.loads((FIGURES / "measured.json").read_text())
    assert structure(measured) == structure(committed)
    errors = measured["calibrating"]["errors"]
    assert errors["fitted to the inputs"]["activation"] < errors["fitted to the weights"]["activation"]
    assert sum(measured["calibrating"]["shares"]) == pytest.approx(1)
    before = sum(each["before"] for each in measured["bytes"].values())
    assert before == sum(tensor.nbytes for tensor in network.state_dict().values())
    run("draw", tmp_path, "--measured", written)
    assert {path.stem for path in tmp_path.glob("*.png")} == set(NAMES)


def test_the_published_case_is_counted(monkeypatch):
    monkeypatch.syspath_prepend(FIGURES)
    told = importlib.import_module("bytes_before_and_after").published_bytes()
    assert told["W"]["after"] == 4 * 3392
    assert sum(each["before"] for each in told.values()) == 4 * sum(
        parameter.numel() for parameter in nn.LSTM(57600, 256, device="meta").parameters()
    )
