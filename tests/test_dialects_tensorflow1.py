"""Cells of TensorFlow 1 in torch's names: what they compute, step by step as TensorFlow says, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from btcompress.checkpoint import from_state_dict

STEPS, INPUTS, HIDDEN = 6, 5, 4


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(0, 0.6, shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(own, x, forget_bias=1.0):
    projection = own.get("projection/kernel", np.eye(HIDDEN))
    c, h = np.zeros(HIDDEN), np.zeros(projection.shape[1])
    states = []
    for each in x:
        i, j, f, o = np.split(np.concatenate([each, h]) @ own["kernel"] + own["bias"], 4)
        c = c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o) @ projection
        states.append(h)
    return np.array(states)


def gru(own, x):
    h, states = np.zeros(HIDDEN), []
    for each in x:
        r, u = np.split(sigmoid(np.concatenate([each, h]) @ own["gates/kernel"] + own["gates/bias"]), 2)
        hidden = h @ own["candidate/hidden_projection/kernel"] + own["candidate/hidden_projection/bias"]
        inputs = each @ own["candidate/input_projection/kernel"] + own["candidate/input_projection/bias"]
        h = (1 - u) * np.tanh(inputs + r * hidden) + u * h
        states.append(h)
    return np.array(states)


def rnn(own, x):
    h, states = np.zeros(HIDDEN), []
    for each in x:
        h = np.tanh(np.concatenate([each, h]) @ own["kernel"] + own["bias"])
        states.append(h)
    return np.array(states)


def weights(gates, state=HIDDEN, seed=0):
    return {
        "kernel": normal(INPUTS + state, gates * HIDDEN, seed=seed),
        "bias": normal(gates * HIDDEN, seed=seed),
    }


PROJECTED = {**weights(4, 3), "projection/kernel": normal(HIDDEN, 3)}
GRU = {
    "gates/kernel": normal(INPUTS + HIDDEN, 2 * HIDDEN),
    "gates/bias": normal(2 * HIDDEN),
    "candidate/input_projection/kernel": normal(INPUTS, HIDDEN),
    "candidate/input_projection/bias": normal(HIDDEN),
    "candidate/hidden_projection/kernel": normal(HIDDEN, HIDDEN, seed=1),
    "candidate/hidden_projection/bias": normal(HIDDEN, seed=1),
}


def computed(checkpoint, x):
    """What torch's layer computes with the one layer of a checkpoint."""
    (entry,) = checkpoint.recurrent()
    sizes = {"proj_size": entry.proj_size} if entry.type == "lstm" else {}
    layer = getattr(nn, entry.class_name)(INPUTS, HIDDEN, bidirectional=entry.bidirectional, **sizes).double()
    layer.load_state_dict({key.removeprefix(entry.prefix): checkpoint.tensors[key] for key in entry.keys})
    with torch.no_grad():
        return layer(torch.as_tensor(x))[0].numpy()


def state(path, own):
    return {f"{path}/{name}": torch.as_tensor(np.array(value)) for name, value in own.items()}


#: By path: the weights of the cell, what it computes, and the name of the layer.
CELLS = {
    "rnn/basic_lstm_cell": (weights(4), lstm, "rnn"),
    "a/rnn/lstm_cell_2": (weights(4), lstm, "a.rnn"),
    "rnn/multi_rnn_cell/cell_0/lstm_cell": (PROJECTED, lstm, "rnn.multi_rnn_cell.cell_0"),
    "x/lstm_fused_cell": (weights(4), lstm, "x"),
    "x/cudnn_compatible_lstm_cell": (weights(4), lambda own, x: lstm(own, x, 0.0), "x"),
    "x/cudnn_compatible_gru_cell": (GRU, gru, "x"),
    "rnn/basic_rnn_cell": (weights(1), rnn, "rnn"),
}


@pytest.mark.parametrize("path", CELLS)
def test_torchs_layer_computes_what_the_cell_does(path):
    own, reference, name = CELLS[path]
    checkpoint = from_state_dict(state(path, own) | state(path, {"kernel/Adam": own.get("kernel", normal(3))}))
    assert [each.name for each in checkpoint.recurrent()] == [name]
    x = normal(STEPS, INPUTS)
    np.testing.assert_allclose(computed(checkpoint, x), reference(own, x), rtol=0, atol=1e-12)
    notices = " ".join(checkpoint.notices)
    assert f"{name}: converted from TensorFlow 1" in notices
    assert ("1 is added to the biases of its forget gate" in notices) == ("lstm" in path and "cudnn" not in path)


def test_the_names_of_the_first_versions_are_known():
    own = weights(4)
    checkpoint = from_state_dict(state("rnn/basic_lstm_cell", {"weights": own["kernel"], "biases:0": own["bias"]}))
    x = normal(STEPS, INPUTS)
    np.testing.assert_allclose(computed(checkpoint, x), lstm(own, x), rtol=0, atol=1e-12)


def test_both_directions_become_one_layer():
    forward, backward = weights(4, seed=1), weights(4, seed=2)
    path = "encoder/bidirectional_rnn/{}/basic_lstm_cell"
    checkpoint = from_state_dict(state(path.format("bw"), backward) | state(path.format("fw"), forward))
    x = normal(STEPS, INPUTS)
    expected = np.concatenate([lstm(forward, x), lstm(backward, x[::-1])[::-1]], axis=1)
    np.testing.assert_allclose(computed(checkpoint, x), expected, rtol=0, atol=1e-12)
    assert checkpoint.recurrent()[0].name == "encoder.bidirectional_rnn"


def test_stacks_in_either_direction_are_layers_of_their_own():
    path = "bidirectional_rnn/{}/multi_rnn_cell/cell_{}/lstm_cell"
    tensors = {}
    for side in ("fw", "bw"):
        for n in range(2):
            tensors |= state(path.format(side, n), weights(4))
    checkpoint = from_state_dict(tensors)
    assert len(checkpoint.recurrent()) == 4
    said = [notice for notice in checkpoint.notices if "from the last to the first" in notice]
    assert [notice.split(":")[0] for notice in said] == [
        f"bidirectional_rnn.bw.multi_rnn_cell.cell_{n}" for n in (0, 1)
    ]


def test_a_cell_without_a_layer_is_a_cell():
    checkpoint = from_state_dict(state("lstm_cell", weights(4)))
    assert [(each.name, each.class_name) for each in checkpoint.recurrent()] == [("lstm_cell", "LSTMCell")]


MISFITS = {
    "the reset gate before": (
        "rnn/gru_cell",
        {
            **{key: GRU[key] for key in ("gates/kernel", "gates/bias")},
            "candidate/kernel": normal(9, 4),
            "candidate/bias": normal(4),
        },
        "its reset gate acts before",
    ),
    "peepholes": ("rnn/lstm_cell", {**weights(4), "w_f_diag": normal(4)}, "peepholes (w_f_diag)"),
    "layer norm": ("rnn/layer_norm_basic_lstm_cell", weights(4), "a layer_norm_basic_lstm_cell"),
    "a convolution": ("rnn/lstm_cell", {"kernel": normal(3, 3, 9, 16)}, "convolutional"),
    "other sizes": ("rnn/lstm_cell", {**weights(4), "bias": normal(15)}, "do not fit one another"),
    "no inputs": ("rnn/lstm_cell", {"kernel": normal(4, 16)}, "do not fit one another"),
    "a projection with a bias": ("rnn/lstm_cell", {**PROJECTED, "projection/bias": normal(3)}, "do not fit"),
    "integers": ("rnn/lstm_cell", {**weights(4), "kernel": np.ones((9, 16), np.int8)}, "one dtype"),
    "half of a cell": ("x/cudnn_compatible_gru_cell", {"gates/kernel": GRU["gates/kernel"]}, "do not fit"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_cell_that_does_not_fit_is_refused_by_name(case):
    path, own, words = MISFITS[case]
    tensors = state(path, own)
    checkpoint = from_state_dict(tensors)
    (refused,) = checkpoint.refused
    assert refused.name == path.split("/")[0]
    assert words in refused.reason
    assert sorted(checkpoint.tensors) == sorted(tensors)
