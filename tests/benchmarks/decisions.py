"""How often a model decides as its dense one does, beside the hidden-state error, at several ratios, as JSON.

    python tests/benchmarks/decisions.py MODEL weights train.npz test.npz decisions.json

MODEL is ``silero-vad``, ``LanguageIdentifier`` or ``BeatNet``, whose heads are written out here. ``W`` and ``U`` of all
layers are planned at each ratio: on the weights and fitted to them, and on ``train.npz`` and calibrated. What is told
is measured on ``test.npz``, inputs of the LSTM that nothing was fitted to.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from btcompress import load
from btcompress.checkpoint import CompressedCheckpoint, read
from btcompress.finetune.data import Data, open_data
from btcompress.finetune.networks import choose_lstm, student_of, teacher_of

Tensors = dict[str, Tensor]


def speech_or_not(tensors: Tensors, hidden: Tensor, lengths: Tensor) -> Tensor:
    """At each step."""
    score = hidden.relu() @ tensors["final_conv.weight"][0, :, 0] + tensors["final_conv.bias"]
    return (score > 0)[_steps(hidden, lengths)]


def language(tensors: Tensors, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Of each sequence: the sum of the scores of all its steps decides."""
    scores = hidden @ tensors["hidden2lang.weight"].T + tensors["hidden2lang.bias"]
    return (scores * _steps(hidden, lengths)[..., None]).sum(1).argmax(-1)


def beat_or_downbeat_or_neither(tensors: Tensors, hidden: Tensor, lengths: Tensor) -> Tensor:
    """At each step."""
    return (hidden @ tensors["linear.weight"].T + tensors["linear.bias"]).argmax(-1)[_steps(hidden, lengths)]


HEADS = {"silero-vad": speech_or_not, "LanguageIdentifier": language, "BeatNet": beat_or_downbeat_or_neither}


def _steps(hidden: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(hidden.shape[1]) < lengths[:, None]


@torch.no_grad()
def measured(name: str, weights: Path, compressed: CompressedCheckpoint, test: Data) -> dict[str, float]:
    """Hidden-state error, share of decisions that agree, and how many decisions there are and of which kinds."""
    dense, entry = read(weights), choose_lstm(compressed, None)
    teacher, student = teacher_of(dense, entry, torch.float32), student_of(compressed, entry)
    missed = size = 0.0
    wanted, given = [], []
    for rows in torch.arange(len(test)).split(32):
        batch = test.batch(rows)
        lengths = torch.full((len(rows),), batch.x.shape[1]) if batch.lengths is None else batch.lengths
        ours, theirs = (network(batch.x.float(), lengths)[0] for network in (student, teacher))
        missed += float((ours - theirs).double().square().sum())
        size += float(theirs.double().square().sum())
        wanted.append(HEADS[name](dense.tensors, theirs, lengths))
        given.append(HEADS[name](dense.tensors, ours, lengths))
    decided, alike = torch.cat(wanted), torch.cat(wanted) == torch.cat(given)
    most_common = float(decided.long().bincount().max() / len(decided))
    agreement = float(alike.double().mean())
    error = (missed / size) ** 0.5
    return {"hidden_state_error": error, "agreement": agreement, "n": len(alike), "most_common": most_common}


def main() -> None:
    """Read the arguments, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=HEADS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    test, rows = open_data(str(args.test)), []
    for ratio in args.ratios:
        for calibrated in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                result = Path(folder) / "result.safetensors"
                command = [sys.executable, "-m", "btcompress", "factorize", args.weights, "-o", result]
                command += ["--target-ratio", f"{ratio:g}", "--matrices", "input,recurrent"]
                command += ["--calibration", args.train] if calibrated else []
                subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
                figures = measured(args.name, args.weights, load(result), test)
            rows.append({"model": args.name, "ratio": ratio, "calibrated": calibrated, **figures})
            print(json.dumps(rows[-1]), flush=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
