"""What calibrating does to a published encoder-decoder: g2p-fa 1.1.0, which writes Persian words in phonetic letters.

Its two LSTMs of two layers, the decoder begun with the encoder's state and run step by step, are factorized in ``W``
and ``U`` at the ratios given: *data-free*, and *calibrated* on what both get on 500 words, as the recorder wrote it. A
decision is the word that is written: said is the share of 383 other words whose output is the dense model's own, up to
its end. Words are those of the Persian translations in Django's wheel. One JSON line for each seed and ratio.

    python tests/benchmarks/g2p_decisions.py G2P_FOLDER DJANGO_FOLDER --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import btcompress
from btcompress import FactorizeStep, SampleInputs

N_RECORDED, N_TESTED, BATCH = 500, 383, 50
KINDS = ("input", "recurrent")
#: Numbers of the package's letters that begin and end a word.
START, END = 1, 2


def words(django: Path, letters: str) -> list[str]:
    """All words of the translations that the model has letters for."""
    found: set[str] = set()
    for file in sorted(django.rglob("locale/fa/LC_MESSAGES/django.po")):
        for line in re.findall(r'^msgstr(?:\[\d\])? "(.*)"|^"(.*)"', file.read_text(encoding="utf-8"), re.MULTILINE):
            found |= {
                word for word in re.split(r"\W+", " ".join(line)) if 2 <= len(word) <= 20 and not {*word} - {*letters}
            }
    return sorted(found)


@torch.no_grad()
def written(model: nn.Module, sources: Tensor) -> list[tuple[int, ...]]:
    """What the model writes for words, letter by letter, up to the end of each."""
    outputs = []
    for batch in sources.split(BATCH):
        target = torch.full((sources.shape[1], len(batch)), START)
        chosen = model(batch.T, target, 0).argmax(2)[1:].T.tolist()
        outputs += [tuple(row[: row.index(END)] if END in row else row) for row in chosen]
    return outputs


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="folder with g2p_fa, unpacked")
    parser.add_argument("django", type=Path, help="folder of Django, unpacked")
    parser.add_argument("--ratios", type=float, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    sys.path.insert(0, str(args.package))
    from g2p_fa import G2P_Fa
    from g2p_fa.utils import FA_LETTERS, word2tensor

    dense = G2P_Fa().model.eval()
    every = words(args.django, FA_LETTERS)
    for seed in args.seeds:
        drawn = np.random.default_rng(seed).permutation(every)
        sources = torch.stack([word2tensor(str(word)) for word in drawn[: N_RECORDED + N_TESTED]])
        recorded, tested = sources[:N_RECORDED], sources[N_RECORDED:]
        wanted = written(dense, tested)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "inputs.npz"
            with btcompress.recording(dense, file, sequences=N_RECORDED, seed=seed):
                written(dense, recorded)
            for ratio in args.ratios:
                row = {"seed": seed, "ratio": ratio, "words": len(every), "tested": len(tested)}
                for name, inputs in (("data-free", ()), ("calibrated", (SampleInputs(str(file)),))):
                    began = time.process_time()
                    step = FactorizeStep(matrices=KINDS, target_ratio=ratio, calibration=inputs, seed=seed)
                    result = btcompress.compress(dense, step)
                    row[f"{name}, CPU seconds"] = round(time.process_time() - began)
                    given = written(btcompress.apply(copy.deepcopy(dense), result), tested)
                    row[name] = sum(a == b for a, b in zip(given, wanted, strict=True)) / len(tested)
                    errors = {
                        each.lstm: round(each.hidden_state_error_after, 4)
                        for each in btcompress.report(result).calibrated
                    }
                    row |= {"hidden-state errors": errors} if errors else {}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
