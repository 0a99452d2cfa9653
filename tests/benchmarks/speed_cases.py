"""The cases of lstm_speed.py: what is built, called and timed in each."""

import ctypes
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from lowrank import Pair, low_rank_shape, plain_loop
from speed_figures import FIGURES
from timing import Call, machine, seconds_in_turns, without_onednn
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


@dataclass(frozen=True, slots=True)
class Settings:
    """How cases are measured: for how many seconds each, and of what."""

    forms: tuple[str, ...]
    seconds: float
    device: str
    threads: int
    keep_memory: bool


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
    """Cases that a figure names but the longest, and of every size training and one step of a cell."""
    wide = case.size.input_shape is not None
    named = any(figure.covers(case.row(form)) for form in case.size.forms for figure in FIGURES if figure.names_sizes)
    trains = not wide and (case.kind, case.steps, case.batch) == ("training", 50, 16)
    return (named and not (wide and case.steps == 50)) or trains or (case.kind, case.batch) == ("cell", 1)


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


def rows_of(settings: Settings, case: Case) -> list[dict[str, object]]:
    """A row for each form."""
    if settings.keep_memory:
        keep_memory()
    torch.set_num_threads(settings.threads)
    own = [form for form in case.size.forms if form in settings.forms]
    times = times_of(case, own, settings.seconds, settings.device)
    medians = {name: statistics.median(each) for name, each in times.items()}
    dense = min(each for name, each in medians.items() if name.startswith("dense"))
    rows = []
    for form in own:
        others = {*FORMS, PLAIN_LOOP} - {form} - ({PLAIN_LOOP} if form == "low rank" else set())
        named = [name for name in times if name not in others]
        row = {
            **machine(settings.device),
            "keep_memory": settings.keep_memory,
            **case.row(form),
            "seconds": {name: round(medians[name], 8) for name in named},
            "quartiles": {name: [round(each, 8) for each in quartiles(times[name])] for name in named},
            "ratio": round(dense / medians[form], 4),
        }
        rows.append(row)
    return rows


def keep_memory() -> None:
    """Let the C library keep what is freed, of up to 32 MB in one piece, in place of giving it back at once.

    Else how long a call takes depends on what ran before: pages that were given back are mapped anew at every call,
    until something larger was freed once. The numbers are those of glibc's malloc.h.
    """
    trim_threshold, mmap_threshold = -1, -3
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(trim_threshold, 2**30) and mallopt(mmap_threshold, 2**25)):
        raise OSError("this C library cannot be told to keep memory")


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
