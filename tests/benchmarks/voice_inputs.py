"""Inputs of Resemblyzer 0.1.4's LSTM: loudness in bands of sentences that machine voices speak.

    python tests/benchmarks/voice_inputs.py django espeakng_loader train.npz test.npz

``django`` and ``espeakng_loader`` are the folders of these packages, unpacked, as for ``speech_inputs.py``. Voices are
variants of eSpeak NG, those of the two files apart; each speaks English sentences at its own speed and pitch, in a
little noise. Sequences of 160 steps are 1.6 seconds as that package reads them: 40 bands of energies, not of their
logarithms. Each file holds ``x`` of shape ``(sequences, 160, 40)``, and in ``y`` the number of the voice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from speech_inputs import RATE, Voice
from translations import sentences

Array = NDArray[np.float64]
N_STEPS, N_BANDS = 160, 40
WINDOW, HOP = 400, 160
#: Root mean square that quieter samples are raised to, -30 dB.
LOUDNESS = 10 ** (-30 / 20)
#: What is below this share of a recording's loudest sample, at its beginning and end, is no speech.
SILENCE = 0.02
#: Variants that are no other voice than one here, or whisper.
LEFT_OUT = ("whisper", "whisperf", "fast")


def mels(frequencies: Array) -> Array:
    """On the scale that is linear up to 1,000 Hz and logarithmic above (Slaney 1998)."""
    above = 15 + 27 * np.log(np.maximum(frequencies, 1000) / 1000) / np.log(6.4)
    return np.where(frequencies < 1000, frequencies * 3 / 200, above)


def hertz(values: Array) -> Array:
    """The inverse of :func:`mels`."""
    return np.where(values < 15, values * 200 / 3, 1000 * 6.4 ** ((values - 15) / 27))


def filters() -> Array:
    """Triangular bands over the frequencies of a window, shape ``(bands, frequencies)``, each of area 1 over hertz."""
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    corners = hertz(np.linspace(0, float(mels(np.array(RATE / 2))), N_BANDS + 2))
    low, middle, high = (corners[n : n + N_BANDS, None] for n in range(3))
    bands = np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle))
    return np.maximum(bands, 0) * 2 / (high - low)


def energies(samples: Array, bands: Array) -> Array:
    """Energy in each band, shape ``(steps, bands)``."""
    padded = np.pad(samples, WINDOW // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return np.abs(np.fft.rfft(frames * window)) ** 2 @ bands.T


def spoken(voice: Voice, name: str, text: str, speed: int, pitch: int, generator: np.random.Generator) -> Array:
    """A sentence without the silence around it, as loud as the package makes it, in a little noise."""
    samples = voice.says(text, f"en+{name}", speed, pitch)
    loud = np.flatnonzero(np.abs(samples) > SILENCE * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1] * generator.uniform(0.1, 1)
    samples += 10 ** generator.uniform(-4, -2.5) * generator.standard_normal(len(samples))
    return samples * max(LOUDNESS / np.sqrt(np.mean(samples**2)), 1)


def main() -> None:
    """Read the arguments, speak, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("django", type=Path)
    parser.add_argument("espeak", type=Path)
    parser.add_argument("files", type=Path, nargs=2)
    parser.add_argument("--sequences", type=int, nargs=2, default=[600, 400])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    texts = generator.permutation([text for text in sentences(args.django, "en") if len(text) > 40])
    every = (file.name for file in sorted((args.espeak / "espeak-ng-data" / "voices" / "!v").iterdir()))
    names = generator.permutation([name for name in every if name not in LEFT_OUT and " " not in name])
    voice, bands = Voice(args.espeak), filters()
    half = len(texts) // 2
    for file, count, own, some in zip(
        args.files, args.sequences, np.array_split(names, 2), (texts[:half], texts[half:]), strict=True
    ):
        manners = [(int(generator.integers(140, 200)), int(generator.integers(20, 80))) for _ in own]
        x: list[Array] = []
        y: list[int] = []
        while len(x) < count:
            who = int(generator.integers(len(own)))
            said = spoken(voice, str(own[who]), str(generator.choice(some)), *manners[who], generator)
            found = energies(said, bands)
            if len(found) < N_STEPS:
                continue
            first = int(generator.integers(len(found) - N_STEPS + 1))
            x.append(found[first : first + N_STEPS])
            y.append(who)
        np.savez(file, x=np.array(x, dtype=np.float32), y=np.array(y))


if __name__ == "__main__":
    sys.exit(main())
