"""What Keras computes beside torch's layers with the weights that are read from Keras's files.

    PYTHONPATH=KERAS KERAS_BACKEND=torch python tests/benchmarks/keras_outputs.py

Needs ``keras`` (3, with torch as its backend) and ``h5py``. Builds every layer in every arrangement that is read, with
random weights and biases, saves the model in all formats, reads each of these, and prints the largest difference of
outputs and of last states; the exit code is 1 where one is above 1e-5.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import torch
from keras import layers
from torch import nn

from btcompress.checkpoint import RecurrentEntry, read

BATCH, STEPS, INPUTS = 3, 7, 5
MOST = 1e-5
FORMATS = (".h5", ".weights.h5", ".keras")

#: By name: the layer, and whether its outputs come from the last input on.
CASES = {
    "LSTM": lambda: layers.LSTM(4, return_sequences=True, return_state=True),
    "LSTM without bias": lambda: layers.LSTM(4, use_bias=False, return_sequences=True, return_state=True),
    "GRU": lambda: layers.GRU(4, return_sequences=True, return_state=True),
    "GRU without bias": lambda: layers.GRU(4, use_bias=False, return_sequences=True, return_state=True),
    "SimpleRNN": lambda: layers.SimpleRNN(4, return_sequences=True, return_state=True),
    "SimpleRNN, relu": lambda: layers.SimpleRNN(4, activation="relu", return_sequences=True, return_state=True),
    "Bidirectional LSTM": lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True, return_state=True)),
    "Bidirectional GRU": lambda: layers.Bidirectional(layers.GRU(4, return_sequences=True, return_state=True)),
    "Bidirectional SimpleRNN": lambda: layers.Bidirectional(
        layers.SimpleRNN(4, return_sequences=True, return_state=True)
    ),
    "RNN of an LSTMCell": lambda: layers.RNN(layers.LSTMCell(4), return_sequences=True, return_state=True),
    "RNN of a GRUCell": lambda: layers.RNN(layers.GRUCell(4), return_sequences=True, return_state=True),
    "LSTM, go_backwards": lambda: layers.LSTM(4, go_backwards=True, return_sequences=True, return_state=True),
}


def model_of(layer):
    """A model of one layer that gives all it computes, with random weights and biases."""
    given = keras.Input((STEPS, INPUTS))
    model = keras.Model(given, layer(given))
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(0, 0.5, weight.shape).astype("float32") for weight in model.get_weights()])
    return model


def computed(path, x, *, nonlinearity):
    """Outputs and last states of torch's layer with the weights in a file, in the order of Keras."""
    checkpoint = read(path).with_nonlinearity(nonlinearity)
    (entry,) = [each for each in checkpoint.recurrent() if isinstance(each, RecurrentEntry)]
    arguments = {"nonlinearity": entry.nonlinearity} if entry.type == "rnn" else {}
    layer = getattr(nn, entry.class_name)(
        INPUTS, entry.hidden_size, bias=entry.bias, bidirectional=entry.bidirectional, batch_first=True, **arguments
    )
    layer.load_state_dict({key.removeprefix(entry.prefix): each for key, each in checkpoint.tensors.items()})
    with torch.no_grad():
        output, state = layer(x)
    states = state if isinstance(state, tuple) else (state,)
    return [output, *(each[direction] for direction in range(1 + entry.bidirectional) for each in states)]


def main():
    worst = 0.0
    x = torch.randn(BATCH, STEPS, INPUTS, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        for name, make in CASES.items():
            model = model_of(make())
            theirs = [torch.as_tensor(each.detach().cpu()) for each in model(x)]
            for ending in FORMATS:
                path = Path(folder, f"model{ending}")
                (model.save_weights if ending == ".weights.h5" else model.save)(path)
                untold = "relu" if "relu" in name and ending == ".weights.h5" else None
                ours = computed(path, x.flip(1) if "go_backwards" in name else x, nonlinearity=untold)
                difference = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
                worst = max(worst, difference)
                print(f"{name:28} {ending:12} {difference:.1e}")
    print(f"Keras {keras.__version__}, torch {torch.__version__}: at most {worst:.1e}")
    return worst > MOST


if __name__ == "__main__":
    sys.exit(main())
