"""BTLSTM against torch.nn.LSTM at several sizes: seconds of a call, in inference and in training.

Run it alone on a quiet machine:

    python tests/benchmarks/lstm_speed.py

BTLSTM has N=2 and R=4, chosen mode sizes and ``method="auto"``. Inference is a call without gradients;
training is a call and the backward pass to all weights, without an optimizer. Times are
medians of calls that take turns in one process; the ratio is torch.nn.LSTM over BTLSTM, above 1 where BTLSTM
is faster. One JSON line for each case, on the CPU, then on a GPU where there is one; there in float32 without TF32,
unless it is asked for.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import machine, median_seconds, set_tf32
from torch import Tensor, nn

from btcompress import BTLSTM


@dataclass(frozen=True, slots=True)
class Size:
    inputs: int
    hidden: int
    steps: int
    input_shape: tuple[int, ...] | None = None


SIZES = (Size(128, 128, 50), Size(1024, 256, 50), Size(57_600, 256, 6, (120, 160, 3)))
#: To try the script itself.
SMALL = (Size(16, 8, 5), Size(240, 8, 3, (8, 10, 3)))
BATCHES = (1, 32)


def inference(lstm: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            lstm(x)

    return call


def training(lstm: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        lstm.zero_grad()
        lstm(x)[0].square().mean().backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31, help="calls of each, of which the median counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 factors to 11 bits")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the script itself")
    arguments = parser.parse_args()
    set_tf32(arguments.tf32)
    devices = [arguments.device] if arguments.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        for size in SMALL if arguments.small else SIZES:
            shape = {"cp_rank": 2, "tucker_rank": 4, "input_shape": size.input_shape}
            with torch.device(device):
                plain = nn.LSTM(size.inputs, size.hidden, batch_first=True)
                block_term = BTLSTM(size.inputs, size.hidden, batch_first=True, **shape)
            for batch in BATCHES:
                generator = torch.Generator().manual_seed(0)
                x = torch.randn(batch, size.steps, size.inputs, generator=generator).to(device)
                for kind in (inference, training):
                    calls = {"plain": kind(plain, x), "block_term": kind(block_term, x)}
                    seconds = median_seconds(calls, arguments.repeats, device)
                    row = {
                        **machine(device),
                        "inputs": size.inputs,
                        "hidden": size.hidden,
                        "steps": size.steps,
                        "batch": batch,
                        "kind": kind.__name__,
                        "lstm_seconds": seconds["plain"],
                        "btlstm_seconds": seconds["block_term"],
                        "ratio": seconds["plain"] / seconds["block_term"],
                    }
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
