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
does in a stream.

One JSON line for each form of each case, on the CPU, then on a GPU where there is one; there against cuDNN, in float32
without TF32, unless it is asked for. ``--table`` and ``--check`` say what they come to, also of rows measured before.
"""

import argparse
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from lowrank import low_rank_shape, plain_loop
from speed_figures import FIGURES, verdicts
from speed_table import table
from timing import Call, machine, median_seconds, set_tf32, without_onednn
from torch import Tensor, nn

from btcompress import BTLSTM, BTLSTMCell
from btcompress.modes import ShapeRequest

KINDS = ("prediction", "training", "cell")
FORMS = ("low rank", "block terms")
#: What a row is about.
WHAT = ("inputs", "hidden", "steps", "batch", "kind", "form")
DENSE, OTHER_KERNEL = "dense", "dense without oneDNN"
RATIO = 4
#: Seconds that a call is repeated in its turn.
TURN = 0.005
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


def prediction(module: nn.Module, x: Tensor, state: tuple[Tensor, Tensor]) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            return module(x, state)[0]

    return call


def training(module: nn.Module, x: Tensor, state: tuple[Tensor, Tensor]) -> Call:
    def call() -> None:
        module.zero_grad()
        module(x)[0].square().sum().backward()

    return call


def loop_of(module: BTLSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> Call:
    """The plain loop by the factors of a module, once it is seen to give what the module does."""
    with torch.no_grad():
        factors = [module.get_submodule(name).low_rank_factors() for name in ("weight_ih_l0", "weight_hh_l0")]
        run = partial(plain_loop, x, (state[0][0], state[1][0]), *factors, module.bias_ih_l0 + module.bias_hh_l0)
        torch.testing.assert_close(run(), module(x, state)[0], atol=1e-4, rtol=1e-3)

    def call() -> None:
        with torch.no_grad():
            run()

    return call


def contestants(case: Case, modules: Mapping[str, nn.Module], device: str) -> dict[str, Call]:
    """All calls that take turns in a case, by name."""
    size, cell = case.size, case.kind == "cell"
    generator = torch.Generator(device).manual_seed(0)
    layers = (case.batch,) if cell else (1, case.batch)
    x = torch.randn(*(() if cell else (case.steps,)), case.batch, size.inputs, generator=generator, device=device)
    state = (
        torch.rand(*layers, size.hidden, generator=generator, device=device) - 0.5,
        torch.randn(*layers, size.hidden, generator=generator, device=device),
    )
    for module in modules.values():
        module.zero_grad()
        module.train(case.kind == "training")
    call = training if case.kind == "training" else prediction
    found = {DENSE: call(modules["dense"], x, state)}
    if device == "cpu":
        found[OTHER_KERNEL] = found[DENSE]
    found |= {form: call(module, x, state) for form, module in modules.items() if form != "dense"}
    if "low rank" in modules and case.kind == "prediction":
        found["plain loop"] = loop_of(modules["low rank"], x, state)
    return found


def measure(
    cases: Sequence[Case], forms: Sequence[str], device: str, *, seconds: float, within: float
) -> Iterator[dict[str, object]]:
    """Rows of all cases, each as soon as it is there; neighbours share their modules."""
    began = time.monotonic()
    for (size, cell), group in itertools.groupby(cases, key=lambda case: (case.size, case.kind == "cell")):
        torch.manual_seed(0)
        own = [form for form in size.forms if form in forms]
        with torch.device(device):
            modules = {form: build(size, form, cell=cell) for form in ("dense", *own)}
        for case in group:
            if time.monotonic() - began > within:
                return
            calls = contestants(case, modules, device)
            times = median_seconds(calls, device, seconds=seconds, turn=TURN, settings={OTHER_KERNEL: without_onednn})
            dense = min(each for name, each in times.items() if name.startswith("dense"))
            for form in own:
                others = [other for other in FORMS if other != form] + ["plain loop"] * (form != "low rank")
                named = {name: round(each, 8) for name, each in times.items() if name not in others}
                yield {**machine(device), **case.row(form), "seconds": named, "ratio": round(dense / times[form], 4)}


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
    devices = [arguments.device] if arguments.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in [] if arguments.read else devices:
        for row in measure(cases, arguments.form, device, seconds=arguments.seconds, within=arguments.within):
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
