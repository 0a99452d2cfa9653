"""Forward and backward pass of a BTLSTM on a CPU beside torch.nn.LSTM's, in CPU seconds.

    python tests/benchmarks/training_step.py
    python tests/benchmarks/training_step.py --ways

All matrices of the BTLSTM, ``W`` and ``U``, are of low rank, with a share of the dense ones' parameters; the LSTM has
both directions where it says so, and as many inputs as hidden units. The dense LSTM runs on both of torch's kernels,
with oneDNN and without. ``--ways`` runs one layer from ``z = W x + b`` instead, by each way there is: step by step
under autograd, torch's kernel with an identity, and the loop, with ``U`` dense and by its factors; ``ways_costs.py``
measures them all.

Times are medians of calls that take turns in one process on one thread, of CPU time with the system's share, so that
other jobs on the machine matter little. Ratios are of ``torch.nn.LSTM`` with oneDNN, or of the steps under autograd, to
the way: above 1 where it is faster. One JSON line for each size.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from lowrank import low_rank_shape
from timing import Call, without_onednn
from torch import Tensor, nn

from btcompress import BTLSTM
from btcompress.nn.recurrence import recur_by_kernel, recur_by_loop, recur_by_steps


@dataclass(frozen=True, slots=True)
class Size:
    hidden: int
    batch: int
    steps: int
    directions: int = 1


SIZES = (
    Size(32, 32, 50),
    Size(64, 32, 50),
    Size(128, 1, 50),
    Size(128, 32, 50),
    Size(256, 1, 133),
    Size(256, 8, 133),
    Size(256, 32, 133),
    Size(256, 32, 133, 2),
    Size(256, 32, 1),
    Size(512, 32, 50),
    Size(1024, 32, 20),
)
WAYS = tuple(
    Size(hidden, batch, 50 if hidden < 1024 else 20)
    for hidden, batch in itertools.product((32, 64, 128, 256, 512, 1024), (1, 8, 32, 64))
)
#: To try the script itself.
SMALL = (Size(8, 3, 4, 2),)


def median_cpu_seconds(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call; each runs once first, then all take turns."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def by_other_kernel(call: Call) -> Call:
    def run() -> None:
        with without_onednn():
            call()

    return run


def pass_of(module: nn.Module, x: Tensor) -> Call:
    def run() -> None:
        module.zero_grad()
        module(x)[0].square().sum().backward()

    return run


def modules(size: Size, ratio: float) -> dict[str, Call]:
    """Passes of whole LSTMs by their names, nn.LSTM first."""
    options = {"bidirectional": size.directions == 2}
    dense = nn.LSTM(size.hidden, size.hidden, **options)
    shapes = {name: low_rank_shape(*p.shape, ratio) for name, p in dense.named_parameters() if p.dim() == 2}
    x = torch.randn(size.steps, size.batch, size.hidden, generator=torch.Generator().manual_seed(0))
    plain = pass_of(dense, x.requires_grad_())
    block_term = pass_of(BTLSTM(size.hidden, size.hidden, **options, shapes=shapes), x)
    return {"nn.LSTM": plain, "nn.LSTM without oneDNN": by_other_kernel(plain), "BTLSTM": block_term}


def ways(size: Size, ratio: float, *, trains: bool) -> dict[str, Call]:
    """One layer from ``z`` by each way, the steps under autograd first."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).div_(shape[-1] ** 0.5).requires_grad_()

    each, rows = range(size.directions), 4 * size.hidden
    z = [draw(size.steps, size.batch, rows) for _ in each]
    state = (torch.zeros(size.directions, size.batch, size.hidden),) * 2
    rank = low_rank_shape(rows, size.hidden, ratio).part.ranks[0]
    dense = [draw(rows, size.hidden) for _ in each]
    factors = [(draw(rows, rank), draw(rank, size.hidden)) for _ in each]

    def timed(way: Callable[[], tuple[Tensor, object]], weights: list[Tensor]) -> Call:
        def run() -> None:
            with torch.set_grad_enabled(trains):
                outputs, _ = way()
            if trains:
                torch.autograd.grad(outputs.square().sum(), [*z, *weights])

        return run

    joined, matrices = (lambda: torch.cat(z, dim=-1)), [[u] for u in dense]
    kernel = timed(lambda: recur_by_kernel(joined(), state, matrices), dense)
    return {
        "steps": timed(lambda: recur_by_steps(joined(), state, matrices), dense),
        "kernel": kernel,
        "kernel without oneDNN": by_other_kernel(kernel),
        "loop": timed(lambda: recur_by_loop(z, state, [[(u,)] for u in dense]), dense),
        "loop by factors": timed(
            lambda: recur_by_loop(z, state, [[pair] for pair in factors]), [f for pair in factors for f in pair]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="calls of each, of which the median counts")
    parser.add_argument("--ratio", type=float, default=4, help="parameters of each dense matrix over its factors'")
    parser.add_argument("--ways", action="store_true", help="one layer by each way, in training and in prediction")
    parser.add_argument("--small", action="store_true", help="a small size, to try the script itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in SMALL if arguments.small else WAYS if arguments.ways else SIZES:
        for trains in (True, False) if arguments.ways else (True,):
            calls = ways(size, arguments.ratio, trains=trains) if arguments.ways else modules(size, arguments.ratio)
            seconds = median_cpu_seconds(calls, arguments.repeats)
            first = next(iter(seconds.values()))
            row = {
                **asdict(size),
                "ratio": arguments.ratio,
                "kind": "training" if trains else "prediction",
                "cpu_seconds": {name: round(each, 6) for name, each in seconds.items()},
                "ratios": {name: round(first / each, 2) for name, each in seconds.items()},
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
