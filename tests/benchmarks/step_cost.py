"""One training step at the paper's full size, dense against block terms: time and peak memory.

Run it alone on a quiet machine:

    python tests/benchmarks/step_cost.py

57,600 inputs (frames of 120 x 160 x 3), 256 hidden units, 6 frames, batch 32, 11 classes read from the last
state by a linear head; a step is forward, backward, gradient clipping and AdamW. Block terms have N=2 and
R=4, with the mode sizes that are chosen along the frame's axes and with those of Ye et al. 2018. The dense LSTM
runs as torch runs it, and on torch's other kernel, which does not compute the gradient of the inputs. Times are
medians of steps that take turns in one process. Memory is of a fresh process for each model: the largest
resident set after three steps, less that after importing everything and making the batch; on a GPU, the
most that was allocated, less the batch. Ratios are of the dense LSTM as torch runs it to the model. The CPU first, then
a GPU where there is one; there without oneDNN's other kernel, and in float32 without TF32, unless it is asked for.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from timing import machine, seconds_in_turns, set_tf32
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from btcompress import BTLSTM

FRAMES, BATCH, CLASSES = 6, 32, 11
#: Frame, hidden units, and the modes of the paper.
FULL = ((120, 160, 3), 256, {"in_modes": (8, 20, 20, 18), "out_modes": (16, 4, 4, 4)})
#: To try the script itself: frame, hidden units and modes.
SMALL = ((8, 10, 3), 16, {"in_modes": (8, 10, 3), "out_modes": (4, 4, 4)})
STEPS_FOR_MEMORY = 3
WITHOUT_ONEDNN = "dense without oneDNN"


class Classifier(nn.Module):
    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm
        self.head = nn.Linear(lstm.hidden_size, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[1][0][-1])


def lstms(small: bool, device: str) -> dict[str, Callable[[], nn.Module]]:
    """What to build each model's LSTM with, by its name."""
    frame, hidden, paper = SMALL if small else FULL
    inputs = math.prod(frame)
    ranks = {"cp_rank": 2, "tucker_rank": 4, "batch_first": True}
    found = {
        "dense": lambda: nn.LSTM(inputs, hidden, batch_first=True),
        WITHOUT_ONEDNN: lambda: nn.LSTM(inputs, hidden, batch_first=True),
        "chosen modes": lambda: BTLSTM(inputs, hidden, input_shape=frame, **ranks),
        "paper's modes": lambda: BTLSTM(inputs, hidden, **paper, **ranks),
    }
    if device != "cpu":
        found.pop(WITHOUT_ONEDNN)
    return found


def make_batch(small: bool, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, FRAMES, math.prod((SMALL if small else FULL)[0]), generator=generator)
    return x.to(device), torch.randint(CLASSES, (BATCH,), generator=generator).to(device)


def make_step(name: str, batch: tuple[Tensor, Tensor], small: bool, device: str) -> Callable[[], None]:
    with torch.device(device):
        model = Classifier(lstms(small, device)[name]())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x, y = batch

    def step() -> None:
        torch.backends.mkldnn.enabled = name != WITHOUT_ONEDNN
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def resident_peak() -> int:
    """Largest resident set of this process so far, in bytes; unlike ``ru_maxrss``, without its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_of_steps(name: str, small: bool, device: str) -> int:
    """Peak bytes that building a model and training it take, beyond torch and the batch."""
    batch = make_batch(small, device)
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resident_peak()
    step = make_step(name, batch, small, device)
    for _ in range(STEPS_FOR_MEMORY):
        step()
    return (resident_peak() if device == "cpu" else torch.cuda.max_memory_allocated()) - before


def peak_in_fresh_process(name: str, small: bool, device: str) -> int:
    command = [sys.executable, __file__, "--peak-of", name, "--device", device, *["--small"] * small]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def weights_of(make: Callable[[], nn.Module]) -> dict[str, object]:
    with torch.device("meta"):
        weight = make().weight_ih_l0
    if isinstance(weight, Tensor):
        return {"weights": weight.numel()}
    part = weight.shape.part
    return {"in_modes": part.in_modes, "out_modes": part.out_modes, "weights": weight.shape.n_params}


def measure(device: str, repeats: int, small: bool) -> None:
    """Print one JSON line for each model."""
    batch, makers = make_batch(small, device), lstms(small, device)
    steps = {name: make_step(name, batch, small, device) for name in makers}
    seconds = {name: median(each) for name, each in seconds_in_turns(steps, device, turns=repeats).items()}
    peaks = {name: peak_in_fresh_process(name, small, device) for name in makers}
    for name, make in makers.items():
        row = {
            **machine(device),
            "lstm": name,
            **weights_of(make),
            "step_seconds": seconds[name],
            "peak_bytes": peaks[name],
            "time_ratio": seconds["dense"] / seconds[name],
            "memory_ratio": peaks["dense"] / peaks[name],
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="steps of each model, of which the median counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="only this one")
    parser.add_argument("--tf32", action="store_true", help="let a GPU round float32 factors to 11 bits")
    parser.add_argument("--small", action="store_true", help="a small size, to try the script itself")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_tf32(arguments.tf32)
    if arguments.peak_of:
        print(peak_of_steps(arguments.peak_of, arguments.small, arguments.device))
        return
    devices = [arguments.device] if arguments.device else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        measure(device, arguments.repeats, arguments.small)


if __name__ == "__main__":
    main()
