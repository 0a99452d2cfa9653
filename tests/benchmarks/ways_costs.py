"""Seconds of every way to run a layer, and the constants of the cost model that fit them.

    python tests/benchmarks/ways_costs.py measure --hidden 128 >> ways.jsonl
    python tests/benchmarks/ways_costs.py fit ways.jsonl

``measure`` runs one layer by each way that btcompress/nn/ways.py has, over steps and batches, in prediction and in
training, on oneDNN's kernel and on torch's own: medians of calls that take turns. Run it alone on a quiet machine.
``fit`` prints the constants for btcompress/nn/costs.py: for each kind of run the least squares of logarithms among
constants that are not negative, and how far off they are. ``check`` says instead how much slower what the model
chooses is than the fastest way measured.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lowrank import low_rank_shape
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from torch import nn

from btcompress import BTLSTM
from btcompress.modes import ShapeRequest, choose_shape
from btcompress.nn.choice import choose_way
from btcompress.nn.costs import Quantities, kind_of, quantities
from btcompress.nn.ways import Task, Way, possible_ways
from btcompress.shapes import MatrixShape

#: Seconds for all repeats of a call, the least and most repeats, and the seconds from which a call is long.
SECONDS, LEAST, MOST, LONG = 0.1, 3, 60, 0.01

#: Inputs, hidden units, steps and batch.
Size = tuple[int, int, int, int]
FloatArray = NDArray[np.float64]
Shapes = tuple[MatrixShape | None, MatrixShape | None]


def forms(inputs: int, hidden: int, n_gates: int = 4) -> dict[str, Shapes]:
    """Shapes of ``W`` and ``U`` by the names of forms."""
    frame = (120, 160, 3) if inputs == 57_600 else None
    request = ShapeRequest(cp_rank=2, tucker_rank=4, input_shape=frame)
    rows = n_gates * hidden
    block_terms = choose_shape(request, "weight_ih_l0", rows, inputs, n_gates=n_gates).shape
    if inputs == 57_600:
        return {"dense": (None, None), "block terms": (block_terms, None)}
    low_rank = (low_rank_shape(rows, inputs, n_gates), low_rank_shape(rows, hidden, n_gates))
    return {"dense": (None, None), "low rank": low_rank, "block terms": (block_terms, None)}


def timed(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of calls that take turns, a few times each, of which the first does not count."""
    first = {}
    for name, call in calls.items():
        call()
        began = time.perf_counter()
        call()
        first[name] = time.perf_counter() - began
    # Short calls run in bursts, as they do in practice: after all others nothing of theirs is in a cache.
    burst = 1 if max(first.values()) > LONG else 4
    repeats = int(min(MOST, max(LEAST, SECONDS * len(calls) / sum(first.values()) / burst)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            for _ in range(burst):
                began = time.perf_counter()
                call()
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in found.items()}


def task_of(size: Size, shapes: Shapes, *, trains: bool, onednn: bool = True, keeps: bool = True) -> Task:
    inputs, hidden, steps, batch = size
    common = {"packed": False, "trains": trains, "w": shapes[:1], "u": shapes[1:], "onednn": onednn, "keeps": keeps}
    return Task(inputs, hidden, steps, batch, steps * batch, **common)


def runs(size: Size) -> Iterator[tuple[str, Task, Way, Callable[[], None]]]:
    """Calls of one size: the form, what is to be done, how, and the call."""
    inputs, hidden, steps, batch = size
    x = torch.randn(steps, batch, inputs, generator=torch.Generator().manual_seed(0))
    for form, shapes in forms(inputs, hidden).items():
        named = {key: shape for key, shape in zip(("weight_ih_l0", "weight_hh_l0"), shapes, strict=True) if shape}
        for trains in (False, True):
            if not named:
                # A dense LSTM as torch runs it, which keeps nothing.
                for onednn in (True, False):
                    task = task_of(size, shapes, trains=trains, onednn=onednn, keeps=False)
                    call = pass_of(nn.LSTM(inputs, hidden), x, trains=trains, onednn=onednn)
                    yield form, task, Way("kernel", "dense", "dense"), call
                continue
            task = task_of(size, shapes, trains=trains)
            for way in sorted(possible_ways(task, "auto"), key=str):
                if (way.inputs == "dense" and inputs == 57_600) or (not trains and way.steps == "definition"):
                    continue
                module = BTLSTM(inputs, hidden, shapes=named).train(trains)
                module.choice.pin(way)
                yield form, task, way, pass_of(module, x, trains=trains, onednn=True)


def pass_of(module: nn.Module, x: torch.Tensor, *, trains: bool, onednn: bool) -> Callable[[], None]:
    parameters = list(module.parameters())

    def run() -> None:
        with nullcontext() if onednn else torch.backends.mkldnn.flags(enabled=False):
            if trains:
                for parameter in parameters:
                    parameter.grad = None
                module(x)[0].square().mean().backward()
            else:
                with torch.no_grad():
                    module(x)

    return run


def measure(arguments: argparse.Namespace) -> None:
    for hidden, steps, batch in itertools.product(arguments.hidden, arguments.steps, arguments.batch):
        size = (arguments.inputs or hidden, hidden, steps, batch)
        every = {
            f"{form}, {way}, {task.trains}, {task.onednn}": (form, task, way, call)
            for form, task, way, call in runs(size)
        }
        found = timed({name: call for name, (*_, call) in every.items()})
        for name, (form, task, way, _) in every.items():
            row = {"size": size, "form": form, "trains": task.trains, "onednn": task.onednn}
            row |= {"way": [way.steps, way.inputs, way.recurrent], "seconds": found[name]}
            print(json.dumps(row), flush=True)


def task_and_way(row: dict[str, Any]) -> tuple[Task, Way]:
    shapes = forms(*row["size"][:2])[row["form"]]
    keeps = row["form"] != "dense"
    return task_of(row["size"], shapes, trains=row["trains"], onednn=row["onednn"], keeps=keeps), Way(*row["way"])


def fitted(features: FloatArray, times: FloatArray) -> FloatArray:
    """Constants of least squared logarithms of the ratios of estimates and times, none negative."""
    used = features.any(axis=0)
    begun, _ = nnls(features[:, used] / times[:, None], np.ones(len(times)))
    scale = 1 / (features[:, used] / times[:, None]).max(axis=0)
    found = least_squares(
        lambda roots: np.log(features[:, used] @ (roots**2 * scale) / times), np.sqrt(begun / scale + 1e-3)
    )
    constants = np.zeros(features.shape[1])
    constants[used] = np.where(found.x**2 > 1e-6, found.x**2 * scale, 0)
    return constants


def fit(rows: list[dict[str, Any]]) -> None:
    """Print the constants of each kind."""
    by_kind: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    for row in rows:
        task, way = task_and_way(row)
        by_kind.setdefault(kind_of(way, task), []).append((astuple(quantities(way, task)), row["seconds"] * 1e6))
    for kind, own in sorted(by_kind.items()):
        tell_constants(kind, own)


def tell_constants(kind: str, runs: Sequence[tuple[tuple[float, ...], float]]) -> None:
    """Print the constants of a kind, as code has them, and how far off they are.

    Args:
        kind: of the runs.
        runs: quantities, and microseconds.
    """
    features, times = (np.array(each) for each in zip(*runs, strict=True))
    constants = fitted(features, times)
    off = np.exp(np.abs(np.log(features @ constants / times)))
    named = {field.name: float(f"{c:.3g}") for field, c in zip(fields(Quantities), constants, strict=True) if c}
    print(f'    "{kind}": Quantities({", ".join(f"{name}={c:g}" for name, c in named.items())}),')
    print(f"{kind}: {len(runs)} runs, off by {np.median(off):.2f}, {off.max():.2f} at most", file=sys.stderr)


def check(rows: list[dict[str, Any]]) -> None:
    """For each size and form: what the model chooses, over the fastest way and over the faster dense kernel."""
    table: dict[tuple[Any, ...], dict[Way, float]] = {}
    dense: dict[tuple[Any, ...], float] = {}
    for row in rows:
        _, way = task_and_way(row)
        case = (tuple(row["size"]), row["trains"])
        if row["form"] == "dense":
            dense[case] = min(row["seconds"], dense.get(case, math.inf))
        else:
            table.setdefault((*case, row["form"]), {})[way] = row["seconds"]
    ratios = []
    for (size, trains, form), own in table.items():
        chosen = choose_way(task_of(size, forms(*size[:2])[form], trains=trains), "auto")
        best = min(own, key=own.__getitem__)
        ratios.append(own[chosen] / own[best])
        row = {"size": size, "form": form, "trains": trains, "chosen": str(chosen), "best": str(best)}
        row |= {"over_best": round(ratios[-1], 2), "dense_over_chosen": round(dense[size, trains] / own[chosen], 2)}
        print(json.dumps(row | {"dense_over_best": round(dense[size, trains] / own[best], 2)}))
    print(f"{len(ratios)} cases, {statistics.mean(ratios):.3f} in the mean, {max(ratios):.2f} at most", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--hidden", type=int, nargs="+", default=[32, 128, 256, 512, 1024])
    measuring.add_argument("--inputs", type=int, help="as many as hidden units where left out")
    measuring.add_argument("--steps", type=int, nargs="+", default=[1, 6, 50])
    measuring.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    for name in ("fit", "check"):
        commands.add_parser(name).add_argument("rows", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments)
        return
    rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
    (fit if arguments.command == "fit" else check)(rows)


if __name__ == "__main__":
    main()
