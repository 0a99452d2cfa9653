"""Inputs of BeatNet's LSTM, as its own first layers compute them from made-up music.

    python tests/benchmarks/beatnet_inputs.py model_1_weights.pt inputs.npz

Drums, hiss and chords at 70 to 170 beats a minute become spectrograms like those that BeatNet 1.1.3 reads (22,050
samples a second, 50 frames a second, logarithmic bands, 24 an octave, and their increase from frame to frame), and
those the inputs of the LSTM, by the convolution and the linear layer of the checkpoint.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv1d, linear, max_pool1d

Array = NDArray[np.float64]

RATE = 22050
FRAME, HOP, TRANSFORM = 1411, 441, 2048
BANDS_PER_OCTAVE, LOWEST, HIGHEST, N_BANDS = 24, 30.0, 17000.0, 136
PIECE_SECONDS = 8


def filters() -> Array:
    """Triangular bands over the frequencies of a transform, shape ``(bands, frequencies)``, each summing to 1."""
    n_frequencies = TRANSFORM // 2 + 1
    centres = 440 * 2 ** (np.arange(-120, 200) / BANDS_PER_OCTAVE)
    centres = centres[(centres >= LOWEST) & (centres <= min(HIGHEST, RATE / 2 * 0.99))]
    bins = np.unique(np.round(centres / (RATE / TRANSFORM)).astype(int))
    bands = np.zeros((N_BANDS, n_frequencies))
    for band, low, middle, high in zip(bands, bins, bins[1:], bins[2:], strict=False):
        band[low:middle] = np.linspace(0, 1, middle - low, endpoint=False)
        band[middle:high] = np.linspace(1, 0, high - middle, endpoint=False)
        band /= band.sum()
    return bands


def music(generator: np.random.Generator) -> Array:
    """Samples of one piece: drums and hiss on a beat, a chord for each bar."""
    samples = np.zeros(PIECE_SECONDS * RATE)
    beat = 60 / generator.uniform(70, 170)
    start = generator.uniform(0, beat)
    hit = np.arange(RATE // 4) / RATE
    root, beats_in_bar = generator.uniform(80, 200), generator.choice([3, 4])

    def add(at: float, sound: Array) -> None:
        first = int(at * RATE)
        sound = sound[: max(len(samples) - first, 0)]
        samples[first : first + len(sound)] += sound

    number = 0
    while start + number * beat < PIECE_SECONDS:
        at = start + number * beat
        if number % beats_in_bar == 0 or generator.random() < 0.2:
            bass = np.sin(2 * np.pi * (50 + 100 * np.exp(-30 * hit)) * hit) * np.exp(-12 * hit)
            add(at, generator.uniform(0.6, 1) * bass)
        elif generator.random() < 0.8:
            add(at, generator.uniform(0.3, 0.7) * generator.standard_normal(len(hit)) * np.exp(-25 * hit))
        for half in (0, 0.5):
            if generator.random() < 0.8:
                loudness = generator.uniform(0.05, 0.2)
                hiss = np.diff(generator.standard_normal(len(hit)), prepend=0)
                add(at + half * beat, loudness * hiss * np.exp(-60 * hit))
        if number % beats_in_bar == 0:
            bar = np.arange(int(beat * beats_in_bar * RATE)) / RATE
            tonic = root * 2 ** (generator.integers(0, 12) / 12)
            third = 2 ** (generator.choice([3, 4]) / 12)
            tones = [np.sin(2 * np.pi * tonic * tone * n * bar) / n for tone in (1, third, 1.5) for n in (1, 2, 3, 4)]
            add(at, generator.uniform(0.03, 0.15) * sum(tones) * np.exp(-1.5 * bar))
        number += 1
    samples += generator.uniform(0.001, 0.02) * generator.standard_normal(len(samples))
    return samples / np.abs(samples).max() * generator.uniform(0.3, 1)


def spectrogram(samples: Array, bands: Array) -> Array:
    """Loudness in each band and its increase since the frame before, shape ``(frames, 2 bands)``."""
    padded, window = np.pad(samples, (FRAME // 2, TRANSFORM)), np.hanning(FRAME)
    firsts = range(0, len(samples) // HOP * HOP, HOP)
    sizes = np.stack([np.abs(np.fft.rfft(padded[n : n + FRAME] * window, TRANSFORM)) for n in firsts])
    loudness = np.log10(1 + sizes @ bands.T)
    rise = np.maximum(np.diff(loudness, axis=0, prepend=loudness[:1]), 0)
    return np.concatenate([loudness, rise], axis=1)


def sequences(generator: np.random.Generator, n_steps: int) -> Iterator[Array]:
    """Spectrograms of so many frames, without end."""
    bands = filters()
    while True:
        frames = spectrogram(music(generator), bands)
        yield from (frames[n : n + n_steps] for n in range(0, len(frames) - n_steps + 1, n_steps))


def main() -> None:
    """Read the arguments, draw, and write ``x`` of shape ``(sequences, steps, 150)``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--sequences", type=int, default=660)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tensors = torch.load(args.weights, weights_only=True)
    drawn = sequences(np.random.default_rng(args.seed), args.steps)
    x = torch.tensor(np.array([next(drawn) for _ in range(args.sequences)]), dtype=torch.float32)
    frames = x.reshape(-1, 1, x.shape[-1])
    found = max_pool1d(torch.relu(conv1d(frames, tensors["conv1.weight"], tensors["conv1.bias"])), 2).flatten(1)
    inputs = linear(found, tensors["linear0.weight"], tensors["linear0.bias"])
    np.savez(args.inputs, x=inputs.unflatten(0, (args.sequences, args.steps)).numpy())


if __name__ == "__main__":
    sys.exit(main())
