"""What calibrating does to the decisions of an encoder-decoder, whose decoder starts from the encoder's final state.

    OMP_NUM_THREADS=1 python tests/benchmarks/encoder_decoder.py result.json

For each seed a model of two LSTMs is trained here to write random words backwards. Its ``W`` and ``U``, four matrices,
are factorized at ratios of 2 and 4: *data-free*, and *calibrated* on what both LSTMs get on 800 words, as the recorder
wrote it, then *decoder alone* and *encoder alone* with the inputs of one of them. A decision is the word that is
written, letter by letter, each from the letters written before: said is the share of 500 new words whose output is the
dense model's own. One JSON line for each seed and ratio.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import btcompress
from btcompress import FactorizeStep, SampleInputs, compress
from btcompress.models import apply

N_LETTERS, LONGEST, SHORTEST = 10, 7, 3
N_EMBEDDED, N_HIDDEN = 32, 96
N_STEPS, N_WORDS = 3000, 128
N_RECORDED, N_NEW = 800, 500
RATIOS = (2.0, 4.0)
END, START = N_LETTERS, N_LETTERS + 1
CASES = {"calibrated": ("encoder", "decoder"), "decoder alone": ("decoder",), "encoder alone": ("encoder",)}


class Transducer(nn.Module):
    """Reads a word and writes another."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(N_LETTERS + 2, N_EMBEDDED)
        self.encoder = nn.LSTM(N_EMBEDDED, N_HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(N_EMBEDDED, N_HIDDEN, batch_first=True)
        self.head = nn.Linear(N_HIDDEN, N_LETTERS + 1)

    def forward(self, words: Tensor, before: Tensor) -> Tensor:
        """Scores of each letter written, shape ``(B, T, letters)``, given those before it."""
        _, state = self.encoder(self.letters(words))
        return self.head(self.decoder(self.letters(before), state)[0])

    @torch.no_grad()
    def write(self, words: Tensor) -> Tensor:
        """The words written, each letter the likeliest after those before it, shape ``(B, LONGEST + 1)``."""
        _, state = self.encoder(self.letters(words))
        letters = [torch.full((len(words), 1), START)]
        for _ in range(LONGEST + 1):
            hidden, state = self.decoder(self.letters(letters[-1]), state)
            letters.append(self.head(hidden).argmax(-1))
        return torch.cat(letters[1:], dim=1)


def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random words, ``END`` behind each, and the same backwards."""
    words = torch.randint(N_LETTERS, (n, LONGEST + 1), generator=generator)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (n, 1), generator=generator)
    places = torch.arange(LONGEST + 1)
    words = torch.where(places < lengths, words, END)
    return words, torch.where(places < lengths, words.gather(1, (lengths - 1 - places).clamp_min(0)), END)


def shifted(wanted: Tensor) -> Tensor:
    """The letters before each letter."""
    return torch.cat([torch.full((len(wanted), 1), START), wanted[:, :-1]], dim=1)


def trained(seed: int) -> Transducer:
    """A model that writes words backwards."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Transducer()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, N_STEPS)
    for _ in range(N_STEPS):
        words, wanted = draw(N_WORDS, generator)
        loss = nn.functional.cross_entropy(model(words, shifted(wanted)).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def measured(seed: int) -> Iterator[dict[str, object]]:
    """A row of the result for each ratio."""
    model = trained(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    words, wanted = draw(N_NEW, generator)
    own = model.write(words)

    def same(compressed: btcompress.CompressedCheckpoint) -> float:
        copy = Transducer()
        copy.load_state_dict(model.state_dict())
        return float((apply(copy, compressed).write(words) == own).all(1).float().mean())

    right = float((own == wanted).all(1).float().mean())
    with tempfile.TemporaryDirectory() as folder:
        weights, inputs = Path(folder) / "model.pt", Path(folder) / "inputs.npz"
        torch.save(model.state_dict(), weights)
        given, letters = draw(N_RECORDED, generator)
        with btcompress.recording(model, inputs, sequences=N_RECORDED), torch.no_grad():
            for some, others in zip(given.split(100), letters.split(100), strict=True):
                model(some, shifted(others))
        for ratio in RATIOS:
            row: dict[str, object] = {"seed": seed, "ratio": ratio, "dense right": right}
            step = FactorizeStep(target_ratio=ratio, matrices=("input", "recurrent"), seed=seed)
            row["data-free"] = same(compress(weights, step))
            for name, layers in CASES.items():
                given = tuple(SampleInputs(str(inputs), layer) for layer in layers)
                result = compress(weights, replace(step, calibration=given))
                row[name] = same(result)
                steps = [step for step in result.history if step["step"] == "calibrate"]
                row[f"{name}, hidden-state errors"] = {step["lstm"]: step["hidden_state_error_after"] for step in steps}
            yield row


def main() -> None:
    """Read the arguments, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for row in measured(seed):
            rows.append(row)
            print(json.dumps(row), flush=True)
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
