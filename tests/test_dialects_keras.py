"""Layers of Keras and TensorFlow 1 in torch's names: what they compute, in which files, and what is refused."""

import io
import json
import zipfile
from itertools import product

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import btcompress
from btcompress.checkpoint import RecurrentEntry, from_state_dict, hdf5files, hdf5listing, read
from btcompress.dialects import keras
from btcompress.dialects.kerasconfig import ModelConfig

STEPS, INPUTS = 6, 5


@pytest.fixture
def here(monkeypatch):
    """Files are described in this process, which is quicker: these are sound, or refused."""

    def answer(path, start, size):
        return json.dumps(hdf5listing.answer(str(path), start, size)).encode()

    monkeypatch.setattr(hdf5files, "_answer", answer)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(0, 0.6, shape)


# What the layers compute, step by step as Keras and TensorFlow say


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def keras_lstm(own, x):
    hidden, bias = own["recurrent_kernel"].shape[0], own.get("bias", 0)
    h = c = np.zeros(hidden)
    states = []
    for each in x:
        i, f, g, o = np.split(each @ own["kernel"] + h @ own["recurrent_kernel"] + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states)


def keras_gru(own, x):
    hidden = own["recurrent_kernel"].shape[0]
    bias, recurrent_bias = own.get("bias", np.zeros((2, 3 * hidden)))
    h, states = np.zeros(hidden), []
    for each in x:
        x_z, x_r, x_h = np.split(each @ own["kernel"] + bias, 3)
        h_z, h_r, h_h = np.split(h @ own["recurrent_kernel"] + recurrent_bias, 3)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        h = z * h + (1 - z) * np.tanh(x_h + r * h_h)
        states.append(h)
    return np.array(states)


def keras_rnn(own, x, activation=np.tanh):
    h, states = np.zeros(own["recurrent_kernel"].shape[0]), []
    for each in x:
        h = activation(each @ own["kernel"] + own.get("bias", 0) + h @ own["recurrent_kernel"])
        states.append(h)
    return np.array(states)


def layer_of(gates, inputs, hidden, seed=0, bias=True):
    own = {"kernel": normal(inputs, gates * hidden, seed=seed), "recurrent_kernel": normal(hidden, gates * hidden)}
    shape = (2, 3 * hidden) if gates == 3 else (gates * hidden,)
    return {**own, "bias": normal(*shape, seed=seed)} if bias else own


REFERENCES = {4: keras_lstm, 3: keras_gru, 1: keras_rnn}


def computed(checkpoint, x, name=None):
    """What torch's layer computes with the tensors of a checkpoint."""
    entries = [each for each in checkpoint.recurrent() if isinstance(each, RecurrentEntry)]
    (entry,) = [each for each in entries if name in (None, each.name)]
    arguments = {"nonlinearity": entry.nonlinearity} if entry.type == "rnn" else {}
    sizes = {"bidirectional": entry.bidirectional, "proj_size": entry.proj_size} if entry.type == "lstm" else {}
    sizes = {"bidirectional": entry.bidirectional} if entry.type != "lstm" else sizes
    layer = getattr(nn, entry.class_name)(
        entry.input_size, entry.hidden_size, bias=entry.bias, dtype=torch.float64, **sizes, **arguments
    )
    layer.load_state_dict({key.removeprefix(entry.prefix): checkpoint.tensors[key] for key in entry.keys})
    with torch.no_grad():
        return layer(torch.as_tensor(x))[0].numpy()


def tensors(state):
    return {key: torch.as_tensor(np.array(value)) for key, value in state.items()}


def below(path, own, copy=":0"):
    return {f"{path}/{name}{copy}": value for name, value in own.items()}


@pytest.mark.parametrize(("gates", "bias"), list(product([4, 3, 1], [True, False])))
def test_torchs_layer_computes_what_that_of_keras_does(gates, bias):
    own, x = layer_of(gates, INPUTS, 4, bias=bias), normal(STEPS, INPUTS)
    checkpoint = from_state_dict(tensors(below("net/rec/some_cell", own)))
    np.testing.assert_allclose(computed(checkpoint, x, "net.rec"), REFERENCES[gates](own, x), rtol=0, atol=1e-12)
    assert "net.rec: converted from Keras" in " ".join(checkpoint.notices)


@pytest.mark.parametrize("gates", [4, 3, 1])
def test_both_directions_become_one_layer(gates):
    forward, backward = (layer_of(gates, INPUTS, 4, seed=seed) for seed in (1, 2))
    state = below("both/forward_x_1/a_cell", forward) | below("both/backward_x_1/a_cell_1", backward)
    x = normal(STEPS, INPUTS)
    expected = np.concatenate([REFERENCES[gates](forward, x), REFERENCES[gates](backward, x[::-1])[::-1]], axis=1)
    np.testing.assert_allclose(computed(from_state_dict(tensors(state)), x, "both"), expected, rtol=0, atol=1e-12)


def as_cudnn(own):
    """The layout of ``CuDNNLSTM`` and ``CuDNNGRU``, as Keras 2 turned weights into it when it loaded them."""
    n_gates = own["kernel"].shape[1] // own["recurrent_kernel"].shape[0]
    kernels, recurrent = (np.hsplit(own[name], n_gates) for name in ("kernel", "recurrent_kernel"))
    bias = own["bias"]
    return {
        "kernel": np.hstack([each.T.reshape(each.shape, order="C") for each in kernels]),
        "recurrent_kernel": np.hstack([each.T for each in recurrent]),
        "bias": np.tile(0.5 * bias, 2) if bias.ndim == 1 else bias.reshape(-1),
    }


@pytest.mark.parametrize("gates", [4, 3])
def test_layers_that_ran_on_cudnn_lie_otherwise(gates):
    own, x = layer_of(gates, INPUTS, 4), normal(STEPS, INPUTS)
    checkpoint = from_state_dict(tensors(below("rec", as_cudnn(own))))
    np.testing.assert_allclose(computed(checkpoint, x, "rec"), REFERENCES[gates](own, x), rtol=0, atol=1e-12)
    assert "does not say what is applied" not in " ".join(checkpoint.notices)


def test_a_cell_without_a_layer_is_a_cell():
    checkpoint = from_state_dict(tensors(below("lstm_cell_3", layer_of(4, 5, 3))))
    assert [each.class_name for each in checkpoint.recurrent()] == ["LSTMCell"]


def test_stacked_cells_are_layers_of_their_own():
    state = below("rnn/stacked/lstm_cell", layer_of(4, 5, 3)) | below("rnn/stacked/lstm_cell_1", layer_of(4, 3, 2))
    names = [each.name for each in from_state_dict(tensors(state)).recurrent()]
    assert names == ["rnn.stacked.lstm_cell", "rnn.stacked.lstm_cell_1"]


# The files that Keras writes

LAYERS = {
    "words": {"embeddings": normal(7, 5)},
    "first": layer_of(4, 5, 4),
    "both": {"forward": layer_of(3, 4, 3, seed=1), "backward": layer_of(3, 4, 3, seed=2)},
    "last": layer_of(1, 6, 2),
    "head": {"kernel": normal(2, 9), "bias": normal(9)},
    "norm": {"gamma": normal(9)},
}
CLASSES = {"words": "Embedding", "first": "LSTM", "last": "SimpleRNN", "head": "Dense", "norm": "LayerNormalization"}


def config_of(**changes):
    """The configuration of a model of :data:`LAYERS`, other entries of layers by name."""
    gru = {"class_name": "GRU", "config": {"name": "forward_gru", "reset_after": True, **changes.get("gru", {})}}
    both = {"class_name": "Bidirectional", "config": {"name": "both", "merge_mode": "concat", "layer": gru}}
    both["config"] |= changes.get("both", {})
    plain = {
        name: {"class_name": kind, "config": {"name": name, "activation": "tanh", **changes.get(name, {})}}
        for name, kind in (CLASSES | changes.get("classes", {})).items()
    }
    order = [{"class_name": "InputLayer", "config": {"name": "in"}}, plain["words"], plain["first"], both]
    order += [plain["last"], plain["head"], plain["norm"]]
    return json.dumps({"class_name": "Sequential", "config": {"name": "model", "layers": order}})


def cells(name):
    """The paths of a layer's weights below its name, as Keras 3 calls them, and what is there."""
    own = LAYERS[name]
    if name == "both":
        return {f"{side}_gru/gru_cell": own[side] for side in own}
    return {{"first": "lstm_cell", "last": "simple_rnn_cell"}.get(name, ""): own}


def write_named(group, repeats, copy):
    for name in LAYERS:
        for path, own in cells(name).items():
            for key, value in own.items():
                group[f"{name}/{repeats.format(name)}/{path}/{key}{copy}"] = value


def keras2(path):
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.2.4"
        write_named(file, "{0}", ":0")


def keras3_whole(path, **changes):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config_of(**changes)
        file["optimizer_weights/adam/first_kernel_momentum"] = normal(3, 4)
        write_named(file.create_group("model_weights"), "model/{0}", "")


def numbered(file, lists="layers", named=True):
    numbers = {"words": "embedding", "first": "lstm", "both": "bidirectional", "last": "simple_rnn", "head": "dense"}
    for name in LAYERS:
        home = f"{lists}/{numbers.get(name, 'layer_normalization')}"
        for path, own in cells(name).items():
            sides = {"forward_gru/gru_cell": "forward_layer/cell", "backward_gru/gru_cell": "backward_layer/cell"}
            inner = sides.get(path, "cell" if path else "")
            for n, value in enumerate(own.values()):
                file[f"{home}/{inner}/vars/{n}"] = value
        if named:
            file.require_group(f"{home}/vars").attrs["name"] = name
    file["layers/lstm/cell/seed_generator/vars/0"] = np.zeros(2, np.uint32)


def keras3_weights(path):
    with h5py.File(path, "w") as file:
        numbered(file)


def packed(compression, lists="layers", named=True):
    def write(path, **changes):
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            numbered(file, lists, named)
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", config_of(**changes))
            archive.writestr("model.weights.h5", content.getvalue())

    return write


def by_names(path):
    flat = {}
    for name in ("first", "both", "last"):
        for each, own in cells(name).items():
            flat |= below(f"{name}/{each}", own)
    save_file(tensors(flat), path)


FILES = {
    "weights of Keras 2": ("w.h5", keras2),
    "model of Keras 3, legacy": ("m.h5", keras3_whole),
    "weights of Keras 3": ("m.weights.h5", keras3_weights),
    "model of Keras 3": ("m.keras", packed(zipfile.ZIP_STORED)),
    "model of Keras 3, packed": ("m.keras", packed(zipfile.ZIP_DEFLATED)),
    "model of Keras 3.0": ("m.keras", packed(zipfile.ZIP_STORED, named=False)),
    "model of Keras 2.15": ("m.keras", packed(zipfile.ZIP_STORED, "_layer_checkpoint_dependencies", named=False)),
    "names in .safetensors": ("m.safetensors", by_names),
}


def expected(names):
    found = {}
    for name, layer in LAYERS.items():
        if name in names:
            forward = layer.get("forward", layer)
            found |= below(f"{name}.", {}) | converted(forward, name, "")
            if "backward" in layer:
                found |= converted(layer["backward"], name, "_reverse")
    return found


def converted(own, name, suffix):
    """The tensors of one direction, written out."""
    kernels = {"weight_ih": own["kernel"].T, "weight_hh": own["recurrent_kernel"].T}
    bias = own["bias"] if own["bias"].ndim == 2 else np.stack([own["bias"], 0 * own["bias"]])
    every = {**kernels, "bias_ih": bias[0], "bias_hh": bias[1]}
    if name == "both":  # z, r, h are torch's z, r, n
        every = {key: np.concatenate([value[3:6], value[0:3], value[6:9]]) for key, value in every.items()}
    return {f"{name}.{key}_l0{suffix}": value for key, value in every.items()}


@pytest.mark.parametrize("case", FILES)
def test_every_file_that_keras_writes_is_read_alike(case, tmp_path, here):
    name, write = FILES[case]
    path = tmp_path / name
    write(path)
    checkpoint = read(path)
    found = {key: each for key, each in checkpoint.tensors.items() if key.split(".")[0] in ("first", "both", "last")}
    wanted = expected(("first", "both", "last"))
    assert sorted(found) == sorted(wanted)
    for key, value in wanted.items():
        assert np.array_equal(found[key].numpy(), value), key
    types = {each.name: each.class_name for each in checkpoint.recurrent()}
    assert types == {"first": "LSTM", "both": "GRU", "last": "RNN"}
    if name.endswith("safetensors"):
        return
    assert np.array_equal(checkpoint.tensors["head.weight"].numpy(), LAYERS["head"]["kernel"].T)
    assert np.array_equal(checkpoint.tensors["head.bias"].numpy(), LAYERS["head"]["bias"])
    assert np.array_equal(checkpoint.tensors["words.weight"].numpy(), LAYERS["words"]["embeddings"])
    (other,) = set(checkpoint.tensors) - set(found) - {"head.weight", "head.bias", "words.weight"}
    assert np.array_equal(checkpoint.tensors[other].numpy(), LAYERS["norm"]["gamma"])
    notices = " ".join(checkpoint.notices)
    assert ("Left out" in notices) == ("model" in case or "Keras 3" in case)
    assert ("does not say what is applied" in notices) == case.startswith("weights")
    assert ("hard_sigmoid" in notices) == (case == "weights of Keras 2")


def test_a_file_of_keras_goes_through_to_a_model(tmp_path):
    path = tmp_path / "m.keras"
    packed(zipfile.ZIP_STORED)(path)
    result = btcompress.factorize(
        path,
        matrices=("input", "recurrent"),
        layers=("first", "both"),
        order=2,
        cp_rank=1,
        tucker_rank=99,
        restarts=0,
        allow_growth=True,
    )
    model = nn.ModuleDict({"first": nn.LSTM(5, 4), "both": nn.GRU(4, 3, bidirectional=True), "head": nn.Linear(2, 9)})
    model = btcompress.apply(model.double(), result, strict=False)
    x = normal(STEPS, INPUTS)
    with torch.no_grad():
        states = model["first"](torch.as_tensor(x))[0]
        both = model["both"](states)[0]
    expected = keras_lstm(LAYERS["first"], x)
    np.testing.assert_allclose(states.numpy(), expected, rtol=0, atol=1e-5)
    sides = LAYERS["both"]["forward"], LAYERS["both"]["backward"]
    expected = [keras_gru(sides[0], expected), keras_gru(sides[1], expected[::-1])[::-1]]
    np.testing.assert_allclose(both.numpy(), np.concatenate(expected, axis=1), rtol=0, atol=1e-5)
    assert isinstance(model["both"], btcompress.BTGRU)
    assert np.array_equal(model["head"].weight.detach().numpy(), LAYERS["head"]["kernel"].T)


SAID = {
    "another recurrent activation": ({"first": {"recurrent_activation": "hard_sigmoid"}}, "first", "hard_sigmoid"),
    "another activation": ({"first": {"activation": "relu"}}, "first", "activation relu"),
    "a function as an object": (
        {"first": {"activation": {"class_name": "function", "config": "selu"}}},
        "first",
        "activation selu",
    ),
    "no activation": ({"first": {"activation": None}}, "first", "activation linear"),
    "an activation of a plain RNN": ({"last": {"activation": "elu"}}, "last", "applies elu"),
    "a class of one's own": ({"classes": {"first": "PeepholeLSTM"}}, "first", "of the class PeepholeLSTM"),
    "a class of other sizes": ({"classes": {"first": "GRU"}}, "first", "a GRU as the file says"),
    "the reset gate before": ({"gru": {"reset_after": False}}, "both", "reset_after=False"),
    "a forward layer that runs backwards": ({"gru": {"go_backwards": True}}, "both", "go_backwards=True"),
}


@pytest.mark.parametrize("case", SAID)
def test_a_layer_that_applies_something_else_is_refused_by_name(case, tmp_path, here):
    changes, name, words = SAID[case]
    for ending, write in ((".h5", keras3_whole), (".keras", packed(zipfile.ZIP_STORED))):
        path = tmp_path / f"m{ending}"
        write(path, **changes)
        checkpoint = read(path)
        (refused,) = checkpoint.refused
        assert refused.name == name
        assert words in refused.reason
        assert set(refused.keys) <= set(checkpoint.tensors)
        assert not any(key.startswith(f"{name}.") for key in checkpoint.tensors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"both": {"merge_mode": "sum"}}, "both: torch's layer gives both directions beside each other"),
        ({"first": {"go_backwards": True}}, "first: go_backwards=True"),
    ],
)
def test_what_is_done_otherwise_in_torch_is_said(changes, words, tmp_path, here):
    keras3_whole(tmp_path / "m.h5", **changes)
    checkpoint = read(tmp_path / "m.h5")
    assert not checkpoint.refused
    assert words in " ".join(checkpoint.notices)


def test_a_nonlinearity_that_the_file_says_is_taken(tmp_path, here):
    keras3_whole(tmp_path / "m.h5", last={"activation": "relu"})
    assert read(tmp_path / "m.h5").nonlinearities == {"last": "relu"}


def beside(**more):
    return below("rec/a_cell", layer_of(4, 5, 3)) | {f"rec/a_cell/{key}": value for key, value in more.items()}


MISFITS = {
    "a GRU whose reset gate acts before": (below("rec", layer_of(3, 5, 4) | {"bias": normal(12)}), "reset_after=False"),
    "tensors beside the weights": (beside(input_gate_peephole_weights=normal(3)), "input_gate_peephole_weights"),
    "a layer below the cell": (beside(**{"norm/gamma": normal(3)}), "norm"),
    "a convolutional layer": (
        below("rec", {"kernel": normal(3, 3, 5, 16), "recurrent_kernel": normal(3, 3, 4, 16)}),
        "convolutional",
    ),
    "other sizes": (below("rec", layer_of(4, 5, 3) | {"bias": normal(13)}), "do not fit one another"),
    "no gates at all": (below("rec", {"kernel": normal(5, 6), "recurrent_kernel": normal(3, 6)}), "do not fit"),
    "layers of Keras 1": (
        {f"rec/rec_{part}_{gate}:0": normal(4, 4) for part in "WU" for gate in "icfo"},
        "written by Keras 1",
    ),
    "no entries": (below("rec", {"kernel": normal(5, 0), "recurrent_kernel": normal(0, 0)}), "do not fit"),
    "integers": (below("rec", layer_of(4, 5, 3) | {"kernel": np.ones((5, 12), np.int8)}), "several dtypes"),
    "directions of other sizes": (
        below("rec/forward_x", layer_of(4, 5, 3)) | below("rec/backward_x", layer_of(4, 6, 3)),
        "two directions",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_layer_that_does_not_fit_is_refused_by_name(case):
    state, words = MISFITS[case]
    checkpoint = from_state_dict(tensors(state))
    (refused,) = checkpoint.refused
    assert refused.name == "rec"
    assert words in refused.reason
    assert sorted(checkpoint.tensors) == sorted(state)


def test_other_projects_kernels_are_not_taken():
    state = {"rnn.kernel": normal(5, 12), "rnn.recurrent_kernel": normal(3, 12), "a/kernel": normal(3, 4)}
    assert not list(keras.find(tensors(state)))


def test_layers_are_numbered_by_their_classes_in_the_order_of_the_model():
    lstm = {"class_name": "LSTM", "config": {"name": "first"}}
    within = {"class_name": "Sequential", "config": {"name": "within", "layers": [lstm | {"config": {"name": "x"}}]}}
    cell = {"class_name": "SimpleRNN", "config": {"name": "between"}}
    order = [lstm, cell, within, lstm | {"config": {"name": "last"}}]
    numbers = ModelConfig.of(json.dumps({"class_name": "Functional", "config": {"layers": order}})).numbers
    assert numbers == {
        "layers/lstm": "first",
        "layers/simple_rnn": "between",
        "layers/sequential": "within",
        "layers/sequential/layers/lstm": "x",
        "layers/lstm_1": "last",
    }


ODD = [
    None,
    [],
    {"config": []},
    {"config": {"layers": {}}},
    {"class_name": 3, "config": {"name": ["x"], "layers": [None, 3, {"config": 3}, {"config": {"name": 3}}]}},
    {"class_name": "RNN", "config": {"name": "x", "cell": {"class_name": "RNN", "config": {"cell": {}}}}},
    {"class_name": "LSTM", "config": {"name": "x", "activation": [], "recurrent_activation": {"config": {}}}},
]


@pytest.mark.parametrize("value", ODD)
def test_any_configuration_is_read(value, tmp_path, here, monkeypatch):
    monkeypatch.setattr("test_dialects_keras.config_of", lambda: json.dumps(value))
    keras3_whole(tmp_path / "m.h5")
    assert len(read(tmp_path / "m.h5").recurrent()) == 3


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "NaN", '"text"'])
def test_what_is_no_configuration_says_nothing(text):
    assert ModelConfig.of(text) == ModelConfig({}, {})
