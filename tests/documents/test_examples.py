"""The examples run as a user runs them: in a folder of one's own, small, by what they print and write."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import btcompress

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = ("finetune_with_two_processes", "speech_to_onnx", "streaming", "tagger_with_lengths")


def example(name, folder, *args):
    """What an example prints, run small in a folder."""
    paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--quick", *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ratio(folder):
    """By how much the matrices that were factorized are smaller in a folder's result."""
    matrices = btcompress.report(btcompress.load(folder / "small.safetensors")).matrices
    return sum(each.params_before for each in matrices) / sum(each.params_after for each in matrices)


def test_a_speech_detector_goes_to_onnx_runtime_and_decides_there(tmp_path):
    printed = example("speech_to_onnx", tmp_path)
    alike, count = re.search(r"on ([\d.]+)% of ([\d,]+) chunks held back", printed).groups()
    assert float(alike) > 90
    assert count == "500"
    sizes = [(tmp_path / name).stat().st_size for name in ("dense.onnx", "small.onnx")]
    assert [f"{size / 1000:,.0f} kB" for size in sizes] == re.findall(r"[\d,]+ kB", printed)
    assert sizes[0] - sizes[1] > 0.74 * 131_072 * 4  # the matrices at a quarter of their numbers
    inputs = {"chunk": np.ones((1, 576), np.float32) / 9} | dict.fromkeys("hc", np.zeros((1, 128), np.float32))
    dense, small = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, inputs)
        for name in ("dense.onnx", "small.onnx")
    )
    assert abs(float(dense[0][0] - small[0][0])) < 0.1
    assert not np.array_equal(dense[1], small[1])


def test_a_tagger_learns_from_real_steps_alone(tmp_path):
    printed = example("tagger_with_lengths", tmp_path)
    sequences, steps = re.search(r"(\d+) of \d+ sequences, ([\d,]+) steps", printed).groups()
    x, lengths = (np.load(tmp_path / "inputs.npz")[name] for name in ("lstm/x", "lstm/lengths"))
    assert len(lengths) == int(sequences) == 200
    assert lengths.sum() == int(steps.replace(",", "")) < 200 * 80
    assert x.shape[-1] == 32
    assert len(re.findall(r"^(?:dense|factorize|finetune): [\d.]+%", printed, re.MULTILINE)) == 3
    assert ratio(tmp_path) >= 20


def test_a_stream_in_pieces_is_the_whole(tmp_path):
    printed = example("streaming", tmp_path)
    off = [float(each) for each in re.findall(r"within (\S+) of all at once", printed)]
    assert len(off) == 3
    assert max(off) < 1e-5
    assert ratio(tmp_path) >= 4
    assert "tuned: lstm l0, 1 step, batch 1" in printed
    assert (tmp_path / "pins.json").is_file()
    assert "one step, block_terms:" in printed


def test_two_processes_end_where_one_does(tmp_path):
    printed = example("finetune_with_two_processes", tmp_path)
    one, two = (btcompress.load(tmp_path / name) for name in ("one.safetensors", "two.safetensors"))
    assert [each["step"] for each in two.history] == ["factorize", "finetune"]
    assert two.history[-1]["after"] == pytest.approx(one.history[-1]["after"], rel=1e-3)
    before = btcompress.load(tmp_path / "small.safetensors")
    assert max(float((two.tensors[name] - before.tensors[name]).abs().max()) for name in two.tensors) > 1e-3
    assert float(re.search(r"differ by (\S+) at most", printed).group(1)) < 1e-3
    assert ratio(tmp_path) >= 10


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_to_install_and_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert "    pip install" in text
    assert f"    python {name}.py" in text
    assert f"{name}.py" in (ROOT / "docs" / "examples.md").read_text()


def test_every_script_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "detector"}
