"""Compress a bidirectional LSTM that tags sequences of different lengths, and win back with labels what that cost.

It tells of each character of a line of Python whether it belongs to a name, a keyword, a string and so on. Lines are
padded to equal lengths, but packed for the LSTM, so that padding is neither learned from nor recorded nor counted.

    pip install btcompress
    python tagger_with_lengths.py

The lines are those of Python's own library, as it is installed. Writes model.pt, inputs.npz, labelled.pt and small.*.
"""

import argparse
import keyword
import tokenize
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import TensorDataset

import btcompress
from btcompress.finetune import TrainConfig

KINDS = ("SPACE", "NAME", "KEYWORD", "NUMBER", "STRING", "COMMENT", "OP")
LIBRARY = Path(tokenize.__file__).parent
HERE = Path(__file__)
PADDING = -100  # a label that torch's cross-entropy leaves out


class Tagger(nn.Module):
    """The kind of every character."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * 64, len(KINDS))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Scores ``(B, T, 7)`` of the characters of lines ``(B, T)`` with ``lengths`` ``(B,)``."""
        packed = pack_padded_sequence(self.embedding(x), lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        scores: Tensor = self.head(outputs)
        return scores


def kinds_in(line: str) -> list[int]:
    """The kind of each character of a line, by itself."""
    kinds = [0] * len(line)
    for token in tokenize.generate_tokens(iter([line + "\n"]).__next__):
        name = "KEYWORD" if keyword.iskeyword(token.string) else tokenize.tok_name[token.type]
        if name in KINDS:
            kinds[token.start[1] : token.end[1]] = [KINDS.index(name)] * len(token.string)
    return kinds


def lines_of(modules: list[str], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Characters and kinds ``(count, 80)`` of lines of modules, padded, and how long each is, ``(count,)``."""
    found = []
    for line in "\n".join((LIBRARY / f"{module}.py").read_text("utf-8") for module in modules).splitlines():
        if line.isascii() and 0 < len(line) <= 80 and not line.isspace():
            with suppress(tokenize.TokenError, SyntaxError):  # of what is no line by itself
                found.append((line, kinds_in(line)))
    rows = np.random.default_rng(0).permutation(len(found))[:count]
    x, y = torch.zeros(count, 80, dtype=torch.long), torch.full((count, 80), PADDING)
    for n, row in enumerate(rows):
        line, kinds = found[row]
        x[n, : len(line)], y[n, : len(line)] = torch.tensor(list(line.encode())), torch.tensor(kinds)
    return x, y, (y != PADDING).sum(1)


def labelled() -> TensorDataset:
    """What is fine-tuned on: a line, its kinds and its length each."""
    return TensorDataset(*torch.load("labelled.pt"))


def accuracy(model: nn.Module, x: Tensor, y: Tensor, lengths: Tensor) -> float:
    """Share of characters told right, padding left out."""
    with torch.no_grad():
        right = model(x, lengths).argmax(-1) == y
    return float(right.sum() / lengths.sum())


def train(model: nn.Module, x: Tensor, y: Tensor, lengths: Tensor, epochs: int) -> None:
    """Train the dense model."""
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            loss = cross_entropy(model(x[rows], lengths[rows]).flatten(0, 1), y[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """Train a dense tagger, factorize and fine-tune it, and count what each step left right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=20, help="how many times fewer parameters the LSTM gets")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    lines = lines_of(["argparse", "typing", "subprocess", "tarfile"], 200 if args.quick else 1000)
    held_back = lines_of(["inspect", "shutil"], 100 if args.quick else 1000)
    dense = Tagger()
    train(dense, *lines, epochs=1 if args.quick else 8)
    torch.save(dense.state_dict(), "model.pt")

    # The recorder sees how long each packed sequence is, and writes no padding.
    with torch.no_grad(), btcompress.recording(dense, "inputs.npz", force=True) as recording:
        dense(lines[0], lines[2])
    print(f"recorded inputs of {recording}")
    torch.save(lines, "labelled.pt")
    factorize = btcompress.FactorizeStep(
        matrices=("input", "recurrent"),
        target_ratio=args.ratio,
        calibration=[btcompress.SampleInputs("inputs.npz")],
        calibration_epochs=1 if args.quick else 10,
    )
    tune = btcompress.FineTuneStep(
        {"data": f"{HERE.stem}:labelled", "model": f"{HERE.stem}:Tagger", "folder": HERE.parent},
        TrainConfig(epochs=1 if args.quick else 5, learning_rate=3e-3, cpu=True),
    )
    recipe = btcompress.Recipe(Path("model.pt"), Path("small.safetensors"), [factorize, tune])
    btcompress.run(recipe, force=True)

    print(f"dense: {accuracy(dense, *held_back):.1%} of {int(held_back[2].sum()):,} characters right")
    for step, path in zip(recipe.steps, recipe.outputs, strict=True):
        compressed = btcompress.load(path)
        small, report = btcompress.apply(Tagger(), compressed), btcompress.report(compressed).model
        parameters = f"{report.params_after:,} of {report.params_before:,} parameters"
        print(f"{step.kind}: {accuracy(small, *held_back):.1%}, {parameters}")


if __name__ == "__main__":
    main()
