"""No tensors of two devices meet, shown on a pretended device; and the script for a real one names what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
SCRIPT = TESTS / "benchmarks" / "gpu.sh"

#: A test of each room, the quick ones; all of them pass there, in some minutes.
CHOSEN = (
    "(an_lstm_gives and auto and both and packed and float32) or (a_cell and factored and float32) or in_pieces "
    "or (grus and gru and auto and packed and float32) "
    "or with_orders or form_that_can_be_used or (without_core and Kronecker and float32) or plan_on_sample "
    "or (calibrating and float32) or (fine_tuning and float32 and (states-torch or each)) or resuming "
    "or refuses_tensors or takes_numbers"
)


def test_fit_plan_calibration_fine_tuning_and_modules_keep_to_one_device(tmp_path):
    environment = {**os.environ, "BTCOMPRESS_GPU_TESTS_ON": "pretended"}
    command = [sys.executable, "-m", "pytest", "-q", "-rp", "--no-header", "-p", "no:cacheprovider"]
    chosen = [str(TESTS / "test_gpu.py"), "-m", "gpu", "-k", CHOSEN, "--basetemp", str(tmp_path)]
    done = subprocess.run(
        [*command, *chosen], env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
    # That it refuses anything is what all the others rest on.
    assert done.stdout.count("PASSED tests/test_gpu.py::test_it_refuses_tensors_of_the_cpu_beside_its_own") == 8


def test_the_script_for_a_gpu_names_files_and_options_that_exist():
    commands = re.findall(r"^part (?:.|\\\n)+$", SCRIPT.read_text(), re.MULTILINE)
    named = [(TESTS.parent / path, command) for command in commands for path in re.findall(r"tests/\S+\.py", command)]
    assert [path.name for path, _ in named] == ["test_gpu.py", "step_cost.py", "lstm_speed.py"]
    for path, command in named:
        source = path.read_text()
        if "benchmarks" in path.parts:
            options = {*re.findall(r" (--[a-z-]+)", command), "--small"}
            assert all(f'add_argument("{option}"' in source for option in options), path


def test_the_script_for_a_gpu_ends_within_eight_minutes_whatever_hangs():
    limits = re.findall(r"^part \w+ (\d+) |timeout -k 5 (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(limits) == 5
    assert sum(int(part or other) + 5 for part, other in limits) <= 480


def test_all_tests_of_a_gpu_are_in_the_one_file_that_the_script_runs():
    marked = [path.name for path in TESTS.glob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    assert marked == ["test_gpu.py"]


def test_the_script_says_in_one_line_that_there_is_no_gpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("BTCOMPRESS_GPU_TESTS_ON", None)
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("There is no CUDA device here")
    assert (done.stdout.count("\n"), done.stderr, list(tmp_path.iterdir())) == (1, "", [])
