"""How well a published model goes on with its LSTM's matrices in fewer bytes, ours beside its rivals, as JSON.

    python tests/benchmarks/equal_bytes.py MODEL weights train.npz test.npz bytes.json --ratios 8 16 --seeds 0 1 2

MODEL is one of those of ``decisions.py``, or ``Resemblyzer``, which gives vectors in place of decisions. All matrices
of the LSTM, ``W`` and ``U``, take the part of their bytes that is asked for, or as near to it as a contestant comes
(``contestants.py``); ``reached`` is what came of that. Figures are of ``test.npz``, which nothing was fitted to. A
``{seed}`` in a file's name is replaced by the seed. Each row is written once it is measured, and rows that are in the
file already are not measured again; ``--table`` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from contestants import CONTESTANTS, OF_ONE_SIZE, WITHOUT_SEED, Job
from decisions import HEADS, measured

from btcompress.finetune.data import open_data

Row = dict[str, Any]
FIGURES = ("hidden_state_error", "agreement", "cosine", "equal_error_rate")


def measure(args: argparse.Namespace, contestant: str, ratio: float, seed: int) -> Row:
    """One contestant at one ratio."""
    train, test = (Path(str(path).replace("{seed}", str(seed))) for path in (args.train, args.test))
    job = Job(args.name, args.weights, train, ratio, seed)
    torch.manual_seed(seed)
    began = time.process_time()
    smaller = CONTESTANTS[contestant](job)
    seconds = time.process_time() - began
    figures = measured(args.name, job.dense, smaller.network, open_data(str(test)))
    asked = {"model": args.name, "contestant": contestant, "ratio": ratio, "seed": seed}
    took = {"bytes": smaller.n_bytes, "reached": job.dense_bytes / smaller.n_bytes, "form": smaller.form}
    return {**asked, **took, **figures, "cpu_seconds": round(seconds, 1)}


def table(rows: list[Row]) -> str:
    """A table in Markdown for each model: contestants by rows, ratios by columns, means over the seeds."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        ratios = sorted({row["ratio"] for row in own})
        lines += [
            f"| {model} | " + " | ".join(f"{ratio:g}x" for ratio in ratios) + " |",
            "|---" * (len(ratios) + 1) + "|",
        ]
        for contestant in dict.fromkeys(row["contestant"] for row in own):
            cells = [
                _cell([row for row in own if (row["contestant"], row["ratio"]) == (contestant, ratio)])
                for ratio in ratios
            ]
            lines.append(f"| {contestant} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    told = [f"{mean(row[name] for row in rows):.3f}" for name in ("hidden_state_error", "cosine") if name in rows[0]]
    shares = ("agreement", "equal_error_rate")
    told += [f"{mean(row[name] for row in rows):.2%}" for name in shares if name in rows[0]]
    short = (
        [] if math.isclose(rows[0]["reached"], rows[0]["ratio"], rel_tol=0.02) else [f"at {rows[0]['reached']:.1f}x"]
    )
    return ", ".join([*told, *short]) + (f" ({len(rows)} seeds)" if len(rows) > 1 else "")


def main() -> None:
    """Read the arguments, measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=HEADS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[4, 8, 12, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--table", action="store_true", help="print what is in the file, and measure nothing")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.json.read_text()) if args.json.exists() else []
    if args.table:
        print(table(rows))
        return
    varying = "{seed}" in f"{args.train}{args.test}"
    for seed in args.seeds:
        for ratio in args.ratios:
            for contestant in args.contestants:
                asked = (args.name, contestant, ratio, seed)
                done = {(row["model"], row["contestant"], row["ratio"], row["seed"]) for row in rows}
                again = contestant in WITHOUT_SEED and seed != args.seeds[0] and not varying
                smaller = contestant in OF_ONE_SIZE and ratio != min(args.ratios)
                if asked in done or again or smaller:
                    continue
                rows.append(measure(args, contestant, ratio, seed))
                print(json.dumps(rows[-1]), flush=True)
                partial = args.json.with_suffix(".partial")
                partial.write_text(json.dumps(rows, indent=1) + "\n")
                partial.replace(args.json)


if __name__ == "__main__":
    sys.exit(main())
