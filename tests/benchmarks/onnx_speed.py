"""How fast LSTMs of low rank run in ONNX Runtime beside the dense LSTM operator, with one thread.

    python tests/benchmarks/onnx_speed.py                            # the table of docs/benchmarks.md
    python tests/benchmarks/onnx_speed.py --check                    # and whether the figures there are reached
    python tests/benchmarks/onnx_speed.py measure --hidden 128 --cell gru >> forms.jsonl
    python tests/benchmarks/onnx_speed.py fit forms.jsonl            # constants for btcompress/export/costs.py

Each row is one layer with as many inputs as hidden units, ``W`` and ``U`` at a quarter of their parameters: the dense
LSTM operator, both forms of the low-rank layer, and dense and low rank in 8-bit integers, by turns in one process.
``measure`` times every form, of block terms too, over sizes; ``fit`` finds the constants of least squared logarithms,
and says how much slower what is chosen is than the fastest form. Run it alone on a quiet machine.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import seconds_in_turns
from torch import nn
from ways_costs import forms as shapes_of
from ways_costs import tell_constants

from btcompress.benching.turns import Timed, take_turns
from btcompress.export import layers
from btcompress.export.checking import session
from btcompress.export.costs import constants_of, quantities, seconds
from btcompress.export.forms import Form, possible_forms
from btcompress.export.graphfiles import graph_of
from btcompress.export.integers import quantize
from btcompress.export.request import GraphRequest
from btcompress.export.weights import Weights
from btcompress.nn.replacing import classes_of
from btcompress.shapes import GATES, Cell

#: Hidden units, steps and batch of the table.
SIZES = [
    (128, 1, 1),
    (128, 50, 1),
    (128, 50, 16),
    (256, 1, 1),
    (256, 50, 1),
    (256, 50, 16),
    (512, 1, 1),
    (512, 50, 1),
    (512, 50, 16),
    (1024, 1, 1),
    (1024, 50, 1),
    (1024, 50, 16),
]
#: Seconds of a turn.
TURN = 0.02
#: At 512 and 1,024 units the least ratio of the dense operator's time to ours, by steps and batch.
LEAST = {(1, 1): 2.8, (50, 1): 3.0, (50, 16): 2.5}
#: The most of ours over the dense operator's time at any size.
MOST = 1.05


def module_of(inputs: int, hidden: int, form: str, cell: Cell = "lstm") -> nn.Module:
    """A layer with random weights of a form: dense, low rank or block terms."""
    w, u = shapes_of(inputs, hidden, len(GATES[cell]))[form]
    named = {key: shape for key, shape in (("weight_ih_l0", w), ("weight_hh_l0", u)) if shape is not None}
    torch.manual_seed(0)
    dense, own = classes_of(cell, False)
    build: Callable[..., nn.Module] = own if named else dense
    return build(inputs, hidden, **({"shapes": named} if named else {}))


def call_of(path: Path, inputs: int, size: tuple[int, int, int]) -> Callable[[], object]:
    """A run of a graph on random inputs."""
    hidden, steps, batch = size
    generator = np.random.default_rng(0)
    feed = {"x": generator.standard_normal((steps, batch, inputs), dtype=np.float32)}
    runner = session(path, threads=1)
    states = [each.name for each in runner.get_inputs() if each.name != "x"]
    feed |= {name: np.zeros((1, batch, hidden), dtype=np.float32) for name in states}
    return lambda: runner.run(None, feed)


def written(folder: Path, name: str, module: nn.Module, request: GraphRequest, form: Form | None = None) -> Path:
    """A graph in a file, of a form or of the one that is chosen."""
    chosen = layers.choose_form
    try:
        if form is not None:
            layers.choose_form = lambda *_: form
        proto, _, _ = graph_of(Weights.of_module("", module), request)
    finally:
        layers.choose_form = chosen
    path = folder / f"{name}.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def row_of(size: tuple[int, int, int], budget: float) -> dict[str, Any]:
    """Milliseconds of each way, and bytes of its file."""
    hidden, steps, batch = size
    dense, low = module_of(hidden, hidden, "dense"), module_of(hidden, hidden, "low rank")
    request = GraphRequest(batch=batch, steps=steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "dense": written(folder, "dense", dense, request, Form("lstm", "dense", "dense")),
            "lstm": written(folder, "lstm", low, request, Form("lstm", "factors", "dense")),
            "scan": written(folder, "scan", low, request, Form("scan", "factors", "factors")),
        }
        chosen = written(folder, "chosen", low, request)
        plain = written(folder, "plain", low, GraphRequest(batch=batch, steps=steps, int8=True))
        files |= {"dense int8": folder / "dense8.onnx", "int8": folder / "int8.onnx"}
        quantize(files["dense"], files["dense int8"])
        quantize(plain, files["int8"])
        calls = {way: call_of(path, hidden, size) for way, path in files.items()}
        # A layer that streams finds its weights where its last call left them.
        turns = seconds_in_turns(calls, "cpu", turns=8, seconds=budget, turn=TURN)
        form = next(way for way in ("lstm", "scan") if files[way].read_bytes() == chosen.read_bytes())
        times = {way: statistics.median(turns[way]) * 1e3 for way in files}
        sizes = {way: path.stat().st_size for way, path in files.items()}
    return {"size": size, "ms": times, "bytes": sizes, "chosen": form, "ratio": times["dense"] / times[form]}


def shown(rows: list[dict[str, Any]]) -> None:
    """The table in Markdown."""
    print("| inputs = hidden, steps, batch | dense | `lstm` | `scan` | chosen | dense int8 | int8 | file | int8 file |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ms, files = row["ms"], row["bytes"]
        cells = [f"{ms[way]:.3g}" for way in ("dense", "lstm", "scan")]
        cells.append(f"{row['chosen']}, {row['ratio']:.2f} times")
        cells += [f"{ms[way]:.3g}" for way in ("dense int8", "int8")]
        cells += [f"{files[way] / files['dense']:.0%}" for way in (row["chosen"], "int8")]
        print(f"| {', '.join(f'{each:,}' for each in row['size'])} | {' | '.join(cells)} |")


def missed(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The figures that are not reached."""
    for row in rows:
        hidden, steps, batch = row["size"]
        where, ms, files = f"{hidden}, {steps}, {batch}", row["ms"], row["bytes"]
        least = LEAST.get((steps, batch), 0.0) if hidden >= 512 else 0.0
        if row["ratio"] < max(least, 1 / MOST):
            yield f"{where}: {row['ratio']:.2f} times as fast as dense, where {max(least, 1 / MOST):.2f} is asked"
        if hidden >= 512 and batch == 16 and ms["int8"] >= ms[row["chosen"]]:
            yield f"{where}: int8 takes {ms['int8']:.3g} ms, floats {ms[row['chosen']]:.3g}"
        if files["int8"] > 0.3 * files[row["chosen"]]:
            yield f"{where}: int8 is {files['int8'] / files[row['chosen']]:.0%} of the float file"


def measure(arguments: argparse.Namespace) -> None:
    """Print milliseconds of every form of every size, one JSON object in a line."""
    for hidden, steps, batch in itertools.product(arguments.hidden, arguments.steps, arguments.batch):
        inputs, request = arguments.inputs or hidden, GraphRequest(batch=batch, steps=steps)
        with tempfile.TemporaryDirectory() as name:
            calls, rows = {}, {}
            for kind in shapes_of(inputs, hidden, len(GATES[arguments.cell])):
                module = module_of(inputs, hidden, kind, arguments.cell)
                for form in forms_of(module, request):
                    own = f"{kind} {form.steps} {form.inputs} {form.recurrent}"
                    calls[own] = Timed(
                        call_of(written(Path(name), own, module, request, form), inputs, (hidden, steps, batch))
                    )
                    own_size = {"inputs": inputs, "size": [hidden, steps, batch], "cell": arguments.cell}
                    rows[own] = {**own_size, "kind": kind, "form": astuple(form)}
            turns = take_turns(calls, arguments.seconds, "cpu")
        for own, row in rows.items():
            print(json.dumps(row | {"us": turns[own].median * 1e6}), flush=True)


def forms_of(module: nn.Module, request: GraphRequest) -> list[Form]:
    return list(possible_forms(Weights.of_module("", module).layers[0][0], request))


def fit(rows: list[dict[str, Any]]) -> None:
    """Print the constants of each operator, and what comes of them."""
    by_steps: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    cases: dict[tuple[Any, ...], dict[Form, float]] = {}
    for row in rows:
        hidden, steps, batch = row["size"]
        form, request = Form(*row["form"]), GraphRequest(batch=batch, steps=steps)
        cell = row.get("cell", "lstm")
        direction = direction_of(row["inputs"], hidden, row["kind"], cell)
        found = astuple(quantities(form, direction, hidden, request))
        by_steps.setdefault(constants_of(form, direction), []).append((found, row["us"]))
        cases.setdefault((row["inputs"], hidden, steps, batch, row["kind"], cell), {})[form] = row["us"]
    for steps, own in by_steps.items():
        tell_constants(steps, own)
    ratios = []
    for (inputs, hidden, steps, batch, kind, cell), own in cases.items():
        direction, request = direction_of(inputs, hidden, kind, cell), GraphRequest(batch=batch, steps=steps)
        chosen = min(own, key=lambda form: seconds(form, direction, hidden, request))
        ratios.append(own[chosen] / min(own.values()))
        if ratios[-1] > 1.1:
            print(
                f"{inputs, hidden, steps, batch, kind, cell}: {chosen} takes {ratios[-1]:.2f} of the fastest",
                file=sys.stderr,
            )
    print(
        f"chosen as it is now: {statistics.mean(ratios):.3f} of the fastest in the mean, {max(ratios):.2f} at most",
        file=sys.stderr,
    )


def direction_of(inputs: int, hidden: int, kind: str, cell: Cell) -> Any:
    return Weights.of_module("", module_of(inputs, hidden, kind, cell)).layers[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--check", action="store_true", help="fail where a figure is not reached")
    parser.add_argument("--rows", type=Path, help="write the rows there as well, as JSON lines")
    commands = parser.add_subparsers(dest="command")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--hidden", type=int, nargs="+", default=[32, 128, 256, 512, 1024])
    measuring.add_argument("--inputs", type=int, help="as many as hidden units where left out")
    measuring.add_argument("--steps", type=int, nargs="+", default=[1, 6, 50])
    measuring.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    measuring.add_argument("--cell", choices=list(GATES), default="lstm")
    commands.add_parser("fit").add_argument("file", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "measure":
        measure(arguments)
    elif arguments.command == "fit":
        fit([json.loads(line) for line in arguments.file.read_text().splitlines()])
    else:
        rows = []
        for size in SIZES:
            rows.append(row_of(size, arguments.seconds))
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        shown(rows)
        if arguments.check and (reasons := list(missed(rows))):
            sys.exit("\n".join(reasons))


if __name__ == "__main__":
    main()
