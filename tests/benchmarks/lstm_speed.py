"""BTLSTM against torch.nn.LSTM, and the cells against each other: seconds of a call, in prediction and in training.

Run it alone on a quiet machine:

    python tests/benchmarks/lstm_speed.py --table --check | tee rows
    python tests/benchmarks/lstm_speed.py --short --check
    python tests/benchmarks/lstm_speed.py --read rows --table

BTLSTM and BTLSTMCell run as ``method="auto"`` has it, in two forms: *low rank*, ``W`` and ``U`` with a quarter of their
parameters, and *block terms*, ``W`` with N=2 and R=4 and modes as they are chosen, ``U`` dense. The dense LSTM runs on
both of torch's kernels for a CPU, oneDNN's, which it takes by default, and its own. *Dense* is the faster of them in
each case, and the ratio is dense over ours, above 1 where ours is faster. *Plain loop* is low rank written down in a
few lines of torch.

Prediction is a call without gradients on modules in eval mode, the state given; training is a call and the backward
pass to all weights, without inputs' gradients and without an optimizer. Times are medians of calls that take turns in
one process. A turn lasts some milliseconds, so that a call finds in the caches what its own last run left there, as it
does in a stream. Modules are built anew three to five times for each case: whether a matrix of some megabytes stays in
a cache depends on where in memory it came to lie. Each case has a process of its own, as what was freed before decides
whether memory must be mapped anew at every call, which can double the time of the dense LSTM; ``--keep-memory`` is
about a process in which it need not.

One JSON line for each form of each case, on the CPU, then on a GPU where there is one; there against cuDNN, in float32
without TF32, unless it is asked for. ``--table`` and ``--check`` say what they come to, also of rows measured before.
"""

import argparse
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from speed_cases import FORMS, KINDS, SIZES, SMALL, WHAT, Case, Settings, all_cases, in_short_run, rows_of
from speed_figures import verdicts
from speed_table import table
from timing import set_tf32

NOT_IN_ONE_PIECE = "RNN module weights are not part of single contiguous chunk of memory"


def measured(cases: Sequence[Case], settings: Settings, within: float) -> Iterator[dict[str, object]]:
    """Rows of all cases, each as soon as it is there; on a CPU every case has a process of its own."""
    began = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["btcompress.nn"])
    with context.Pool(1, maxtasksperchild=1) if settings.device == "cpu" else nullcontext() as pool:
        measure = partial(rows_of, settings)
        for rows in map(measure, cases) if pool is None else pool.imap(measure, cases):
            yield from rows
            if time.monotonic() - began > within:
                break


def read_rows(paths: Sequence[Path]) -> list[dict[str, object]]:
    """Rows of earlier runs; the last of a case and form counts."""
    lines = [line for path in paths for line in path.read_text().splitlines() if line.startswith("{")]
    rows = [json.loads(line) for line in lines]
    return list({tuple(row[name] for name in WHAT): row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="cases that figures name, and some of every size")
    parser.add_argument("--inputs", type=int, nargs="+", help="only sizes with so many inputs")
    parser.add_argument("--batch", type=int, nargs="+", help="only these of 1, 16 and 32")
    parser.add_argument("--steps", type=int, nargs="+", help="only these of 1, 6 and 50")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS, help="only these")
    parser.add_argument("--form", choices=FORMS, nargs="+", default=FORMS, help="only these")
    parser.add_argument("--seconds", type=float, default=1.5, help="for which a case takes turns; three at least (1.5)")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds after which no case is begun")
    parser.add_argument("--threads", type=int, help="of the CPU; as torch has it where left out")
    parser.add_argument("--keep-memory", action="store_true", help="let the C library keep what is freed")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 factors to 11 bits")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--read", type=Path, nargs="+", help="take rows from files, and measure nothing")
    parser.add_argument("--table", action="store_true", help="a Markdown table of all rows")
    parser.add_argument("--check", action="store_true", help="which figures are reached; exits with 1 if one is missed")
    arguments = parser.parse_args()
    warnings.filterwarnings("error", NOT_IN_ONE_PIECE)
    set_tf32(arguments.tf32)
    rows = read_rows(arguments.read) if arguments.read else []
    cases = [
        case
        for case in all_cases(SMALL if arguments.small else SIZES)
        if case.size.inputs in (arguments.inputs or (case.size.inputs,))
        and case.batch in (arguments.batch or (case.batch,))
        and case.steps in (arguments.steps or (case.steps,))
        and case.kind in arguments.kind
        and (in_short_run(case) or not arguments.short)
    ]
    devices = [arguments.device] if arguments.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in [] if arguments.read else devices:
        threads = arguments.threads or torch.get_num_threads()
        settings = Settings(tuple(arguments.form), arguments.seconds, device, threads, arguments.keep_memory)
        for row in measured(cases, settings, arguments.within):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if arguments.table:
        print(*table(rows), sep="\n")
    if arguments.check:
        lines = list(verdicts(rows))
        print(*(line for line, _ in lines), sep="\n")
        sys.exit(int(any(missed for _, missed in lines)))


if __name__ == "__main__":
    main()
