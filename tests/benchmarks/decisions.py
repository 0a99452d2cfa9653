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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from btcompress import load
from btcompress.checkpoint import Checkpoint, read
from btcompress.finetune.data import Data, open_data
from btcompress.finetune.networks import choose_dense_lstm, choose_lstm, student_of, teacher_of

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


def voice(tensors: Tensors, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Of each sequence a vector of length 1, which is near those of the same voice: no decision."""
    last = hidden[torch.arange(len(hidden)), lengths - 1]
    return normalize((last @ tensors["linear.weight"].T + tensors["linear.bias"]).relu(), dim=-1)


Head = Callable[[Tensors, Tensor, Tensor], Tensor]
DECISIONS: dict[str, Head] = {
    "silero-vad": speech_or_not,
    "LanguageIdentifier": language,
    "BeatNet": beat_or_downbeat_or_neither,
}
HEADS = {**DECISIONS, "Resemblyzer": voice}


def _steps(hidden: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(hidden.shape[1]) < lengths[:, None]


@torch.no_grad()
def measured(name: str, dense: Checkpoint, network: nn.Module, data: Data) -> dict[str, float]:
    """How far a network in the LSTM's place is off on sequences, and what the model makes of that.

    Args:
        name: of the model, one of ``HEADS``.
        dense: its checkpoint.
        network: called with inputs, shape ``(B, T, I)``, and lengths; hidden states of the last layer come first.
        data: inputs of the LSTM.

    Returns:
        Hidden-state error, and share of decisions that agree, how many there are and how many are of the most common
        kind. Where the model decides nothing, the mean cosine of its outputs to the dense ones, and with labels the
        equal error rates of telling by the cosine of two outputs whether these are of one kind.
    """
    teacher = teacher_of(dense, choose_dense_lstm(dense, None, ""), torch.float32)
    missed = size = 0.0
    wanted, given, labels = [], [], []
    for rows in torch.arange(len(data)).split(32):
        batch = data.batch(rows)
        lengths = torch.full((len(rows),), batch.x.shape[1]) if batch.lengths is None else batch.lengths
        ours, theirs = (each(batch.x.float(), lengths)[0] for each in (network, teacher))
        missed += float((ours - theirs).double().square().sum())
        size += float(theirs.double().square().sum())
        wanted.append(HEADS[name](dense.tensors, theirs, lengths))
        given.append(HEADS[name](dense.tensors, ours, lengths))
        labels += [] if batch.y is None else [batch.y]
    figures = {"hidden_state_error": (missed / size) ** 0.5}
    if name in DECISIONS:
        return figures | _agreement(torch.cat(wanted), torch.cat(given))
    figures["cosine"] = float((torch.cat(wanted) * torch.cat(given)).sum(-1).mean())
    if labels:
        which = torch.cat(labels)
        figures["equal_error_rate"] = equal_error_rate(torch.cat(given), which)
        figures["dense_equal_error_rate"] = equal_error_rate(torch.cat(wanted), which)
    return figures


def _agreement(wanted: Tensor, given: Tensor) -> dict[str, float]:
    most_common = float(wanted.long().bincount().max() / len(wanted))
    return {
        "agreement": float((wanted == given).double().mean()),
        "n": len(wanted),
        "most_common": most_common,
    }


def equal_error_rate(outputs: Tensor, labels: Tensor) -> float:
    """At the cosine at which as many pairs of one label are told apart as pairs of two are not.

    Args:
        outputs: of length 1, shape ``(B, n)``.
        labels: shape ``(B,)``.
    """
    cosines = outputs @ outputs.T
    pairs = torch.ones(cosines.shape, dtype=torch.bool).triu(1)
    alike = (labels[:, None] == labels)[pairs][cosines[pairs].argsort()].double()
    told_apart = alike.cumsum(0) / alike.sum()
    taken_for_one = 1 - (1 - alike).cumsum(0) / (1 - alike).sum()
    at = int((told_apart - taken_for_one).abs().argmin())
    return float((told_apart[at] + taken_for_one[at]) / 2)


def main() -> None:
    """Read the arguments, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=DECISIONS)
    parser.add_argument("weights", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("json", type=Path)
    parser.add_argument("--ratios", type=float, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    dense, test, rows = read(args.weights), open_data(str(args.test)), []
    for ratio in args.ratios:
        for calibrated in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                result = Path(folder) / "result.safetensors"
                command = [sys.executable, "-m", "btcompress", "factorize", args.weights, "-o", result]
                command += ["--target-ratio", f"{ratio:g}", "--matrices", "input,recurrent"]
                command += ["--calibration", args.train] if calibrated else []
                subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
                compressed = load(result)
                student = student_of(compressed, choose_lstm(compressed, None))
                figures = measured(args.name, dense, student, test)
            rows.append({"model": args.name, "ratio": ratio, "calibrated": calibrated, **figures})
            print(json.dumps(rows[-1]), flush=True)
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
