"""Small files for tests of fine-tuning: a dense checkpoint, its compressed form, sequences."""

import numpy as np
import torch
from torch import nn

import btcompress
from btcompress.finetune import FineTuneRequest, TrainConfig, finetune

SMALL = TrainConfig(epochs=3, batch_size=8, learning_rate=5e-3, seed=1, cpu=True)


class Classifier(nn.Module):
    def __init__(self, inputs=24, hidden=6, n_classes=3, **arguments):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True, **arguments)
        directions = 2 if arguments.get("bidirectional") else 1
        self.head = nn.Linear((arguments.get("proj_size") or hidden) * directions, n_classes)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def saved_pair(folder, model, **arguments):
    """Write a model dense and compressed; the two paths."""
    dense, compressed = folder / "model.pt", folder / "model.bt.safetensors"
    torch.save(model.state_dict(), dense)
    options = {"cp_rank": 2, "tucker_rank": 2, "allow_growth": True, "max_sweeps": 2, **arguments}
    btcompress.save(btcompress.factorize(dense, **options), compressed)
    return dense, compressed


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tune(place, compressed, data, teacher=None, config=SMALL, name="tuned.safetensors", **options):
    """Fine-tune; what the last step of the result's history says."""
    keywords = {key: options.pop(key) for key in ("force", "resume", "on_epoch") if key in options}
    request = FineTuneRequest(compressed, str(data), place / name, teacher, **options)
    return finetune(request, config, **keywords).compressed.history[-1]
