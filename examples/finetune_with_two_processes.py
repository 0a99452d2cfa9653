"""Fine-tune a compressed network of your own with two processes, and see that it ends where one process does.

    pip install 'btcompress[demo]'
    python finetune_with_two_processes.py

The network reads pictures of digits row by row. It is trained, compressed, and fine-tuned on its labels twice: in this
process alone, and by this script in two that torchrun starts on the CPU. By hand either of these does the latter:

    torchrun --nproc-per-node 2 finetune_with_two_processes.py --tune two.safetensors
    accelerate launch --multi_gpu --num_processes 2 finetune_with_two_processes.py --tune two.safetensors

Digits are scikit-learn's, a part of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI, CC BY
4.0). Writes labelled.npz, small.safetensors, one.safetensors and two.safetensors.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import btcompress
from btcompress.finetune import FineTuneRequest, TrainConfig, finetune


class Reader(nn.Module):
    """Which digit a picture shows: an LSTM goes over its rows, and attention over what that gives."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 128, batch_first=True)
        self.attention = nn.Linear(128, 1, bias=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, 10)`` of pictures ``(B, 8, 8)``."""
        y, _ = self.lstm(x)
        scores: Tensor = self.head((self.attention(y).softmax(1) * y).sum(1))
        return scores


def loss(scores: Tensor, y: Tensor) -> Tensor:
    """The mean over a batch."""
    return cross_entropy(scores, y, label_smoothing=0.1)


def digits() -> tuple[Tensor, Tensor]:
    """Pictures ``(1797, 8, 8)`` with numbers from 0 to 1, and what they show."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32) / 16, torch.tensor(data.target)


def tune(output: Path, epochs: int) -> None:
    """Fine-tune as one process of however many a launcher has started."""
    here = Path(__file__)
    request = FineTuneRequest(
        Path("small.safetensors"),
        "labelled.npz",
        output,
        model=f"{here.stem}:Reader",
        loss=f"{here.stem}:loss",
        folder=here.parent,
    )
    result = finetune(request, TrainConfig(epochs=epochs, cpu=True), force=True)
    if result.is_main:
        print(f"wrote {output}")


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of pictures told right."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def main() -> None:
    """Prepare, fine-tune by one process and by two, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path, help="only fine-tune small.safetensors, and write this")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    args = parser.parse_args()
    epochs = 1 if args.quick else args.epochs
    if args.tune is not None:
        tune(args.tune, epochs)
        return
    torch.manual_seed(0)
    x, y = digits()
    dense = Reader()
    optimizer = torch.optim.Adam(dense.parameters(), 3e-3)
    for _ in range(1 if args.quick else 20):
        for rows in torch.randperm(1200).split(32):
            optimizer.zero_grad()
            loss(dense(x[rows]), y[rows]).backward()
            optimizer.step()
    np.savez("labelled.npz", x=x[:1200].numpy(), y=y[:1200].numpy())
    compressed = btcompress.factorize(dense, matrices=("input", "recurrent"), target_ratio=10)
    btcompress.save(compressed, "small.safetensors", force=True)

    tune(Path("one.safetensors"), epochs)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, __file__, "--tune", "two.safetensors", "--epochs", str(epochs)], check=True)

    print(f"dense: {accuracy(dense, x[1200:], y[1200:]):.1%} of 597 pictures that no training saw")
    for path in ("small.safetensors", "one.safetensors", "two.safetensors"):
        print(f"{path}: {accuracy(btcompress.apply(Reader(), path), x[1200:], y[1200:]):.1%}")
    one, two = (btcompress.load(path).tensors for path in ("one.safetensors", "two.safetensors"))
    off = max(float((one[name] - two[name]).abs().max()) for name in one)
    print(f"numbers of one.safetensors and two.safetensors differ by {off:.0e} at most")


if __name__ == "__main__":
    main()
