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
a cache depends on where in memory it came to lie, by a factor of up to two.

One JSON line for each form of each case, on the CPU, then on a GPU where there is one; there against cuDNN, in float32
without TF32, unless it is asked for. ``--table`` and ``--check`` say what they come to, also of rows measured before.
"""

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from lowrank import Pair, low_rank_shape, plain_loop
from speed_figures import FIGURES, verdicts
from speed_table import table
from timing import Call, machine, seconds_in_turns, set_tf32, without_onednn
from torch import Tensor, nn

from btcompress import BTLSTM, BTLSTMCell
from btcompress.modes import ShapeRequest

KINDS = ("prediction", "training", "cell")
FORMS = ("low rank", "block terms")
#: What a row is about.
WHAT = ("inputs", "hidden", "steps", "batch", "kind", "form")
ONEDNN, WITHOUT_ONEDNN, CUDNN, PLAIN_LOOP = "dense, oneDNN", "dense, without oneDNN", "dense, cuDNN", "plain loop"
RATIO = 4
#: Seconds that a call is repeated in its turn.
TURN = 0.005
#: Sets of modules that a case is measured with; fewer where calls are long.
ROUNDS, FEWEST_ROUNDS = 5, 3
NOT_IN_ONE_PIECE = "RNN module weights are not part of single contiguous chunk of memory"


@dataclass(frozen=True, slots=True)
class Size:
    inputs: int
    hidden: int
    input_shape: tuple[int, ...] | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """A quarter of very wide matrices' parameters is not what anybody keeps of them."""
        return FORMS if self.input_shape is None else ("block terms",)


@dataclass(frozen=True, slots=True)
class Case:
    size: Size
    steps: int
    batch: int
    kind: str

    def row(self, form: str) -> dict[str, object]:
        """What a row says of it."""
        values = (self.size.inputs, self.size.hidden, self.steps, self.batch, self.kind, form)
        return dict(zip(WHAT, values, strict=True))


SIZES = (*(Size(each, each) for each in (128, 256, 512, 1024)), Size(57_600, 256, (120, 160, 3)))
BATCHES = (1, 16, 32)
STEPS = (1, 6, 50)
#: A case beside those of every batch and number of steps.
LONG = (SIZES[1], 100, 1)
#: To try the script itself.
SMALL = (Size(16, 16), Size(240, 8, (8, 10, 3)))


def all_cases(sizes: Sequence[Size]) -> Iterator[Case]:
    """By sizes, the cells of each size last."""
    for size in sizes:
        runs = [(steps, batch) for steps in STEPS for batch in BATCHES]
        for steps, batch in [*runs, LONG[1:]] if size == LONG[0] else runs:
            yield from (Case(size, steps, batch, kind) for kind in ("prediction", "training"))
        yield from (Case(size, 1, batch, "cell") for batch in BATCHES)


def in_short_run(case: Case) -> bool:
    """Cases that a figure names, and training of every size."""
    trains = case.kind == "training" and (case.steps, case.batch) == (50, 16)
    return any(
        figure.covers(case.row(form)) for form in case.size.forms for figure in FIGURES if figure.names_sizes
    ) or (trains and case.size.input_shape is None)


def build(size: Size, form: str, *, cell: bool) -> nn.Module:
    """One layer or cell, ``dense`` or in one of the forms."""
    if form == "dense":
        return (nn.LSTMCell if cell else nn.LSTM)(size.inputs, size.hidden)
    kind: type[BTLSTM] | type[BTLSTMCell] = BTLSTMCell if cell else BTLSTM
    if form == "low rank":
        suffix, rows = "" if cell else "_l0", 4 * size.hidden
        columns = {"weight_ih": size.inputs, "weight_hh": size.hidden}
        shapes = {name + suffix: low_rank_shape(rows, each, RATIO) for name, each in columns.items()}
        return kind(size.inputs, size.hidden, shapes=shapes)
    request = ShapeRequest(cp_rank=2, tucker_rank=4, input_shape=size.input_shape)
    return kind(size.inputs, size.hidden, **({"shape": request} if cell else asdict(request)))


def prediction(module: nn.Module, x: Tensor, state: Pair) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return module(x, state)[0]

    return call


def training(module: nn.Module, x: Tensor, state: Pair) -> Call:
    def call() -> None:
        module.zero_grad()
        module(x)[0].square().sum().backward()

    return call


def loop_of(module: BTLSTM, x: Tensor, state: Pair) -> Call:
    """The plain loop by the factors of a module, once it is seen to give what the module does."""
    with torch.no_grad():
        factors = [module.get_submodule(name).low_rank_factors() for name in ("weight_ih_l0", "weight_hh_l0")]
        run = partial(plain_loop, x, (state[0][0], state[1][0]), *factors, module.bias_ih_l0 + module.bias_hh_l0)
        torch.testing.assert_close(run(), module(x, state)[0], atol=1e-4, rtol=1e-3)

    def call() -> None:
        with torch.no_grad():
            run()

    return call


def arguments_of(case: Case, device: str) -> tuple[Tensor, Pair]:
    """What all modules of a case are called with."""
    generator = torch.Generator(device).manual_seed(0)
    batch = (case.batch,) if case.kind == "cell" else (1, case.batch)
    steps = () if case.kind == "cell" else (case.steps,)
    x = torch.randn(*steps, case.batch, case.size.inputs, generator=generator, device=device)
    h, c = (torch.rand(*batch, case.size.hidden, generator=generator, device=device) - 0.5 for _ in range(2))
    return x, (h, c)


def contestants(case: Case, forms: Sequence[str], x: Tensor, state: Pair, device: str) -> dict[str, Call]:
    """All calls that take turns in a case, by name, on modules built anew."""
    with torch.device(device):
        modules = {form: build(case.size, form, cell=case.kind == "cell") for form in ("dense", *forms)}
    trains = case.kind == "training"
    calls = {
        form: (training if trains else prediction)(module.train(trains), x, state) for form, module in modules.items()
    }
    found = {ONEDNN: calls["dense"], WITHOUT_ONEDNN: calls["dense"]} if device == "cpu" else {CUDNN: calls["dense"]}
    found |= {form: calls[form] for form in forms}
    if "low rank" in forms and case.kind == "prediction":
        found[PLAIN_LOOP] = loop_of(modules["low rank"], x, state)
    return found


def times_of(case: Case, forms: Sequence[str], seconds: float, device: str) -> dict[str, list[float]]:
    """Of every contestant, over several sets of modules: it matters where in memory a matrix came to lie."""
    torch.manual_seed(0)
    found: dict[str, list[float]] = defaultdict(list)
    x, state = arguments_of(case, device)
    began = time.monotonic()
    for already in range(ROUNDS):
        if already >= FEWEST_ROUNDS and time.monotonic() - began > 2 * seconds:
            break
        calls = contestants(case, forms, x, state, device)
        settings = {WITHOUT_ONEDNN: without_onednn}
        times = seconds_in_turns(calls, device, turns=1, seconds=seconds / ROUNDS, turn=TURN, settings=settings)
        for name, each in times.items():
            found[name] += each
    return found


def measure(case: Case, forms: Sequence[str], seconds: float, device: str) -> Iterator[dict[str, object]]:
    """A row for each form."""
    own = [form for form in case.size.forms if form in forms]
    times = times_of(case, own, seconds, device)
    medians = {name: statistics.median(each) for name, each in times.items()}
    dense = min(each for name, each in medians.items() if name.startswith("dense"))
    for form in own:
        others = {*FORMS, PLAIN_LOOP} - {form} - ({PLAIN_LOOP} if form == "low rank" else set())
        named = [name for name in times if name not in others]
        yield {
            **machine(device),
            **case.row(form),
            "seconds": {name: round(medians[name], 8) for name in named},
            "quartiles": {name: [round(each, 8) for each in quartiles(times[name])] for name in named},
            "ratio": round(dense / medians[form], 4),
        }


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def read_rows(paths: Sequence[Path]) -> list[dict[str, object]]:
    """Rows of earlier runs; the last of a case and form counts."""
    lines = [line for path in paths for line in path.read_text().splitlines() if line.startswith("{")]
    rows = [json.loads(line) for line in lines]
    return list({tuple(row[name] for name in WHAT): row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="cases that a figure names, and training of every size")
    parser.add_argument("--inputs", type=int, nargs="+", help="only sizes with so many inputs")
    parser.add_argument("--batch", type=int, nargs="+", help="only these of 1, 16 and 32")
    parser.add_argument("--steps", type=int, nargs="+", help="only these of 1, 6 and 50")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=KINDS, help="only these")
    parser.add_argument("--form", choices=FORMS, nargs="+", default=FORMS, help="only these")
    parser.add_argument("--seconds", type=float, default=2, help="for which a case takes turns; three at least (2)")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds after which no case is begun")
    parser.add_argument("--threads", type=int, help="of the CPU; as torch has it where left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 factors to 11 bits")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script itself")
    parser.add_argument("--read", type=Path, nargs="+", help="take rows from files, and measure nothing")
    parser.add_argument("--table", action="store_true", help="a Markdown table of all rows")
    parser.add_argument("--check", action="store_true", help="which figures are reached; exits with 1 if one is missed")
    arguments = parser.parse_args()
    warnings.filterwarnings("error", NOT_IN_ONE_PIECE)
    set_tf32(arguments.tf32)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
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
    began = time.monotonic()
    devices = [arguments.device] if arguments.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in [] if arguments.read else devices:
        for case in cases:
            if time.monotonic() - began > arguments.within:
                break
            for row in measure(case, arguments.form, arguments.seconds, device):
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
