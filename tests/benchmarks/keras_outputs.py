"""What Keras computes beside torch's layers with the weights that are read from Keras's files.

    PYTHONPATH=KERAS KERAS_BACKEND=torch python tests/benchmarks/keras_outputs.py [WEIGHTS.h5 ...]

Needs ``keras`` (3, with torch as its backend) and ``h5py``. Builds every layer in every arrangement that is read, with
random weights and biases, saves the model in all formats, reads each of these, and prints the largest difference of
outputs and of last states, as the weights are and factorized at full rank. Then does so for files of weights of Keras 2
with one LSTM after the other, such as those of chars2vec and textgenrnn: over texts, where a file ``*vocab.json``
beside one has the numbers of characters, else over characters at random; as the file's embedding gives them, or by ones
and zeros. The exit code is 1 where a difference is above 1e-5.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import h5py
import keras
import numpy as np
import torch
from keras import layers
from torch import nn

import btcompress
from btcompress.checkpoint import RecurrentEntry, read
from btcompress.compression import compress

BATCH, STEPS, INPUTS = 3, 7, 5
CHARACTERS = 40
TEXTS = (
    "What is the best way to get a new job in the world?",
    "The first thing that comes to mind when you think of winter",
    "I made this for my friend",
)
MOST = 1e-5
FORMATS = (".h5", ".weights.h5", ".keras")

#: By name the layer.
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


def in_both_forms(path, nonlinearity=None):
    """The tensors of a file as they are, and of its factorization at full rank; and its recurrent layers."""
    dense = read(path).with_nonlinearity(nonlinearity)
    entries = [each for each in dense.recurrent() if isinstance(each, RecurrentEntry)]
    step = btcompress.FactorizeStep(
        matrices=("input", "recurrent"), order=2, cp_rank=1, tucker_rank=10**6, allow_growth=True, restarts=0
    )
    return {"as it is": dense.tensors, "full rank": btcompress.to_dense(compress(dense, step))}, entries


def computed(entry, tensors, x):
    """Outputs and last states of torch's layer, in the order of Keras."""
    arguments = {"nonlinearity": entry.nonlinearity} if entry.type == "rnn" else {}
    layer = getattr(nn, entry.class_name)(
        *(entry.input_size, entry.hidden_size),
        bias=entry.bias,
        bidirectional=entry.bidirectional,
        batch_first=True,
        **arguments,
    )
    layer.load_state_dict({key.removeprefix(entry.prefix): tensors[key] for key in entry.keys})
    with torch.no_grad():
        output, state = layer(x)
    states = state if isinstance(state, tuple) else (state,)
    return [output, *(each[direction] for direction in range(1 + entry.bidirectional) for each in states)]


def difference(theirs, ours):
    """The largest of any output and state."""
    return max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))


def of_keras_2(own):
    """Weights as ``LSTM`` has them; what Keras 2 did to those of ``CuDNNLSTM`` when it loaded them."""
    kernel, recurrent, bias = (np.array(own[f"{name}:0"]) for name in ("kernel", "recurrent_kernel", "bias"))
    if bias.shape[0] == kernel.shape[1]:
        return [kernel, recurrent, bias]
    kernels = [each.T.reshape(each.shape, order="F") for each in np.hsplit(kernel, 4)]
    recurrent = [each.T for each in np.hsplit(recurrent, 4)]
    return [np.hstack(kernels), np.hstack(recurrent), np.sum(np.split(bias, 2), axis=0)]


def published(path):
    """The differences of the LSTMs of a file, each fed by the one before."""
    forms, entries = in_both_forms(path)
    with h5py.File(path) as file:
        weights = {name: of_keras_2(file[name][name]) for name in (each.name for each in entries)}
    embedding = next((each for name, each in forms["as it is"].items() if "embedding" in name), None)
    embedding = torch.eye(entries[0].input_size) if embedding is None else embedding
    rows = torch.randint(len(embedding), (len(TEXTS), CHARACTERS), generator=torch.Generator().manual_seed(0))
    for vocabulary in Path(path).parent.glob("*vocab.json"):
        numbers = json.loads(vocabulary.read_text())
        known = [[numbers[each] for each in text if each in numbers][-CHARACTERS:] for text in TEXTS]
        rows = torch.tensor([[0] * (CHARACTERS - len(each)) + each for each in known])
    theirs = given = embedding[rows]
    ours = dict.fromkeys(forms, given)
    for entry in entries:
        layer = layers.LSTM(entry.hidden_size, return_sequences=True)
        layer.build(tuple(theirs.shape))
        layer.set_weights(weights[entry.name])
        theirs = torch.as_tensor(layer(theirs).detach().cpu())
        ours = {form: computed(entry, forms[form], x)[0] for form, x in ours.items()}
        yield entry.name, {form: difference([theirs], [each]) for form, each in ours.items()}


def main():
    worst = dict.fromkeys(("as it is", "full rank"), 0.0)

    def tell(name, ending, found):
        for form, value in found.items():
            worst[form] = max(worst[form], value)
        print(f"{name:28} {ending:12} " + "   ".join(f"{form} {value:.1e}" for form, value in found.items()))

    x = torch.randn(BATCH, STEPS, INPUTS, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        for name, make in CASES.items():
            model = model_of(make())
            theirs = [torch.as_tensor(each.detach().cpu()) for each in model(x)]
            for ending in FORMATS:
                path = Path(folder, f"model{ending}")
                (model.save_weights if ending == ".weights.h5" else model.save)(path)
                untold = "relu" if "relu" in name and ending == ".weights.h5" else None
                forms, (entry,) = in_both_forms(path, untold)
                inputs = x.flip(1) if "go_backwards" in name else x
                tell(name, ending, {f: difference(theirs, computed(entry, each, inputs)) for f, each in forms.items()})
    for path in sys.argv[1:]:
        for name, found in published(path):
            tell(f"{Path(path).name}: {name}", "", found)
    print(f"Keras {keras.__version__}, torch {torch.__version__}: at most {worst}")
    return max(worst.values()) > MOST


if __name__ == "__main__":
    sys.exit(main())
