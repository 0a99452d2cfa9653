"""What block-term models learn on the clips of the demonstration, by ranks and by what they start from.

Run by hand, after ``btcompress demo --full --seed S --output FOLDER``, whose dense checkpoint and clips are taken:
``python tests/benchmarks/clips_accuracy.py FOLDER --seed S``. For each pair of ranks, or for a plan file, the dense
checkpoint is factorized, and fine-tuned by the settings of the demonstration from each start that is asked for: as it
is (``factorized``), calibrated on the training clips without their labels (``calibrated``), with random block terms in
place of the fitted ones (``random block terms``), and with every tensor random (``from scratch``). One JSON line for
each: accuracy on the clips held back before training and after each epoch, and on the test clips before training and
after the best epoch, which the test clips do not choose.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from btcompress import apply, factorize, report, save
from btcompress.calibration import CalibrationRequest, SampleInputs, calibrate
from btcompress.checkpoint import CompressedCheckpoint, read
from btcompress.checkpoint.compressed import part_names
from btcompress.demo import FULL, SMALL, DemoFiles
from btcompress.demo.randomstart import random_start
from btcompress.demo.video.dense import ClipClassifier, accuracy
from btcompress.factorization import factorize_as_planned
from btcompress.finetune import TrainConfig, finetune
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan, read_plan

STARTS = ("factorized", "calibrated", "random block terms", "from scratch")


def lstm_params(model: ClipClassifier) -> int:
    """Parameters of the LSTM with all its matrices and biases."""
    return sum(parameter.numel() for parameter in model.lstm.parameters())


def factorized(
    args: argparse.Namespace, dense: Path, frame_shape: tuple[int, ...]
) -> Iterator[tuple[dict[str, object], CompressedCheckpoint]]:
    """What was asked of each factorized checkpoint, and the checkpoint."""
    kinds = args.matrices.split(",")
    if args.plan:
        checkpoint = read(dense)
        plan = read_plan(args.plan, checkpoint, make_plan(checkpoint, ShapeRequest(), matrices=kinds))
        yield {"plan": args.plan.name}, factorize_as_planned(checkpoint, plan)
        return
    for n, r in (map(int, pair.split(",")) for pair in args.ranks.split()):
        sizes = {"order": args.order, "input_shape": frame_shape, "matrices": kinds}
        yield {"cp_rank": n, "tucker_rank": r}, factorize(dense, cp_rank=n, tucker_rank=r, **sizes)


def with_terms_of(drawn: CompressedCheckpoint, compressed: CompressedCheckpoint) -> CompressedCheckpoint:
    """The compressed checkpoint with the block terms of another."""
    parts = (part for key, matrix in compressed.matrices.items() for part in part_names(key, matrix.shape))
    tensors = {name: drawn.tensors[name] for part in parts for name in part}
    return compressed.with_step({"step": "random block terms"}, tensors)


def main() -> None:
    """Read the arguments, train, and print a line for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the demonstration wrote")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstration and of the trainings")
    parser.add_argument("--dense", type=Path, help="dense checkpoint in place of the demonstration's")
    parser.add_argument("--small", action="store_true", help="the demonstration was run without --full")
    parser.add_argument("--ranks", default="1,1 1,2 1,4 2,1 2,2 2,4", help="pairs of CP rank and Tucker rank")
    parser.add_argument("--plan", type=Path, help="plan file, in place of ranks")
    parser.add_argument("--matrices", default="input", help="kinds of matrices to factorize")
    parser.add_argument("--order", type=int, help="number of modes, where it is not to be chosen")
    parser.add_argument("--lr", type=float, help="learning rate in place of the demonstration's")
    parser.add_argument("--epochs", type=int, help="epochs in place of the demonstration's")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=["factorized", "from scratch"])
    parser.add_argument("--calibration-epochs", type=int, default=6, help="of the start that is calibrated")
    parser.add_argument("--calibration-lr", type=float, default=1e-2, help="learning rate of those")
    args = parser.parse_args()
    task, files = (SMALL if args.small else FULL)["video"], DemoFiles(args.folder)
    dense = args.dense or files.dense
    config = task.size.tuning.config(args.seed)
    config = replace(config, learning_rate=args.lr or config.learning_rate, epochs=args.epochs or config.epochs)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        test = task.draw(args.seed).test
        model = task.model()
        model.load_state_dict(torch.load(dense, weights_only=True))
        print(json.dumps({"seed": args.seed, "start": "dense", "test": accuracy(model, test)}), flush=True)
        for asked, compressed in factorized(args, dense, test.frame_shape):
            for start in args.starts:
                path, tuned = Path(folder) / "start.safetensors", Path(folder) / "tuned.safetensors"
                begun = compressed
                if start == "calibrated":
                    inputs = SampleInputs(str(files.data), None, task.scale)
                    clips = CalibrationRequest((inputs,), task.size.held_fraction)
                    settings = TrainConfig(args.calibration_epochs, learning_rate=args.calibration_lr, seed=args.seed)
                    begun = calibrate(compressed, read(dense), clips, settings)
                elif start != "factorized":
                    begun = random_start(task.model, compressed, args.seed)
                if start == "random block terms":
                    begun = with_terms_of(begun, compressed)
                save(begun, path, force=True)
                request = task.finetuning(path, files.data, tuned, dense)
                epochs = []
                result = finetune(request, config, force=True, on_epoch=epochs.append)
                told = report(result.compressed)
                row = {
                    "seed": args.seed,
                    "start": start,
                    "learning_rate": config.learning_rate,
                    **asked,
                    "params": {row.name: row.params_after for row in told.matrices},
                    "weights_ratios": {row.name: row.weights_ratio for row in told.matrices},
                    "lstm_ratio": lstm_params(model) / lstm_params(apply(copy.deepcopy(model), result.compressed)),
                    "model_ratio": told.model.ratio,
                    "held": [told.finetuned[-1].before, *(epoch.metric for epoch in epochs)],
                    "test_before": accuracy(apply(copy.deepcopy(model), begun), test),
                    "test": accuracy(apply(copy.deepcopy(model), result.compressed), test),
                    "seconds": [epoch.seconds for epoch in epochs],
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
