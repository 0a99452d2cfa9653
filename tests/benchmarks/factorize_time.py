"""How long whole commands take on a checkpoint of 236 MB, from the shell and back, and what parts of that take.

Run it alone on a quiet machine:

    python tests/benchmarks/factorize_time.py

The checkpoint is an untrained LSTM of 57,600 inputs and 256 hidden units, which torch.save wrote. Commands take turns,
each in a process of its own: `factorize` with two CP ranks, `report` on what comes of it, `--help`, and a Python that
imports torch alone, which the others cannot do without. The parts are timed in one process, where all is loaded
already: the digest, the fit, its first step, which alone reads all of the matrix, and the measured error. One JSON line
each, in seconds, with the fastest and the slowest run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from timing import machine

from btcompress.checkpoint import read
from btcompress.checkpoint.source import digest
from btcompress.fit import fit_matrix, weight_error
from btcompress.fit.hosvd import compress
from btcompress.fit.measures import largest
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan

N_INPUTS, N_HIDDEN = 57_600, 256
TUCKER_RANK, INPUT_SHAPE = 4, (120, 160, 3)
CP_RANKS = (1, 2)


def write_model(path: Path) -> None:
    """An LSTM as torch initialises it."""
    torch.manual_seed(0)
    torch.save(torch.nn.LSTM(N_INPUTS, N_HIDDEN).state_dict(), path)


def commands(model: Path, target: Path) -> dict[str, Callable[[], object]]:
    """Calls that run a command each."""
    command = (sys.executable, "-m", "btcompress")
    shape = ("--tucker-rank", str(TUCKER_RANK), "--input-shape", ",".join(map(str, INPUT_SHAPE)))
    factorize = (*command, "factorize", str(model), "-o", str(target), "--force", *shape)
    lines = {f"factorize --cp-rank {n}": (*factorize, "--cp-rank", str(n)) for n in CP_RANKS}
    lines |= {
        "report": (*command, "report", str(target)),
        "report --against": (*command, "report", str(target), "--against", str(model)),
        "--help": (*command, "--help"),
        "import torch alone": (sys.executable, "-c", "import torch"),
    }
    return {
        name: lambda line=line: subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        for name, line in lines.items()
    }


def parts(model: Path, cp_rank: int) -> dict[str, Callable[[], object]]:
    """Calls that do a part of ``factorize`` each."""
    checkpoint = read(model)
    request = ShapeRequest(cp_rank=cp_rank, tucker_rank=TUCKER_RANK, input_shape=INPUT_SHAPE)
    (planned,) = make_plan(checkpoint, request).matrices
    matrix, shape, device = checkpoint.tensors[planned.name], planned.shape, torch.device("cpu")
    form = tuple(part.to(matrix.dtype) for part in fit_matrix(matrix, shape).parts)
    return {
        "digest": lambda: digest([model]),
        "fit": lambda: fit_matrix(matrix, shape),
        "first step of the fit": lambda: compress(matrix, shape.part.limited(), largest(matrix), device),
        "error": lambda: weight_error(matrix, form, matrix.dtype),
    }


def rows(calls: Mapping[str, Callable[[], object]], repeats: int) -> None:
    """Let calls take turns, and print a line for each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if n:  # the first ones find files and libraries on the disk
                seconds[name].append(time.perf_counter() - began)
    for name, values in seconds.items():
        row = {"of": name, "median": statistics.median(values), "min": min(values), "max": max(values)}
        print(json.dumps(row), flush=True)


def main() -> None:
    """Time commands, then parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(machine("cpu")))
    with tempfile.TemporaryDirectory() as folder:
        model, target = Path(folder) / "model.pt", Path(folder) / "out.safetensors"
        write_model(model)
        rows(commands(model, target), arguments.repeats)
        for cp_rank in CP_RANKS:
            print(json.dumps({"cp_rank": cp_rank}))
            rows(parts(model, cp_rank), arguments.repeats)


if __name__ == "__main__":
    main()
