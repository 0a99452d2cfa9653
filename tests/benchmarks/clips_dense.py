"""Try learning rates for the dense LSTM of the full-size demonstration, which the block-term models are held against.

Run by hand: ``python tests/benchmarks/clips_dense.py FOLDER --seed 0``. One JSON line per epoch goes to standard
output; ``FOLDER`` receives ``final.pt`` and ``best.pt`` (best accuracy on the validation clips, which is what
``test_accuracy_at_best`` is of; the test clips choose nothing).
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from btcompress.demo import CLASS_NAMES, Clips, make_clips

N_TRAIN, N_VALIDATION, N_TEST = 1600, 400, 1000
HIDDEN_SIZE = 256


class ClipClassifier(nn.Module):
    """A dense LSTM and a linear head on its last hidden state."""

    def __init__(self, in_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_size, HIDDEN_SIZE, batch_first=True)
        self.head = nn.Linear(HIDDEN_SIZE, len(CLASS_NAMES))
        # torch's default spread depends on the hidden size alone; with this many inputs it saturates every gate.
        nn.init.normal_(self.lstm.weight_ih_l0, std=in_size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)  # (B, T, H)
        return self.head(hidden[:, -1])


def clips_for(seed: int) -> tuple[Clips, Clips, Clips]:
    """Training, validation and test clips of one seed."""
    clips = make_clips(N_TRAIN + N_VALIDATION + N_TEST, generator=torch.Generator().manual_seed(seed))
    return clips.split(N_TRAIN, N_VALIDATION, N_TEST)


def scaled(frames: Tensor) -> Tensor:
    """8-bit frames as float32 from 0 to 1."""
    return frames.to(torch.float32).div_(255)


@torch.no_grad()
def accuracy(model: nn.Module, clips: Clips, batch_size: int = 100) -> float:
    """Fraction of clips whose class has the highest logit."""
    x, y = torch.from_numpy(clips.x), torch.from_numpy(clips.y)
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    right = sum(int((model(scaled(frames)).argmax(1) == classes).sum()) for frames, classes in batches)
    return right / len(y)


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict beside its place, then move it there, so that a half-written file is never read."""
    partial = path.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(path)


def train(args: argparse.Namespace) -> None:
    """Train one seed; the learning rate warms up over the first epoch and falls to zero along a cosine."""
    training, validation, test = clips_for(args.seed)
    x, y = torch.from_numpy(training.x), torch.from_numpy(training.y)
    torch.manual_seed(args.seed)
    model = ClipClassifier(x.shape[-1])
    order = torch.Generator().manual_seed(args.seed)

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    warm_up = math.ceil(N_TRAIN / args.batch_size)
    n_steps = warm_up * args.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / n_steps)) / 2
    )
    args.folder.mkdir(parents=True, exist_ok=True)
    best = (-1.0, 0.0)  # validation and test accuracy
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        loss_sum, n_right = 0.0, 0
        for rows in torch.randperm(N_TRAIN, generator=order).split(args.batch_size):
            logits = model(scaled(x[rows]))
            loss = cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(rows)
            n_right += int((logits.argmax(1) == y[rows]).sum())
        seconds = time.perf_counter() - start
        accuracies = accuracy(model, validation), accuracy(model, test)
        if accuracies[0] > best[0]:
            best = accuracies
            save(model, args.folder / "best.pt")
        row = {
            "seed": args.seed,
            "epoch": epoch,
            "loss": loss_sum / N_TRAIN,
            "train_accuracy": n_right / N_TRAIN,
            "validation_accuracy": accuracies[0],
            "test_accuracy": accuracies[1],
            "test_accuracy_at_best": best[1],
            "seconds": seconds,
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    save(model, args.folder / "final.pt")


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the state dicts go")
    parser.add_argument("--seed", type=int, default=0, help="of the clips, the first weights and the batches")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5, help="highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # oneDNN's LSTM would spend half of each step on the gradient of the inputs.
    torch.backends.mkldnn.enabled = False
    train(args)


if __name__ == "__main__":
    main()
