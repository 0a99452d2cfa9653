"""Compress a model of a stream, which goes on from its own state, and see how fast it then takes one step at a time.

A small LSTM forecasts a signal. Its state goes from call to call, so that pieces of any lengths give what the whole
signal does at once. How the compressed layer runs fastest on this machine is measured and kept to.

    pip install btcompress
    python streaming.py

Needs no data: the signal is computed (Lorenz 1963, "Deterministic Nonperiodic Flow"). Writes inputs.npz, pins.json
and small.safetensors.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import btcompress

State = tuple[Tensor, Tensor]
AHEAD = 10  # steps that are forecast


class Forecaster(nn.Module):
    """Where the signal will be, and the state to go on from."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 256)
        self.head = nn.Linear(256, 3)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Of steps ``(T, B, 3)`` and ``h, c``, ``(1, B, 256)`` each: forecasts ``(T, B, 3)``, and the next state."""
        y, state = self.lstm(x, state)
        return self.head(y), state


def signals(steps: int, count: int) -> Tensor:
    """Paths of Lorenz's equations from drawn points, ``(steps, count, 3)``, about of variance 1."""
    at, path = torch.randn(count, 3) * 8 + torch.tensor([0.0, 0.0, 25.0]), []
    for n in range(10 * (steps + 100)):
        x, y, z = at.unbind(1)
        at = at + 0.002 * torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)
        path += [at] if n % 10 == 0 else []
    return (torch.stack(path[100:]) - torch.tensor([0.0, 0.0, 23.5])) / 8


def train(model: Forecaster, path: Tensor, updates: int) -> None:
    """Train the dense model."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for n in range(updates):
        begin = 37 * n % (len(path) - 100 - AHEAD)
        piece = path[begin : begin + 100 + AHEAD]
        loss = mse_loss(model(piece[:-AHEAD])[0], piece[AHEAD:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def error(model: nn.Module, path: Tensor) -> float:
    """Root mean square error of the forecasts."""
    return float(mse_loss(model(path[:-AHEAD])[0], path[AHEAD:]).sqrt())


@torch.no_grad()
def in_pieces(model: nn.Module, path: Tensor, length: int) -> Tensor:
    """Forecasts of a path that comes in pieces of some steps."""
    found: list[Tensor] = []
    state: State | None = None
    for piece in path.split(length):
        y, state = model(piece, state)
        found.append(y)
    return torch.cat(found)


def main() -> None:
    """Train a dense model, compress it, and let both go through a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=4, help="how many times fewer parameters the LSTM gets")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    path, held_back = signals(300, 16), signals(300, 4)
    dense = Forecaster()
    train(dense, path, updates=4 if args.quick else 150)

    with torch.no_grad(), btcompress.recording(dense, "inputs.npz", force=True):
        dense(path)
    compressed = btcompress.factorize(
        dense,
        matrices=("input", "recurrent"),
        target_ratio=args.ratio,
        calibration=[btcompress.SampleInputs("inputs.npz")],
        calibration_epochs=1 if args.quick else 10,
    )
    btcompress.save(compressed, "small.safetensors", force=True)
    small = btcompress.apply(Forecaster(), "small.safetensors")
    for matrix in btcompress.report(compressed).matrices:
        print(f"{matrix.name}: {matrix.params_after:,} parameters instead of {matrix.params_before:,}")
    print(f"error of the forecasts: {error(dense, held_back):.3f} dense, {error(small, held_back):.3f} small")

    stream = held_back[:, :1]
    with torch.no_grad():
        at_once, state = small(stream)
    for length in (1, 7, 100):
        off = float((in_pieces(small, stream, length) - at_once).abs().max())
        print(f"in pieces of {length}: within {off:.0e} of all at once")

    seconds = 0.1 if args.quick else 1.0
    tuning = btcompress.tune(small, (stream[:1], state), seconds=seconds, file="pins.json", force=True)
    print(f"tuned: {tuning}")
    case = btcompress.bench(compressed, batch=[1], steps=[1], seconds=seconds).cases[0]
    for way in case.ways:
        print(f"one step, {way.way}: {1e6 * way.seconds:.0f} us")


if __name__ == "__main__":
    main()
