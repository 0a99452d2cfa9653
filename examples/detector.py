"""What speech_to_onnx.py compresses: the network of silero-vad, and audio to train and compare it on."""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, pad

Samples = NDArray[np.float64]

RATE = 16000  # samples a second
STEP, BEFORE = 512, 64  # new samples in a chunk, and those of the chunk before it that go along
UNITS, STEPS = 128, 125  # of the LSTM, and chunks in four seconds


class Detector(nn.Module):
    """How likely a chunk of audio is speech; names and sizes are those of the weights that silero-vad publishes."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, UNITS, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(UNITS, UNITS)
        self.final_conv = nn.Conv1d(UNITS, 1, 1)
        angles = torch.outer(torch.arange(129), torch.arange(256)) * (2 * torch.pi / 256)
        waves = torch.cat([angles.cos(), -angles.sin()]) * torch.hann_window(256)
        self.stft_conv.weight = nn.Parameter(waves[:, None], requires_grad=False)

    def forward(self, chunk: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``(B, 576)`` samples and ``(B, 128)`` states: ``(B,)`` probabilities of speech, and the next states."""
        real, imaginary = self.stft_conv(pad(chunk, (0, 64), mode="reflect")[:, None]).chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        h, c = self.lstm_cell(x[:, :, 0], (h, c))
        return self.final_conv(h.relu()[:, :, None]).sigmoid()[:, 0, 0], h, c


def listen(detector: nn.Module, streams: Tensor) -> Tensor:
    """Probabilities ``(B, T)`` of all chunks of streams ``(B, T, 576)``."""
    h = c = torch.zeros(len(streams), UNITS)
    found = []
    for chunk in streams.unbind(1):
        speech, h, c = detector(chunk, h, c)
        found.append(speech)
    return torch.stack(found, 1)


def train(detector: Detector, streams: Tensor, speech: Tensor, updates: int) -> None:
    """Learn which chunks are speech, ``(B, T)``."""
    optimizer = torch.optim.Adam(detector.parameters(), 1e-3)
    for n in range(updates):
        rows = torch.arange(8 * n, 8 * n + 8) % len(streams)
        loss = binary_cross_entropy(listen(detector, streams[rows]), speech[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def recorded(path: Path) -> Samples:
    """The samples of a WAV file with one channel of 16 bits."""
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise SystemExit(f"{path} is not mono with 16 bits. Convert it, for example with ffmpeg -ac 1.")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
        return np.asarray(resample_poly(samples, RATE, file.getframerate()))


def made_up(generator: np.random.Generator) -> Samples:
    """A second or so that is a little like speech: overtones of a gliding pitch, in syllables."""
    t = np.arange(int(RATE * generator.uniform(0.5, 2))) / RATE
    turns = np.cumsum(generator.uniform(90, 250) * (1 + 0.2 * np.sin(5 * t))) * 2 * np.pi / RATE
    tones = np.sum([generator.uniform(0.02, 0.2) / k * np.sin(k * turns) for k in range(1, 12)], axis=0)
    return np.asarray(tones * np.abs(np.sin(t * generator.uniform(5, 15))))


def heard(sounds: Sequence[Samples], count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Streams ``(count, 125, 576)`` of pieces of sounds, with pauses and in noise, and which chunks have a sound."""
    clean = np.zeros((count, BEFORE + STEPS * STEP))
    for stream in clean:
        at = generator.integers(RATE)
        while at < len(stream):
            sound = sounds[int(generator.integers(len(sounds)))]
            piece = sound[generator.integers(len(sound) // 2) :][: min(2 * RATE, len(stream) - at)]
            stream[at : at + len(piece)] = piece * generator.uniform(0.3, 1)
            at += len(piece) + generator.integers(2 * RATE)
    noisy = clean + 10 ** generator.uniform(-3.5, -2, (count, 1)) * generator.standard_normal(clean.shape)
    chunks = torch.tensor(noisy, dtype=torch.float32).unfold(1, BEFORE + STEP, STEP)
    return chunks, torch.tensor(np.abs(clean)[:, BEFORE:].reshape(count, STEPS, STEP).max(-1) > 0.01)
