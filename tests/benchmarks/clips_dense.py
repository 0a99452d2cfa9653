"""Train dense LSTMs on clips of the full size, outside the demonstration: with other learning rates, or more clips.

Run by hand: ``python tests/benchmarks/clips_dense.py FOLDER --seed 0``. One JSON line per epoch goes to standard
output; ``FOLDER`` receives ``final.pt`` and ``best.pt`` (best accuracy on the validation clips, which is what
``test_accuracy_at_best`` is of; the test clips choose nothing). With ``--fresh`` every epoch has clips of its own, so
that nothing can be learnt by heart and the LSTM becomes a good one.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from btcompress.demo.video import CLASS_NAMES, FULL, Clips, make_clips
from btcompress.demo.video.dense import SCALE, ClipClassifier, accuracy

N_TRAIN, N_VALIDATION, N_TEST = 1600, 400, 1000
#: Fresh clips come from seeds this far from those of the others.
FRESH_SEEDS = 1_000_003


def clips_for(seed: int) -> tuple[Clips, Clips, Clips]:
    """Training, validation and test clips of one seed."""
    clips = make_clips(N_TRAIN + N_VALIDATION + N_TEST, generator=torch.Generator().manual_seed(seed))
    return clips.split(N_TRAIN, N_VALIDATION, N_TEST)


def save(model: nn.Module, path: Path) -> None:
    """Write the state dict beside its place, then move it there, so that a half-written file is never read."""
    partial = path.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.replace(path)


def train(args: argparse.Namespace) -> None:
    """Train one seed; the learning rate warms up over the first epoch and falls to zero along a cosine."""
    training, validation, test = clips_for(args.seed)
    torch.manual_seed(args.seed)
    model = ClipClassifier(training.x.shape[-1], FULL.size.hidden_size, len(CLASS_NAMES))
    fresh = torch.Generator().manual_seed(args.seed + FRESH_SEEDS)
    order = torch.Generator().manual_seed(args.seed)

    weight = model.lstm.weight_ih_l0
    others = [parameter for parameter in model.parameters() if parameter is not weight]
    groups = [{"params": [weight], "lr": args.lr}, {"params": others, "lr": args.lr_others or args.lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=True)
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
        if args.fresh:
            training = make_clips(N_TRAIN, generator=fresh)
        x, y = torch.from_numpy(training.x), torch.from_numpy(training.y)
        for rows in torch.randperm(N_TRAIN, generator=order).split(args.batch_size):
            logits = model(x[rows].float() * SCALE)
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
    parser.add_argument("--fresh", action="store_true", help="draw new training clips for every epoch")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5, help="highest learning rate")
    parser.add_argument("--lr-others", type=float, help="that of all but the input weights, which a frame moves most")
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
