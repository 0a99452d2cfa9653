"""What clips cost in bytes: block terms of the demonstration's LSTM in few bits, beside the same in floats, as JSON.

    python tests/benchmarks/clips_bytes.py FOLDER --seed 0

First ``W`` alone, at ranks that are given: factorized, fine-tuned in floats, rounded, and fine-tuned through the
rounding. Then the whole LSTM by ``whole_lstm.yaml``, from the dense form of the first ranks' floats: calibrated without
labels, fine-tuned, rounded, and fine-tuned again. What is made stays in ``FOLDER``, and what lies there is not made
again, the dense model and the clips of ``btcompress demo --full --seed 0 --output FOLDER`` included. Rows of
``FOLDER/bytes.json`` have accuracies on the test clips, which choose nothing, and times fewer bytes: of ``W``, or of
the LSTM with its biases.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stored_bytes import names_of, stored_bytes
from torch import Tensor

from btcompress import FactorizeStep, SampleInputs, apply, compress, load, save, to_dense
from btcompress.checkpoint import CompressedCheckpoint
from btcompress.demo import FULL, SMALL, DemoFiles
from btcompress.demo.story import draw_data
from btcompress.demo.video import Clips, Video
from btcompress.demo.video.dense import accuracy
from btcompress.finetune import TrainConfig, finetune
from btcompress.fit.rounding import nearest
from btcompress.packing import Integers, Packed

#: Of the LSTM in the demonstration's checkpoint.
PREFIX = "lstm."
PLAN = Path(__file__).with_name("whole_lstm.yaml")


@dataclass(frozen=True)
class Precisions:
    """How a result's numbers are to be stored.

    Attributes:
        terms: cores and factors.
        others: the rest of the LSTM, its biases.
    """

    terms: Integers
    others: Integers | torch.dtype | None = None

    def of(self, found: CompressedCheckpoint) -> CompressedCheckpoint:
        """A result rounded to them, each number to the nearest."""
        stored: dict[str, Packed | torch.dtype] = {}
        terms = [name for key in found.matrices for name in names_of(found, key)]
        biases = [key for key in found.keys if key.startswith(PREFIX) and key not in found.matrices]
        for names, how in ((terms, self.terms), (biases, self.others)):
            for name in names if how else ():
                stored[name] = nearest(found.tensors[name], how) if isinstance(how, Integers) else how
        values = {name: _values(found.tensors[name], how) for name, how in stored.items()}
        return replace(found, tensors={**found.tensors, **values}, stored=stored)

    def __str__(self) -> str:
        others = "" if self.others is None else f", {str(self.others).removeprefix('torch.')}"
        return f"{self.terms}{others}"


def _values(tensor: Tensor, how: Packed | torch.dtype) -> Tensor:
    return how.values() if isinstance(how, Packed) else tensor.to(how).to(tensor.dtype)


class Clip:
    """One seed: its files, its clips and its dense model."""

    def __init__(self, folder: Path, task: Video, seed: int) -> None:
        self.files, self.task, self.seed = DemoFiles(folder), task, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.test = self._drawn()
        torch.manual_seed(seed)
        self.model = task.model()
        if not self.files.dense.exists():
            task.train(self.model, self.files.data, task.size.dense, seed)
            torch.save(self.model.state_dict(), self.files.dense)
        self.model.load_state_dict(torch.load(self.files.dense, weights_only=True))

    def _drawn(self) -> Clips:
        if not self.files.data.exists():
            return draw_data(self.task, self.files.data, self.seed).test
        return self.task.draw(self.seed).test

    def accuracy(self, found: CompressedCheckpoint) -> float:
        """On the test clips."""
        return accuracy(apply(copy.deepcopy(self.model), found), self.test)

    def kept(self, name: str, make: Callable[[], CompressedCheckpoint]) -> Path:
        """What is in the folder by this name, made where it is not."""
        path = self.files.folder / f"{name}.safetensors"
        if not path.exists():
            save(make(), path)
        return path

    def tuned(self, start: Path, name: str, learning_rate: float, epochs: int) -> CompressedCheckpoint:
        """A result fine-tuned on the labels, or what is in the folder by this name."""
        path = self.files.folder / f"{name}.safetensors"
        if not path.exists():
            request = self.task.finetuning(start, self.files.data, path, self.files.dense)
            config = TrainConfig(epochs, learning_rate=learning_rate, patience=0, distill=0.0, seed=self.seed)
            finetune(request, config, force=True)
        return load(path)

    def dense_form(self, found: CompressedCheckpoint, name: str) -> Path:
        """The dense checkpoint of a result."""
        path = self.files.folder / f"{name}.pt"
        if not path.exists():
            torch.save(to_dense(found), path)
        return path


def main() -> None:
    """Read the arguments, and make and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="clips of the small demonstration, for W alone")
    parser.add_argument("--ranks", nargs="+", default=["2,2", "2,4"], help="CP rank and Tucker rank of W alone")
    parser.add_argument("--bits", type=int, nargs="+", default=[4], help="of cores and factors")
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--bias-bits", type=int, help="of the whole LSTM's biases, which are float16 otherwise")
    parser.add_argument("--lr", type=float, default=3e-3, help="fine-tuning through the rounding")
    parser.add_argument("--epochs", type=int, default=10, help="of that")
    parser.add_argument("--float-only", action="store_true", help="stop where floats are measured")
    parser.add_argument(
        "--rounded-only", action="store_true", help="measure the rounding alone, and train nothing then"
    )
    args = parser.parse_args()
    clip = Clip(args.folder, (SMALL if args.small else FULL)["video"], args.seed)
    rows: list[dict[str, Any]] = []

    def tell(what: str, found: CompressedCheckpoint, keys: list[str]) -> None:
        dense = sum(tensor.nbytes for key, tensor in clip.model.state_dict().items() if key in keys)
        n_bytes = stored_bytes(found, keys)
        row = {
            "seed": args.seed,
            "what": what,
            "test": clip.accuracy(found),
            "bytes": n_bytes,
            "ratio": dense / n_bytes,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)

    def rounded(what: str, name: str, found: CompressedCheckpoint, keys: list[str]) -> None:
        for bits in args.bits if not args.float_only else ():
            biases: Integers | torch.dtype = (
                torch.float16 if args.bias_bits is None else Integers(args.bias_bits, 2**20)
            )
            how = Precisions(Integers(bits, args.group), None if len(keys) == 1 else biases)
            tell(f"{what}, {how}, rounded", how.of(found), keys)
            if args.rounded_only:
                continue
            label = f"{name}-{str(how).replace('/', '.').replace(', ', '-')}"
            start = clip.kept(f"{label}.start", lambda how=how: how.of(found))
            tell(f"{what}, {how}, fine-tuned", clip.tuned(start, f"{label}.tuned", args.lr, args.epochs), keys)

    print(json.dumps({"seed": args.seed, "what": "dense", "test": accuracy(clip.model, clip.test)}), flush=True)
    own_w = [f"{PREFIX}weight_ih_l0"]
    first = None
    for pair in args.ranks:
        n, r = map(int, pair.split(","))
        step = FactorizeStep(cp_rank=n, tucker_rank=r, input_shape=clip.test.frame_shape, seed=args.seed)
        start = clip.kept(f"w-{n}.{r}.start", lambda step=step: compress(clip.files.dense, step))
        found = clip.tuned(start, f"w-{n}.{r}", 3e-3, 10)
        first = first or clip.dense_form(found, f"w-{n}.{r}.dense")
        tell(f"W, N={n} R={r}, float32", found, own_w)
        rounded(f"W, N={n} R={r}", f"w-{n}.{r}", found, own_w)
    if not args.small:
        inputs = (SampleInputs(str(clip.files.data), None, clip.task.scale),)
        step = FactorizeStep(plan=PLAN, calibration=inputs, calibration_epochs=30, calibration_lr=5e-3, seed=args.seed)
        start = clip.kept("whole.start", lambda: compress(first, step))
        found = clip.tuned(start, "whole", 5e-3, 20)
        every = [key for key in found.keys if key.startswith(PREFIX)]
        tell("whole LSTM, float32", found, every)
        rounded("whole LSTM", "whole", found, every)
    (args.folder / "bytes.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
