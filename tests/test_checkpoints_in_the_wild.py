"""Every kind of checkpoint that is known, one row each: what is read of it, from the file to hidden states.

A row makes the file of a layer of torch's, whose hidden states the result has to give at full rank, or of what is none,
with the words by which it is named. Single readers and grammars have tests of their own, on written-out references.
"""

import json
import warnings
import zipfile
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import btcompress
from btcompress.errors import BTCompressError
from btcompress.nn import BTLSTM, BTLSTMCell
from btcompress.nn.replacing import classes_of

#: Inputs and hidden units.
N, H = 5, 3
FULL = {"tucker_rank": 1000, "allow_growth": True, "max_sweeps": 1, "matrices": ["input", "recurrent"]}

#: By the name of a case what makes its file, and what comes of it.
ROWS = {}


@dataclass(frozen=True)
class Layers:
    """A file whose layers compute what these modules do.

    Attributes:
        content: for ``torch.save``, or what writes the file.
        modules: by the names that the layers get.
        told: words of a notice of the result.
        options: of the factorization.
        model: makes the model that the file came from, for ``btcompress.apply``.
        applied: the layers of it, where it has others than the file.
    """

    content: object
    modules: dict[str, nn.Module]
    told: str = ""
    options: dict | None = None
    model: object = None
    applied: dict | None = None


@dataclass(frozen=True)
class Refused:
    """A file without a layer that is taken.

    Attributes:
        content: as that of :class:`Layers`.
        words: of the error.
    """

    content: object
    words: str


def row(name):
    def add(make):
        ROWS[name] = make
        return make

    return add


def below(prefix, tensors):
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def with_head(tensors):
    """The tensors of a layer among those of others."""
    return {
        "embedding.weight": torch.ones(7, N),
        **tensors,
        "head.weight": torch.ones(2, H),
        "head.bias": torch.ones(2),
    }


def gates(tensor, order, of="ifgo"):
    """Row groups in another order."""
    parts = dict(zip(of, tensor.detach().chunk(len(of)), strict=True))
    return torch.cat([parts[gate] for gate in order])


def each_gate(tensor, of="ifgo"):
    return dict(zip(of, tensor.detach().chunk(len(of)), strict=True))


def turned(tensor):
    return tensor.detach().T.contiguous()


def summed(module, suffix="_l0"):
    """One bias in place of two."""
    with torch.no_grad():
        first, second = (getattr(module, f"bias_{side}{suffix}") for side in ("ih", "hh"))
        first.add_(second)
        second.zero_()
    return first.detach()


# GRUs and plain RNNs


@row("GRU")
def _():
    return Layers(with_head(below("rnn.", (gru := nn.GRU(N, H, 2, bidirectional=True)).state_dict())), {"rnn": gru})


@row("GRU without biases, a cell")
def _():
    return Layers(with_head(below("rnn.", (gru := nn.GRUCell(N, H, bias=False)).state_dict())), {"rnn": gru})


@row("GRU, separate gates")
def _():
    gru = nn.GRU(N, H)
    return Layers(gru.state_dict(), {"": gru}, options={"gates": "separate"})


@row("plain RNN")
def _():
    rnn = nn.RNN(N, H)
    return Layers(below("rnn.", rnn.state_dict()), {"rnn": rnn}, "rnn: a plain RNN, taken to apply tanh")


@row("plain RNN with relu")
def _():
    rnn = nn.RNNCell(N, H, nonlinearity="relu")
    return Layers(below("rnn.", rnn.state_dict()), {"rnn": rnn}, options={"nonlinearity": "relu"})


# Stored otherwise


def altered(alter, name="weight_hh_l0"):
    lstm = nn.LSTM(N, H)
    plain = nn.LSTM(N, H)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alter(lstm, name)
        lstm.eval()(torch.zeros(1, 1, N))
    own = {key: getattr(lstm, key).detach().clone() for key in plain.state_dict()}
    plain.load_state_dict(own)
    return Layers(with_head(below("rnn.", lstm.state_dict())), {"rnn": plain}, name)


for name, alter in {
    "weight norm": nn.utils.weight_norm,
    "weight norm as a parametrization": parametrizations.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "spectral norm as a parametrization": parametrizations.spectral_norm,
    "pruning": lambda lstm, part: prune.random_unstructured(lstm, part, 0.3),
}.items():
    row(name)(lambda alter=alter: altered(alter))


@row("weight drop")
def _():
    lstm = nn.LSTM(N, H)
    state = below("rnns.0.module.", lstm.state_dict())
    state["rnns.0.module.weight_hh_l0_raw"] = state.pop("rnns.0.module.weight_hh_l0")
    return Layers(state, {"rnns.0.module": lstm}, "weight drop, and formed as the model does")


@row("fastai's weight drop beside a dropped-out copy")
def _():
    lstm = nn.LSTM(N, H)
    state = below("rnns.0.module.", lstm.state_dict())
    state["rnns.0.weight_hh_l0_raw"] = state["rnns.0.module.weight_hh_l0"]
    state["rnns.0.module.weight_hh_l0"] = torch.zeros(4 * H, H)
    return Layers(state, {"rnns.0.module": lstm}, "weight drop, and formed as the model does")


@row("a mask beside plain weights")
def _():
    lstm, masked = nn.LSTM(N, H), nn.LSTM(N, H)
    mask = (torch.arange(4 * H * H).reshape(4 * H, H) % 3 > 0).float()
    masked.load_state_dict(lstm.state_dict() | {"weight_hh_l0": lstm.weight_hh_l0 * mask})
    return Layers(
        below("rnn.", lstm.state_dict() | {"weight_hh_l0_mask": mask}),
        {"rnn": masked},
        "Multiplied by the mask beside it",
    )


# No layer of torch's


@row("a cell with layer norm")
def _():
    lstm = nn.LSTM(N, H)
    beside = {"cell.weight_ih": torch.ones(4 * H, N), "cell.weight_hh": torch.ones(4 * H, H)}
    beside |= {"cell.layernorm_i.weight": torch.ones(4 * H)}
    return Layers(below("rnn.", lstm.state_dict()) | beside, {"rnn": lstm}, "cell is no plain LSTMCell")


@row("peepholes")
def _():
    state = nn.LSTM(N, H).state_dict() | {"weight_ch_l0": torch.ones(3 * H)}
    lstm = nn.LSTM(N, H)
    return Layers(below("a.", state) | below("b.", lstm.state_dict()), {"b": lstm}, "a is no plain LSTM (beside")


@row("convolutional LSTM")
def _():
    return Refused({"weight_ih": torch.ones(4 * H, N, 3, 3), "weight_hh": torch.ones(4 * H, H, 3, 3)}, "convolutional")


@row("multiplicative LSTM")
def _():
    state = nn.LSTMCell(N, H).state_dict()
    return Refused(state | {"weight_mh": torch.ones(H, H), "weight_mx": torch.ones(H, N)}, "multiplicative LSTM")


@row("SRU")
def _():
    return Refused({"rnn.weight": torch.ones(N, 3 * H), "rnn.weight_c": torch.ones(2 * H)}, "SRU")


@row("highway LSTM")
def _():
    return Refused({"weight_ih_l0": torch.ones(6 * H, N), "weight_hh_l0": torch.ones(5 * H, H)}, "highway LSTM")


@row("placeholders of sharded training")
def _():
    return Refused({key: torch.empty(0) for key in nn.LSTM(N, H).state_dict()}, "zero_to_fp32")


@row("a matrix with NaN")
def _():
    state = nn.LSTM(N, H).state_dict()
    state["weight_ih_l0"][0, 0] = torch.nan
    return Refused(state, r"weight_ih_l0.*not finite.*--layer '!NAME'.*--allow-nonfinite")


# Other dialects


@row("AllenNLP's bidirectional LSTM")
def _():
    lstm, state = nn.LSTM(N, H, bidirectional=True), {}
    for side, suffix in (("forward", "_l0"), ("backward", "_l0_reverse")):
        own = lstm.state_dict()
        with torch.no_grad():
            getattr(lstm, f"bias_ih{suffix}").zero_()
        state[f"enc.{side}_layer_0.input_linearity.weight"] = own[f"weight_ih{suffix}"]
        state[f"enc.{side}_layer_0.state_linearity.weight"] = own[f"weight_hh{suffix}"]
        state[f"enc.{side}_layer_0.state_linearity.bias"] = own[f"bias_hh{suffix}"]
    return Layers(with_head(state), {"enc": lstm}, "converted from AllenNLP")


@row("ELMo's layer with a projection")
def _():
    lstm = nn.LSTM(N, H, proj_size=2)
    with torch.no_grad():
        lstm.bias_ih_l0.zero_()
    own = {"input_linearity.weight": lstm.weight_ih_l0, "state_linearity.weight": lstm.weight_hh_l0}
    own |= {"state_linearity.bias": lstm.bias_hh_l0, "state_projection.weight": lstm.weight_hr_l0}
    return Layers(below("elmo.forward_layer_0.", own), {"elmo.forward_layer_0": lstm}, "ELMo")


@row("highway layers of AllenNLP")
def _():
    own = {"input_linearity.weight": torch.ones(6 * H, N), "state_linearity.weight": torch.ones(5 * H, H)}
    return Refused(below("enc.layer_0.", own | {"state_linearity.bias": torch.ones(5 * H)}), "highway")


@row("torchaudio's layer with layer norm")
def _():
    own = {"x2g.weight": torch.ones(4 * H, N), "p2g.weight": torch.ones(4 * H, H)}
    norms = {"c_norm.weight": torch.ones(H), "g_norm.weight": torch.ones(4 * H)}
    return Refused(below("lstm_layers.0.", own | norms), "layer norm")


@row("torchaudio's layer of a transducer")
def _():
    lstm = nn.LSTM(N, H)
    bias = summed(lstm)
    own = {"x2g.weight": lstm.weight_ih_l0, "x2g.bias": bias, "p2g.weight": lstm.weight_hh_l0}
    return Layers(with_head(below("predictor.lstm_layers.0.", own)), {"predictor.lstm_layers": lstm}, "torchaudio")


@row("torch.ao's quantizable LSTM")
def _():
    lstm, state = nn.LSTM(N, H, 2), {}
    for layer in range(2):
        for side, part in (("ih", "igates"), ("hh", "hgates")):
            for leaf in ("weight", "bias"):
                value = getattr(lstm, f"{leaf}_{side}_l{layer}")
                state[f"rnn.layers.{layer}.layer_fw.cell.{part}.{leaf}"] = value.detach()
    return Layers(with_head(state), {"rnn": lstm}, "quantizable")


@row("TorchScript's custom LSTM")
def _():
    lstm = nn.LSTM(N, H, 2)
    state = {
        f"rnn.layers.{layer}.cell.{part}": getattr(lstm, f"{part}_l{layer}").detach()
        for layer in range(2)
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    return Layers(with_head(state), {"rnn": lstm}, "TorchScript")


@row("cells of torch's own with these names")
def _():
    def build():
        layers = nn.ModuleList(nn.ModuleDict({"cell": nn.LSTMCell(size, H)}) for size in (N, H))
        return nn.ModuleDict({"rnn": nn.ModuleDict({"layers": layers})})

    model, lstm = build(), nn.LSTM(N, H, 2)
    for layer in range(2):
        own = model["rnn"]["layers"][layer]["cell"].state_dict()
        lstm.load_state_dict({f"{key}_l{layer}": value for key, value in own.items()}, strict=False)
    cells = {f"rnn.layers.{layer}.cell": model["rnn"]["layers"][layer]["cell"] for layer in range(2)}
    return Layers(model.state_dict(), {"rnn": lstm}, "TorchScript", model=build, applied=cells)


@row("a matrix for each gate")
def _():
    lstm, state = nn.LSTM(N, H), {}
    for side, names in (("ih", "i"), ("hh", "h")):
        for leaf, letter in (("weight", "W"), ("bias", "b")):
            for gate, own in each_gate(getattr(lstm, f"{leaf}_{side}_l0")).items():
                state[f"cell.{letter}_{names}{gate}"] = own
    return Layers(with_head(state), {"cell": lstm}, "converted from a matrix for each gate")


@row("a linear layer for each gate")
def _():
    lstm, state = nn.LSTM(N, H), {}
    for side, names in (("ih", "i"), ("hh", "h")):
        for leaf in ("weight", "bias"):
            for gate, own in each_gate(getattr(lstm, f"{leaf}_{side}_l0")).items():
                state[f"cell.{names}{gate}.{leaf}"] = own
    return Layers(with_head(state), {"cell": lstm}, "converted from a matrix for each gate")


@row("haste")
def _():
    lstm = nn.LSTM(N, H)
    own = {"kernel": turned(gates(lstm.weight_ih_l0, "igfo"))}
    own["recurrent_kernel"] = turned(gates(lstm.weight_hh_l0, "igfo"))
    own["bias"] = gates(summed(lstm), "igfo")
    return Layers(with_head(below("rnn.", own)), {"rnn": lstm}, "converted from haste")


@row("haste's GRU")
def _():
    gru = nn.GRU(N, H)
    own = {"kernel": turned(gates(gru.weight_ih_l0, "zrn", "rzn"))}
    own["recurrent_kernel"] = turned(gates(gru.weight_hh_l0, "zrn", "rzn"))
    own |= {"bias": gates(gru.bias_ih_l0, "zrn", "rzn"), "recurrent_bias": gates(gru.bias_hh_l0, "zrn", "rzn")}
    return Layers(with_head(below("rnn.", own)), {"rnn": gru}, "converted from haste")


@row("transposed weights of an LSTM made for batch norm")
def _():
    lstm = nn.LSTM(N, H)
    own = {side: turned(gates(getattr(lstm, f"{side}_l0"), "fiog")) for side in ("weight_ih", "weight_hh")}
    own["bias"] = gates(summed(lstm), "fiog")
    return Layers(with_head(below("rnn.cell_0.", own)), {"rnn": lstm}, "batch-normalization LSTM")


def keras_names(lstm, name="lstm"):
    own = {"kernel": turned(gates(lstm.weight_ih_l0, "ifgo")), "recurrent_kernel": turned(lstm.weight_hh_l0)}
    return {f"{name}/lstm_cell/{part}:0": each for part, each in (own | {"bias": summed(lstm)}).items()}


@row("Keras's names")
def _():
    lstm = nn.LSTM(N, H)
    return Layers(keras_names(lstm), {"lstm": lstm}, "converted from Keras")


@row("Keras's names with dots")
def _():
    lstm = nn.LSTM(N, H)
    names = {key.replace("/", ".").removesuffix(":0"): each for key, each in keras_names(lstm, "model/lstm").items()}
    return Layers(with_head(names), {"model.lstm": lstm}, "converted from Keras")


@row("a file of Keras")
def _():
    lstm = nn.LSTM(N, H)

    def write(path):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            group = file.create_group("model_weights/lstm/lstm")
            group.parent.attrs["weight_names"] = [key.removeprefix("lstm/") for key in keras_names(lstm)]
            for key, tensor in keras_names(lstm).items():
                group.parent.parent[key] = tensor.numpy()

    return Layers(write, {"lstm": lstm}, "converted from Keras")


def numbered(lstm, path, prefix="layers/lstm/cell/vars/"):
    """A file of weights as Keras 3 writes it, which numbers the weights of each layer."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for n, tensor in enumerate(keras_names(lstm).values()):
            file[f"{prefix}{n}"] = tensor.numpy()


@row("a file of weights of Keras 3")
def _():
    lstm = nn.LSTM(N, H)
    return Layers(lambda path: numbered(lstm, path), {"lstm": lstm}, "converted from Keras")


@row("an archive of Keras 3")
def _():
    lstm = nn.LSTM(N, H)

    def write(path):
        numbered(lstm, path.with_suffix(".h5"))
        layer = {"class_name": "LSTM", "config": {"name": "lstm", "units": H}}
        config = {"class_name": "Sequential", "config": {"name": "model", "layers": [layer]}}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
            archive.write(path.with_suffix(".h5"), "model.weights.h5")

    return Layers(write, {"lstm": lstm}, "converted from Keras")


@row("Keras's GRU that resets before the product")
def _():
    own = {"kernel": torch.ones(N, 3 * H), "recurrent_kernel": torch.ones(H, 3 * H), "bias": torch.ones(3 * H)}
    return Refused(below("gru/gru_cell/", own), "reset_after=False")


@row("TensorFlow 1's BasicLSTMCell")
def _():
    lstm = nn.LSTM(N, H)
    bias = each_gate(summed(lstm))
    with torch.no_grad():
        bias["f"] = bias["f"] - 1
    kernel = torch.cat([lstm.weight_ih_l0, lstm.weight_hh_l0], 1)
    own = {"kernel": turned(gates(kernel, "igfo")), "bias": torch.cat([bias[gate] for gate in "igfo"])}
    return Layers(below("rnn/basic_lstm_cell/", own), {"rnn": lstm}, "forget")


def flax_cell(cell):
    state = {}
    for side, letter in (("ih", "i"), ("hh", "h")):
        for gate, own in each_gate(getattr(cell, f"weight_{side}_l0")).items():
            state[f"{letter}{gate}"] = {"kernel": turned(own)}
    for gate, own in each_gate(summed(cell)).items():
        state[f"h{gate}"]["bias"] = own
    return state


@row("Flax's names")
def _():
    cell = nn.LSTM(N, H)
    state = {f"params.cell.{gate}.{leaf}": own for gate, both in flax_cell(cell).items() for leaf, own in both.items()}
    return Layers(state, {"params.cell": cell}, "converted from Flax")


@row("a file of Flax")
def _():
    cell = nn.LSTM(N, H)

    def packed(value):
        if isinstance(value, dict):
            return {key: packed(each) for key, each in value.items()}
        array = np.ascontiguousarray(value.numpy())
        return msgspec.msgpack.Ext(1, msgspec.msgpack.encode((array.shape, array.dtype.name, array.tobytes())))

    def write(path):
        path.write_bytes(msgspec.msgpack.encode({"params": {"cell": packed(flax_cell(cell))}}))

    return Layers(write, {"params.cell": cell}, "converted from Flax")


@row("MXNet's names")
def _():
    lstm, state = nn.LSTM(N, H, bidirectional=True), {}
    for suffix, letter in (("_l0", "l"), ("_l0_reverse", "r")):
        for side, part in (("ih", "i2h"), ("hh", "h2h")):
            for leaf in ("weight", "bias"):
                state[f"lstm0_{letter}0_{part}_{leaf}"] = getattr(lstm, f"{leaf}_{side}{suffix}").detach()
    return Layers(with_head(state), {"lstm0": lstm}, "converted from MXNet")


@row("an ONNX model")
def _():
    gru = nn.GRU(N, H)

    def write(path):
        helper = pytest.importorskip("onnx.helper")
        from onnx import TensorProto, numpy_helper

        weights = [gates(getattr(gru, f"weight_{side}_l0"), "zrn", "rzn") for side in ("ih", "hh")]
        bias = torch.cat([gates(getattr(gru, f"bias_{side}_l0"), "zrn", "rzn") for side in ("ih", "hh")])
        values = {"W": weights[0], "R": weights[1], "B": bias}
        node = helper.make_node("GRU", ["X", *values], ["Y"], name="encoder", hidden_size=H, linear_before_reset=1)
        inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["T", "B", N])]
        outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)]
        held = [numpy_helper.from_array(each.unsqueeze(0).numpy(), name) for name, each in values.items()]
        graph = helper.make_graph([node], "g", inputs, outputs, held)
        path.write_bytes(helper.make_model(graph).SerializeToString())

    return Layers(write, {"encoder": gru}, "converted from ONNX")


# Files as trainers write them


@row("a checkpoint of a trainer")
def _():
    lstm = nn.LSTM(N, H)
    content = {
        "state_dict": below("model.", with_head(below("rnn.", lstm.state_dict()))),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4 * H, N)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "rng": {"cpu": torch.get_rng_state()},
        "mean": torch.ones(N),
        "hyper_parameters": {"weights": torch.ones(3)},
    }
    return Layers(content, {"model.rnn": lstm}, "optimizer_states")


@row("an optimizer that looks ahead")
def _():
    lstm = nn.LSTM(N, H)
    states = {"fast_state": {0: {"exp_avg": torch.ones(4 * H, N)}}, "slow_state": {0: {"slow": torch.ones(4 * H, N)}}}
    return Layers({"model": lstm.state_dict(), "optimizer": states}, {"": lstm}, "optimizer")


@row("fastai's model and optimizer")
def _():
    lstm = nn.LSTM(N, H)
    state = [{"mom": 0.9, "grad_avg": torch.ones(4 * H, N)}]
    return Layers(
        {"model": below("0.", lstm.state_dict()), "opt": {"state": state, "hypers": [{}]}}, {"0": lstm}, "opt"
    )


@row("an average beside the model")
def _():
    lstm = nn.LSTM(N, H)
    average = {key: tensor / 2 for key, tensor in lstm.state_dict().items()}
    content = {"model_state_dict": lstm.state_dict(), "ema_model_state_dict": average}
    return Layers(content, {"": lstm}, "--container ema_model_state_dict")


@row("wrappers")
def _():
    lstm = nn.LSTM(N, H)
    prefix = "_forward_module.model._orig_mod.module._fsdp_wrapped_module.rnn"
    return Layers(below(f"{prefix}.", lstm.state_dict()), {prefix: lstm})


@row("an LSTM under two names")
def _():
    lstm = nn.LSTM(N, H)
    return Layers(below("a.", lstm.state_dict()) | below("b.", lstm.state_dict()), {"a": lstm, "b": lstm})


@row("a decoder tied to the embedding, which the file holds once")
def _():
    def build():
        model = nn.ModuleDict({"embedding": nn.Embedding(7, H), "rnn": nn.LSTM(H, H), "decoder": nn.Linear(H, 7)})
        model["decoder"].weight = model["embedding"].weight
        return model

    model = build()
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "decoder.weight"}
    return Layers(state, {"rnn": model["rnn"]}, model=build)


@row("a subclass of torch's LSTM")
def _():
    class Named(nn.LSTM):
        def __init__(self, label="a"):
            super().__init__(N, H)
            self.label = label

    model = nn.ModuleDict({"rnn": Named()})
    return Layers(model.state_dict(), {"rnn": model["rnn"]}, model=lambda: nn.ModuleDict({"rnn": Named()}))


@row("counters of a profiler, and weights that do not lie row by row")
def _():
    lstm = nn.LSTM(N, H)
    state = lstm.state_dict() | {"weight_ih_l0": lstm.weight_ih_l0.detach().T.contiguous().T}
    return Layers(below("rnn.", state | {"total_ops": torch.zeros(1)}), {"rnn": lstm})


@row("a quantized model")
def _():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.quantize_per_tensor(torch.ones(4 * H, N), 0.1, 0, torch.qint8)
    return Refused(below("rnn.", nn.LSTM(N, H).state_dict() | {"weight_ih_l0": packed}), "quantized.*float checkpoint")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", ROWS)
def test_what_is_read_of_it(case, tmp_path):
    made, path = ROWS[case](), tmp_path / "model.file"
    made.content(path) if callable(made.content) else torch.save(made.content, path)
    if isinstance(made, Refused):
        with pytest.raises(BTCompressError, match=f"(?s){made.words}"):
            btcompress.factorize(path, **FULL)
        return
    btcompress.save(btcompress.factorize(path, **FULL, **(made.options or {})), tmp_path / "out")
    result = btcompress.load(tmp_path / "out")
    assert any(made.told in notice for notice in ("", *result.notices)), result.notices
    entries = {entry.name: entry for entry in result.recurrent()}
    dense = result.dense_state_dict()
    for name, module in made.modules.items():
        entry = entries[name]
        assert set(entry.matrix_keys) <= result.matrices.keys()
        assert isinstance(module, classes_of(entry.type, entry.is_cell)[0])
        found = read_as(entry, dense, module)
        size = entry.input_size
        x = torch.randn(4, size) if entry.is_cell else torch.randn(4, 2, size)
        torch.testing.assert_close(hidden(found, x), hidden(module, x), rtol=1e-5, atol=1e-5)
    for name, module in (made.applied or made.modules).items() if made.model else ():
        applied = btcompress.apply(made.model(), result).get_submodule(name)
        assert isinstance(applied, BTLSTM | BTLSTMCell)
        x = torch.randn(4, *((2,) if isinstance(module, nn.LSTM) else ()), module.input_size)
        torch.testing.assert_close(hidden(applied, x), hidden(module, x), rtol=1e-5, atol=1e-5)


def read_as(entry, dense, module):
    """A new module of torch's, made by what the result says alone."""
    kind = classes_of(entry.type, entry.is_cell)[0]
    sizes = (entry.input_size, entry.hidden_size)
    more = {} if entry.is_cell else {"num_layers": entry.num_layers, "bidirectional": entry.bidirectional}
    more |= {"proj_size": entry.proj_size} if entry.proj_size else {}
    more |= {"nonlinearity": entry.nonlinearity} if entry.type == "rnn" else {}
    found = kind(*sizes, bias=entry.bias, **more)
    found.load_state_dict({key.removeprefix(entry.prefix): dense[key] for key in entry.keys})
    return found


@torch.no_grad()
def hidden(module, x):
    outputs = module(x)
    return outputs[0] if isinstance(outputs, tuple) else outputs
