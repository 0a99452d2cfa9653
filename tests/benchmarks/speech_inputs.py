"""Inputs of silero-vad 6.2.3's LSTM cell: sentences that a machine speaks, with pauses, in noise.

    python tests/benchmarks/speech_inputs.py silero_vad_16k.safetensors django espeakng_loader train.npz test.npz

``django`` and ``espeakng_loader`` are the folders of these packages, unpacked from their wheels: sentences in several
languages, and eSpeak NG, which speaks them with voices, speeds and pitches that are drawn. Sequences of 125 steps are
four seconds at 16 kHz, through the model's own layers. Each file holds ``x`` of shape ``(sequences, 125, 128)``.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.signal import resample_poly
from torch import Tensor
from torch.nn.functional import conv1d, pad
from translations import drawn

Array = NDArray[np.float64]
RATE, STEP, CONTEXT, REFLECTED = 16000, 512, 64, 64
N_STEPS = 125
#: What the library is asked for: samples handed back at once, no events, and its rate, range and pitch parameters.
_SYNCHRONOUS, _UTF8, _SPEED, _PITCH = 2, 1, 1, 3


class Voice:
    """eSpeak NG, by its library."""

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 200, str(folder).encode(), 0)
        self._pieces: list[Array] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def take(samples: Any, count: int, _: Any) -> int:
            if samples and count:
                self._pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float64) / 2**15)
            return 0

        self._take = kind(take)
        self._library.espeak_SetSynthCallback(self._take)

    def says(self, text: str, language: str, speed: int, pitch: int) -> Array:
        """The samples of a sentence at 16 kHz."""
        self._pieces = []
        self._library.espeak_SetVoiceByName(language.encode())
        self._library.espeak_SetParameter(_SPEED, speed, 0)
        self._library.espeak_SetParameter(_PITCH, pitch, 0)
        spoken = text.encode() + b"\0"
        self._library.espeak_Synth(spoken, len(spoken), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.asarray(resample_poly(np.concatenate(self._pieces), RATE, self._rate))


def recording(voice: Voice, texts: list[tuple[str, str]], generator: np.random.Generator) -> Array:
    """Four seconds of sentences with pauses between, in noise of any loudness and colour."""
    n, pieces = N_STEPS * STEP, []
    while sum(map(len, pieces)) < n:
        language, text = texts[generator.integers(len(texts))]
        pause = np.zeros(int(RATE * generator.uniform(0.1, 2)))
        spoken = voice.says(text, language, int(generator.integers(120, 220)), int(generator.integers(10, 90)))
        first = int(generator.integers(max(len(spoken) // 2, 1)))
        pieces += [pause, spoken[first : first + int(RATE * generator.uniform(0.5, 2.5))] * generator.uniform(0.1, 1)]
    samples = np.concatenate(pieces)[:n]
    hiss = generator.standard_normal(n)
    share = generator.uniform(0, 0.98)
    for k in range(1, n):
        hiss[k] += share * hiss[k - 1]
    return samples + 10 ** generator.uniform(-4, -1.2) * hiss / hiss.std()


def features(tensors: dict[str, Tensor], samples: Array) -> Tensor:
    """What the LSTM cell gets at each step, shape ``(steps, 128)``."""
    padded = pad(torch.tensor(samples, dtype=torch.float32), (CONTEXT, 0))
    chunks = padded.unfold(0, CONTEXT + STEP, STEP)[:, None]
    found = conv1d(pad(chunks, (0, REFLECTED), mode="reflect"), tensors["stft_conv.weight"], stride=128)
    real, imaginary = found.chunk(2, dim=1)
    found = (real.square() + imaginary.square()).sqrt()
    for n, stride in ((1, 1), (2, 2), (3, 2), (4, 1)):
        weight, bias = tensors[f"conv{n}.weight"], tensors[f"conv{n}.bias"]
        found = conv1d(found, weight, bias, stride=stride, padding=1).relu()
    return found.squeeze(-1)


def main() -> None:
    """Read the arguments, speak, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("django", type=Path)
    parser.add_argument("espeak", type=Path)
    parser.add_argument("files", type=Path, nargs=2)
    parser.add_argument("--sequences", type=int, nargs=2, default=[400, 200])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    texts = drawn(args.django, 600, generator)
    voice, tensors = Voice(args.espeak), load_file(args.weights)
    for file, count, some in zip(args.files, args.sequences, (texts[:400], texts[400:]), strict=True):
        x = torch.stack([features(tensors, recording(voice, some, generator)) for _ in range(count)])
        np.savez(file, x=x.numpy())


if __name__ == "__main__":
    sys.exit(main())
