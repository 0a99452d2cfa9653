"""GRUs and plain RNNs on their ways out: exports, networks, benches and folders."""

import json
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import btcompress
from btcompress import hub
from btcompress.benching.ways import dense_layers
from btcompress.checkpoint import CompressedCheckpoint
from btcompress.errors import CheckpointError
from btcompress.export import GraphRequest
from btcompress.export.modules import LayerOfOneState, LayerOfTwoStates, layer_module
from btcompress.export.record import RECORD
from btcompress.export.targets import chosen_lstms
from btcompress.hub import HubMixin
from btcompress.nn import BTGRU, BTRNN, BTGRUCell, BTRNNCell
from btcompress.reporting import report
from btcompress.reporting.expected import expected_speed
from btcompress.reporting.speed import expectation, speed_advice
from btcompress.results import ExpectedCase
from btcompress.timings import BenchCase, WayTiming
from test_export_cells import INPUTS, H, result_of

BOTH = ("input", "recurrent")

LAYERS = {
    "gru": nn.GRU(INPUTS, H, 2, bidirectional=True),
    "one layer": nn.GRU(INPUTS, H),
    "rnn": nn.RNN(INPUTS, H, nonlinearity="relu"),
    "gru cell": nn.GRUCell(INPUTS, H),
    "rnn cell": nn.RNNCell(INPUTS, H, bias=False),
}


def run(path, feed):
    runner = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return runner.run(None, {name: value.numpy() for name, value in feed.items()})


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "one layer"])
def test_a_layer_has_one_state_in_and_out(name):
    module = LAYERS[name]
    compressed = result_of(module, "low rank")
    (entry,) = chosen_lstms(compressed, None)
    layer, n_states = layer_module(compressed, entry), 4 if name == "gru" else 1
    x, h0 = torch.randn(5, 3, INPUTS), torch.randn(n_states, 3, H)
    dense = type(module)(INPUTS, H, *(() if "cell" in name else (module.num_layers,)), **arguments_of(module))
    dense.load_state_dict({key.removeprefix("net."): each for key, each in compressed.dense_state_dict().items()})
    if "cell" in name:
        h, outputs = h0[0], []
        for step in x:
            h = dense(step, h)
            outputs.append(h)
        expected = torch.stack(outputs), h[None]
    else:
        expected = dense(x, h0)
    assert isinstance(layer, LayerOfOneState)
    assert not isinstance(layer, LayerOfTwoStates)
    torch.testing.assert_close(layer(x, h0), expected, rtol=0, atol=1e-5)


def arguments_of(module):
    names = ("bias", "bidirectional", "nonlinearity")
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


@pytest.mark.parametrize(("name", "class_name"), [("gru", "GRU"), ("rnn", "RNN"), ("rnn cell", "RNNCell")])
def test_files_are_compared_with_the_modules(name, class_name, tmp_path):
    compressed = result_of(LAYERS[name], "low rank")
    request = GraphRequest(lengths=True, batch_first=True)
    (written,) = btcompress.export_graphs(compressed, tmp_path / "out.onnx", request)
    assert written.error < 1e-5
    assert set(written.forms.values()) <= {class_name.removesuffix("Cell").lower(), "scan"}
    properties = {each.key: each.value for each in onnx.load(written.path).metadata_props}
    assert json.loads(properties[RECORD])["class"] == class_name
    torch.save(compressed.dense_state_dict(), tmp_path / "plain.pt")
    dense = btcompress.export_dense(compressed, tmp_path / "dense.pt")
    found = torch.load(dense.path, weights_only=True)
    assert found.keys() == {f"net.{key}" for key in LAYERS[name].state_dict()}
    assert all(torch.equal(found[key], value) for key, value in compressed.dense_state_dict().items())


@pytest.mark.parametrize(("name", "one_step"), [("one layer", True), ("rnn", False)])
def test_programs_take_and_give_one_state(name, one_step, tmp_path):
    module = LAYERS[name]
    compressed = result_of(module, "low rank")
    (written,) = btcompress.export_program(compressed, tmp_path / "out.pt2", one_step=one_step)
    assert written.error < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(written.path).module()
    (entry,) = chosen_lstms(compressed, None)
    x, h0 = torch.randn(1 if one_step else 4, 2, INPUTS), torch.randn(1, 2, H)
    torch.testing.assert_close(tuple(program(x, h0)), layer_module(compressed, entry)(x, h0), rtol=0, atol=1e-5)
    values = [node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    sizes = [value.shape for value in values]
    assert (module.weight_hh_l0.shape not in sizes and module.weight_hh_l0.shape[::-1] not in sizes) == one_step


class Network(nn.Module):
    """A GRU, a plain RNN that stays dense, and a cell."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(INPUTS, H, bidirectional=True, batch_first=True)
        self.rnn = nn.RNN(2 * H, 9, nonlinearity="relu")
        self.cell = nn.GRUCell(9, 8)

    def forward(self, x, h):
        y, last = self.gru(x)
        _, final = self.rnn(y.transpose(0, 1), h)
        # Without a batch, and without states.
        alone, _ = self.rnn(y[0])
        return self.cell(final[0]), last, alone


def test_networks_are_exported_with_layers_of_their_own(tmp_path):
    torch.manual_seed(0)
    network = Network()
    options = {"tucker_rank": 2, "allow_growth": True, "matrices": BOTH}
    compressed = btcompress.factorize(network, layers=("gru*", "cell*"), **options)
    network = btcompress.apply(network, compressed)
    assert [type(each) for each in network.children()] == [BTGRU, nn.RNN, BTGRUCell]
    example = (torch.randn(2, 5, INPUTS), torch.randn(1, 2, 9))
    dynamic = {"x": {0: "batch", 1: "time"}, "h": {1: "batch"}}
    exported = btcompress.export_onnx(network, example, tmp_path / "net.onnx", dynamic=dynamic)
    assert exported.error < 1e-5
    assert exported.forms.keys() == {"gru.l0", "gru.l0_reverse", "rnn.l0", "cell.l0"}


WAYS = ("dense_onednn", "dense_native", "int8", "block_terms")
GRAPHS = ("onnx_dense", "onnx_dense_int8", "onnx_block_terms", "onnx_block_terms_int8", "onnx_block_terms_int8_lstm")


@pytest.mark.parametrize(
    ("name", "kind", "torch_left"),
    # Torch has no cell without biases in integers.
    [("one layer", "GRU", {"dense_onednn"}), ("rnn cell", "RNN", {"dense_onednn", "int8"})],
)
def test_benches_run_every_way_there_is(name, kind, torch_left):
    compressed = result_of(LAYERS[name], "low rank")
    options = {"batch": (2,), "steps": (3,), "seconds": 0.01, "runtime": ("torch", "onnx")}
    found = btcompress.bench(compressed, **options)
    (case,) = found.cases
    left = {each.way: each.reason for each in case.left_out}
    assert left.keys() == torch_left | {"onnx_block_terms_int8_lstm"}
    assert [way.way for way in case.ways] == [way for way in (*WAYS, *GRAPHS) if way not in left]
    assert "LSTMs alone" in left["dense_onednn"]
    assert f"no {kind} in integers" in left["onnx_block_terms_int8_lstm"]
    assert case.kind == case.to_dict()["kind"] == kind
    assert case.ratio > 0
    assert any(f"the dense {kind}" in line for line in found.advice)


def test_torch_has_no_plain_rnn_in_integers():
    (entry,) = chosen_lstms(result_of(LAYERS["rnn"], "low rank"), None)
    layers, left = dense_layers(LAYERS["rnn"], entry, "cpu", "prediction")
    assert [layer.way for layer in layers] == ["dense_native"]
    assert {each.way: each.reason for each in left}["int8"] == "torch has no RNN of it"


def test_words_name_what_is_measured():
    def case(name, kind):
        ways = [
            WayTiming(way, seconds, (seconds, seconds), 0.0, 8, 1, 9)
            for way, seconds in (("dense_native", 2e-3), ("block_terms", 1e-3))
        ]
        return BenchCase(name, "prediction", 1, 1, tuple(ways), (), kind)

    assert list(speed_advice([case("", "GRU")])) == ["At batch 1 this file runs 2.0 times as fast as the dense GRU."]
    assert list(speed_advice([case("", "RNN"), case("a", "LSTM")])) == [
        "At batch 1 the RNN at the top runs 2.0 times as fast as the dense RNN.",
        "At batch 1 a runs 2.0 times as fast as the dense LSTM.",
    ]
    cases = [ExpectedCase(name, 1, 1, 2.0, kind) for name, kind in (("a", "GRU"), ("b", "GRU"), ("c", "LSTM"))]
    first, second, *_ = expectation(cases, alone=False)
    assert first.endswith("a, b are expected to run 2.0 times as fast as the dense GRUs.")
    assert second.endswith("c is expected to run 2.0 times as fast as the dense LSTM.")


def test_reports_expect_speeds_of_every_kind_and_repeat_benches():
    compressed = result_of(LAYERS["gru"], "low rank")
    expected = expected_speed(compressed)
    assert {case.kind for case in expected.cases} == {"GRU"}
    assert report(compressed).expected_speed == expected


def drawn(build, **arguments):
    torch.manual_seed(0)
    return build(INPUTS, H, matrices=BOTH, **arguments)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (BTGRU, {"num_layers": 2, "bidirectional": True, "batch_first": True, "gates": "separate"}),
        (BTRNN, {"nonlinearity": "relu", "bias": False}),
        (BTRNN, {}),
        (BTGRUCell, {"bias": False}),
        (BTRNNCell, {"nonlinearity": "relu"}),
    ],
)
def test_layers_are_saved_and_loaded_with_their_arguments(build, arguments, tmp_path):
    module = drawn(build, **arguments).eval()
    module.save_pretrained(tmp_path / "layer")
    loaded = build.from_pretrained(tmp_path / "layer")
    assert type(loaded) is build
    assert loaded.extra_repr() == module.extra_repr()
    x = torch.randn(3, 2, INPUTS) if "Cell" not in build.__name__ else torch.randn(2, INPUTS)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    others = {BTGRU: BTRNN, BTRNN: BTGRU, BTGRUCell: BTGRU, BTRNNCell: BTGRUCell}
    with pytest.raises(CheckpointError, match=f"do not hold a {others[build].__name__} and nothing else"):
        others[build].from_pretrained(tmp_path / "layer")


class Tagger(nn.Module, HubMixin):
    """A plain RNN whose nonlinearity its class knows."""

    def __init__(self, hidden: int = 8):
        super().__init__()
        self.rnn = nn.RNN(INPUTS, hidden, nonlinearity="relu")

    def forward(self, x):
        return self.rnn(x)[0]


def test_a_nonlinearity_survives_in_networks_and_results(tmp_path):
    torch.manual_seed(0)
    dense = Tagger(9)
    # The module says what its tensors do not.
    compressed = btcompress.factorize(dense, tucker_rank=2, matrices=BOTH, allow_growth=True)
    assert not any("tanh" in notice for notice in compressed.notices)
    model = btcompress.apply(dense, compressed).eval()
    model.save_pretrained(tmp_path / "tagger")
    loaded, x = Tagger.from_pretrained(tmp_path / "tagger"), torch.randn(4, 2, INPUTS)
    assert loaded.rnn.nonlinearity == "relu"
    assert torch.equal(loaded(x), model(x))
    result = btcompress.load(tmp_path / "tagger" / "model.safetensors")
    assert isinstance(result, CompressedCheckpoint)
    assert [entry.nonlinearity for entry in result.recurrent()] == ["relu"]
    assert "RNN" in (tmp_path / "tagger" / "README.md").read_text()


def test_arguments_that_are_not_those_of_the_result_are_refused(tmp_path):
    plain = nn.RNN(INPUTS, H, nonlinearity="relu")
    compressed = btcompress.factorize(
        plain.state_dict(), tucker_rank=2, matrices=BOTH, allow_growth=True, nonlinearity="relu"
    )
    module = btcompress.apply(plain, compressed)
    hub.save_pretrained(module, tmp_path / "layer")
    assert BTRNN.from_pretrained(tmp_path / "layer").nonlinearity == "relu"
    config = json.loads((tmp_path / "layer" / "config.json").read_text())
    (tmp_path / "layer" / "config.json").write_text(json.dumps({**config, "nonlinearity": "tanh"}))
    with pytest.raises(CheckpointError, match=r"arguments say nonlinearity tanh.*with relu"):
        BTRNN.from_pretrained(tmp_path / "layer")
