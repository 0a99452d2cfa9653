"""BTGRU and BTRNN against torch.nn.GRU and torch.nn.RNN, on a CPU: seconds of a call, in prediction and in training.

Run it alone on a quiet machine:

    python tests/benchmarks/gru_speed.py --table

As many inputs as hidden units; ``W`` and ``U`` are of low rank with a quarter of their parameters; the layer runs as
``method="auto"`` has it. Torch has one kernel for these on a CPU. Prediction is a call without gradients, the state
given; training is a call and the backward pass to all weights. Times are medians of calls that take turns in one
process, for some milliseconds each. One JSON line for each case; the ratio is dense over ours, above 1 where ours is
faster.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from statistics import median

import torch
from timing import machine, seconds_in_turns
from torch import nn

from btcompress.nn.choice import Place
from btcompress.nn.replacing import classes_of
from btcompress.shapes import GATES, BlockTermShape, Cell, MatrixShape

#: Steps and sequences, and whether it is trained.
CASES = ((1, 1, False), (50, 1, False), (50, 16, False), (50, 16, True))


def layers(cell: Cell, size: int) -> dict[str, nn.Module]:
    """Ours, and the dense layer with the same matrices."""
    n = len(GATES[cell])
    rank = max(1, n * size**2 // (4 * (n + 1) * size))
    shape = MatrixShape(BlockTermShape.low_rank(n * size, size, rank, n))
    _, ours = classes_of(cell, is_cell=False)
    layer = ours(size, size, shapes=dict.fromkeys(("weight_ih_l0", "weight_hh_l0"), shape))
    return {"dense": layer.to_dense(), "low rank": layer}


def call_of(layer: nn.Module, x: torch.Tensor, h: torch.Tensor, trains: bool) -> Callable[[], object]:
    """A call, and back if it is trained."""
    layer.train(trains)

    def call() -> None:
        with nullcontext() if trains else torch.no_grad():
            outputs, _ = layer(x, h)
        if trains:
            layer.zero_grad()
            outputs.sum().backward()

    return call


def rows(sizes: list[int], cells: list[Cell], seconds: float) -> Iterator[dict[str, object]]:
    """What is measured, a row for each case."""
    for cell in cells:
        for size in sizes:
            for steps, batch, trains in CASES:
                torch.manual_seed(0)
                both = layers(cell, size)
                x, h = torch.randn(steps, batch, size), torch.randn(1, batch, size)
                calls = {name: call_of(layer, x, h, trains) for name, layer in both.items()}
                took = seconds_in_turns(calls, "cpu", turns=3, seconds=seconds, turn=min(0.005, seconds))
                dense, ours = (median(took[name]) for name in both)
                choice = both["low rank"].choice
                place = Place("l0", steps, batch, trains)
                way = str(choice.way(place, (), lambda choice=choice, place=place: choice.tasks[place]))
                yield {
                    "cell": cell,
                    "size": size,
                    "steps": steps,
                    "batch": batch,
                    "kind": "training" if trains else "prediction",
                    "dense": dense,
                    "low rank": ours,
                    "ratio": dense / ours,
                    "way": way,
                    **machine("cpu"),
                }


def table(found: list[dict[str, object]]) -> Iterator[str]:
    """Rows in Markdown, in milliseconds."""
    yield "| cell | inputs = hidden, steps, batch | kind | dense | low rank |"
    yield "| --- | --- | --- | --- | --- |"
    for row in found:
        sizes = f"{row['size']}, {row['steps']}, {row['batch']}"
        times = f"{1e3 * row['dense']:.3g} | {1e3 * row['low rank']:.3g} ({row['ratio']:.2g})"
        yield f"| {row['cell']} | {sizes} | {row['kind']} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128, 256, 512], help="inputs, and hidden units")
    parser.add_argument("--cell", choices=("gru", "rnn"), nargs="+", default=["gru", "rnn"], help="only these")
    parser.add_argument("--seconds", type=float, default=0.5, help="for which a case takes turns; three at least (0.5)")
    parser.add_argument("--table", action="store_true", help="a Markdown table of all rows")
    arguments = parser.parse_args()
    found = []
    for row in rows(arguments.size, arguments.cell, arguments.seconds):
        print(json.dumps(row), flush=True)
        found.append(row)
    if arguments.table:
        print(*table(found), sep="\n")


if __name__ == "__main__":
    main()
