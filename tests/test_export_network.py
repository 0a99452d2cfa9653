"""Whole networks as ONNX graphs; needs onnx, onnxruntime and onnxscript."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from btcompress import BTLSTM, BTCompressError, BTLinear, BTLSTMCell, export_onnx
from btcompress.export import cells
from btcompress.export import network as room
from btcompress.export.checking import relative_error
from btcompress.export.comparing import check_network, outputs_of
from btcompress.export.examples import Example
from btcompress.modes import ShapeRequest
from btcompress.shapes import BlockTermShape, MatrixShape

# Torch says so where both of its CPU kernels could be meant.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

BOTH = ("input", "recurrent")


def low_rank(inputs, hidden, layers=1, *args, rank=2):
    """An LSTM whose matrices are all of low rank."""
    sizes = {name: value.shape for name, value in nn.LSTM(inputs, hidden, layers, *args).named_parameters()}
    shapes = {
        name: MatrixShape(BlockTermShape.low_rank(*size, rank, 4)) for name, size in sizes.items() if "weight" in name
    }
    return BTLSTM(inputs, hidden, layers, *args, shapes=shapes)


def run(path, *tensors):
    """A graph's outputs for inputs in its order."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in tensors), strict=True)))
    return [torch.from_numpy(np.array(each)) for each in found]


def operators(graph):
    """How often each operator is there, outside of subgraphs."""
    return Counter(node.op_type for node in graph.node)


def within(graph, kind):
    """Operators in the bodies of all nodes of a kind."""
    return sum((operators(node.attribute[0].g) for node in graph.node if node.op_type == kind), Counter())


def initializer_bytes(graph):
    return sum(onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer)


class Everything(nn.Module):
    """Every kind of block-term layer, one of them under two names, and one of whose parameters is read elsewhere."""

    def __init__(self):
        super().__init__()
        self.first = BTLinear(5, 12, shape=ShapeRequest(cp_rank=2, tucker_rank=2))
        self.encoder = BTLSTM(12, 8, 2, True, True, 0.5, True, matrices=BOTH, cp_rank=2, tucker_rank=(2, 1))
        self.decoder = BTLSTM(16, 8, proj_size=6, matrices=BOTH, cp_rank=1, tucker_rank=2)
        self.cell = BTLSTMCell(6, 7, matrices=BOTH, shape=ShapeRequest(cp_rank=2, tucker_rank=2))
        self.dense = nn.LSTM(16, 3, 2, batch_first=True)
        self.head = nn.Linear(7, 4)
        self.again = self.first

    def forward(self, x, state):
        encoded, _ = self.encoder(torch.relu(self.first(x)))
        decoded, state = self.decoder(encoded.transpose(0, 1), state)
        step = self.cell(decoded[-1])
        h, _ = self.cell(decoded[0], step)
        # One sequence without a batch.
        head = self.head(h) + self.encoder.bias_ih_l0[:4]
        return self.again(x), state, head, self.decoder(encoded[0])[0], *self.dense(encoded)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    torch.manual_seed(0)
    net = Everything()
    net.head.eval()
    handle = net.encoder.register_forward_hook(lambda _, __, output: (2 * output[0], output[1]))
    path = tmp_path_factory.mktemp("network") / "net.onnx"
    before = {name: (tensor, tensor.clone()) for name, tensor in net.state_dict(keep_vars=True).items()}
    states = torch.zeros(1, 3, 6), torch.zeros(1, 3, 8)
    dynamic = {"x": {0: "batch", 1: "time"}, "state": {1: "batch"}}
    exported = export_onnx(net, (torch.randn(3, 9, 5), states), path, dynamic=dynamic)
    return net, handle, before, exported


def test_a_network_is_as_it_was_after_its_export(everything):
    net, handle, before, _ = everything
    now = net.state_dict(keep_vars=True)
    assert all(now[name] is tensor and torch.equal(tensor, copy) for name, (tensor, copy) in before.items())
    assert list(now) == list(before)
    assert [net.training, net.decoder.training, net.head.training] == [True, True, False]
    assert net.again is net.first
    assert list(net.encoder._forward_hooks) == [handle.id]
    assert not any({"run", "forward"} & set(vars(module)) for module in net.modules())


@pytest.mark.parametrize(("batch", "steps"), [(3, 9), (1, 1), (2, 1), (1, 30)])
def test_a_graph_computes_what_the_network_does_at_all_sizes(everything, batch, steps):
    net, _, _, exported = everything
    x, h, c = torch.randn(batch, steps, 5), torch.randn(1, batch, 6), torch.randn(1, batch, 8)
    training = [module.training for module in net.modules()]
    with torch.no_grad():
        expected = pytree.tree_leaves(net.eval()(x, (h, c)))
    for module, flag in zip(net.modules(), training, strict=True):
        module.training = flag
    found = run(exported.path, x, h, c)
    assert relative_error(found, expected) < 1e-5
    assert 0 < exported.error < 1e-5


def test_a_graph_is_neither_unrolled_nor_densified(everything):
    net, _, _, exported = everything
    model = onnx.load(exported.path)
    found = operators(model.graph)
    # Four of the encoder, the decoder twice and two of the dense one; each of the cell's two steps is one or none.
    assert found["LSTM"] + found["Scan"] == (10 if exported.forms["cell.l0"] == "lstm" else 8)
    assert {each.domain for each in model.opset_import} == {""}
    assert {each.domain for each in model.graph.node} == {""}
    assert initializer_bytes(model.graph) < 4 * sum(each.numel() for each in net.parameters()) + 1500
    assert set(exported.forms) == {"encoder.l0", "encoder.l0_reverse", "encoder.l1", "encoder.l1_reverse"} | {
        "decoder.l0",
        "cell.l0",
        "dense.l0",
        "dense.l1",
    }
    # Torch's exporter notes from which lines of whose files each node comes.
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"test_export_network" not in exported.path.read_bytes()


class BeatNet(nn.Module):
    """The network of BeatNet (Heydari, Cwitkowitz and Duan, ISMIR 2021), smaller, with its states in and out."""

    def __init__(self, features=60, hidden=48):
        super().__init__()
        self.conv1 = nn.Conv1d(1, 2, 10)
        self.linear0 = nn.Linear(2 * ((features - 9) // 2), 30)
        self.lstm = nn.LSTM(30, hidden, 2, batch_first=True)
        self.linear = nn.Linear(hidden, 3)

    def forward(self, x, hidden, cell):
        frames = x.reshape(-1, 1, x.shape[-1])  # (B T, 1, F)
        pooled = functional.max_pool1d(functional.relu(self.conv1(frames)), 2).flatten(1)
        y, (hidden, cell) = self.lstm(self.linear0(pooled).reshape(*x.shape[:2], -1), (hidden, cell))
        return self.linear(y).transpose(1, 2), hidden, cell


@pytest.fixture(scope="module")
def beatnet(tmp_path_factory):
    torch.manual_seed(0)
    net = BeatNet()
    net.lstm = low_rank(30, 48, 2, True, True, rank=5)
    net.eval()
    path, states = tmp_path_factory.mktemp("beatnet") / "beatnet.onnx", torch.zeros(2, 1, 48)
    # One tensor for both states must not become one input.
    example = (torch.randn(1, 8, 60), states, states)
    names = {"input_names": ["x", "h0", "c0"], "output_names": ["y", "hn", "cn"]}
    return net, example, export_onnx(net, example, path, dynamic={"x": {1: "time"}}, **names)


def test_a_stream_in_pieces_is_the_whole(beatnet):
    net, (_, states, _), exported = beatnet
    x = torch.randn(1, 40, 60)
    with torch.no_grad():
        expected = net(x, states, states)
    h, c, outputs = states, states, []
    for piece in x.split([1, 1, 1, 7, 1, 20, 9], dim=1):
        y, h, c = run(exported.path, piece, h, c)
        outputs.append(y)
    assert relative_error([torch.cat(outputs, 2), h, c], expected) < 1e-5
    assert relative_error(run(exported.path, x, states, states), expected) < 1e-5


def test_a_file_is_about_as_large_as_the_factors(beatnet):
    net, _, exported = beatnet
    graph = onnx.load(exported.path).graph
    assert [each.name for each in (*graph.input, *graph.output)] == ["x", "h0", "c0", "y", "hn", "cn"]
    own = 4 * sum(each.numel() for each in net.parameters())
    dense = 4 * sum(each.numel() for each in BeatNet().parameters())
    assert own < exported.n_bytes == exported.path.stat().st_size < own + 10_000 < dense
    assert initializer_bytes(graph) < own + 300


def test_layers_of_other_dtypes_keep_their_inputs_and_outputs(tmp_path):
    torch.manual_seed(0)
    net = nn.ModuleList([low_rank(6, 8).half(), low_rank(6, 8).double()])
    net.forward = lambda x, y, states: (net[0](x)[0], net[1](y, states)[0])
    states = torch.randn(1, 3, 8).double(), torch.randn(1, 3, 8).double()
    inputs = torch.randn(4, 3, 6).half(), torch.randn(4, 3, 6).double(), states
    # Nothing is said of the states, which are several tensors.
    dynamic = {"x": {0: "time"}, "y": {0: "time"}}
    exported = export_onnx(net, inputs, tmp_path / "net.onnx", dynamic=dynamic)
    longer = torch.randn(12, 3, 6).half(), torch.randn(12, 3, 6).double()
    found = run(exported.path, *longer, *states)
    expected = [each.detach() for each in net(*longer, states)]
    assert [each.dtype for each in found] == [torch.float16, torch.float64]
    assert relative_error(found[:1], expected[:1]) < 1e-2
    assert relative_error(found[1:], expected[1:]) < 1e-5


def test_a_single_step_needs_no_operator_of_several(tmp_path):
    torch.manual_seed(0)
    net = low_rank(6, 8, 2, True, False, 0.0, True)
    x, states = torch.randn(1, 3, 6), (torch.randn(4, 3, 8), torch.randn(4, 3, 8))
    first = export_onnx(net, (x, states), tmp_path / "step.onnx", form="scan")
    graph = onnx.load(first.path).graph
    assert not {"Scan", "LSTM", "Loop"} & set(operators(graph))
    y, (hn, cn) = net(x, states)
    assert relative_error(run(first.path, x, *states), [y.detach(), hn.detach(), cn.detach()]) < 1e-5
    # The same network gives the same bytes.
    second = export_onnx(net, {"input": x, "hx": states}, tmp_path / "again.onnx", dynamic={}, form="scan")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_integers_are_for_block_term_layers_alone(tmp_path):
    torch.manual_seed(0)
    lstm, head = low_rank(16, 32, rank=4), nn.Linear(32, 8)
    net = nn.ModuleList([lstm, head])
    net.forward = lambda x: head(lstm(x)[0])
    exported = export_onnx(net, torch.randn(6, 2, 16), tmp_path / "net.onnx", int8=True)
    graph = onnx.load(exported.path).graph
    integers = {"MatMulInteger", "DynamicQuantizeMatMul"}
    assert integers & set(operators(graph))
    assert integers & set(within(graph, "Scan"))
    assert operators(graph)["MatMul"] + operators(graph)["Gemm"] == 1
    assert 1e-6 < exported.int8_error < 0.2
    assert not exported.notices


class Called(nn.Module):
    """An LSTM that is called in a way of one's own."""

    def __init__(self, call):
        super().__init__()
        self.lstm = low_rank(6, 8)
        self.states = torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)
        self.register_buffer("h", torch.zeros(1, 3, 8))
        self.c = torch.zeros(1, 3, 8)
        self.call = call

    def forward(self, x):
        return self.call(self, x)


def with_states_kept(net, x):
    y, (h, net.c) = net.lstm(x, (net.h, net.c))
    net.h.copy_(h)
    return y


def packed(net, x):
    return pad_packed_sequence(net.lstm(pack_padded_sequence(x, torch.tensor([4, 3, 1])))[0])[0]


@pytest.mark.parametrize(
    ("call", "inputs", "dynamic", "told"),
    [
        (packed, torch.ones(4, 3, 6), None, "lstm gets packed sequences"),
        (with_states_kept, torch.ones(4, 3, 6), None, "keeps states from one call"),
        (lambda net, x: net.lstm(x)[0] + torch.rand(8), torch.ones(4, 3, 6), None, "draws random numbers"),
        (lambda net, x: net.lstm(x)[0] if x.sum() > 0 else x, torch.ones(4, 3, 6), None, "exporter cannot write"),
        (None, torch.ones(1, 3, 6), {"x": {0: "time"}}, "axis 0 of x is to be dynamic, but is 1"),
        (None, torch.ones(4, 3, 6), {"y": {0: "time"}}, "dynamic names y, but the example's arguments are x"),
        (None, torch.ones(4, 3, 6), {"x": {3: "time"}}, "dynamic names axis 3 of x"),
        (None, torch.ones(4, 3, 6), ({}, {}), "dynamic says of 2 arguments"),
        (None, (1, 2), None, "cannot be called with these example inputs"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_left_as_it_was(tmp_path, capfd, call, inputs, dynamic, told):
    net = Called(call)
    h, c = net.h, net.c
    with pytest.raises(BTCompressError, match=told):
        export_onnx(net, inputs, tmp_path / "net.onnx", dynamic=dynamic)
    assert not any(tmp_path.iterdir())
    assert [net.training, net.lstm.training, "run" in vars(net.lstm)] == [True, True, False]
    assert [net.h is h, net.c is c] == [True, True]
    assert not torch.cat([h, c]).any()
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_computes_something_else_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(cells._CELLS, "lstm", replace(cells.cell_of("lstm"), gates=(0, 1, 2, 3)))
    net = low_rank(6, 8)
    with pytest.raises(BTCompressError, match="off by"):
        export_onnx(net, torch.randn(4, 3, 6), tmp_path / "net.onnx", form="lstm")
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(room, "has_runtime", lambda: False)
    exported = export_onnx(net, torch.randn(4, 3, 6), tmp_path / "net.onnx", form="lstm")
    assert exported.error is None
    assert "was not compared" in exported.notices[0]


def test_small_sigmoids_are_as_exact_as_onnx_runtime_has_them(tmp_path):
    class Rarely(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.bias = bias

        def forward(self, x):
            return (x + self.bias).sigmoid()

    x = torch.linspace(-1, 1, 99)
    exported = export_onnx(Rarely(-9), x, tmp_path / "net.onnx")
    assert exported.error > 1e-5  # more than rounding, beside the largest output
    example = Example.of(Rarely(-9), x, None)
    for bias, fits in ((-9, True), (-9.01, False)):
        other = Rarely(bias)
        with nullcontext() if fits else pytest.raises(BTCompressError, match="off by"):
            check_network(exported.path, other, example, outputs_of(other, example))


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    net, x = BTLinear(6, 8, shape=ShapeRequest(tucker_rank=2)), torch.ones(6)
    with pytest.raises(BTCompressError, match="but a function was given"):
        export_onnx(run, x, tmp_path / "net.onnx")
    with pytest.raises(BTCompressError, match="products of block-term layers, but the network has none"):
        export_onnx(nn.Linear(6, 8), x, tmp_path / "net.onnx", int8=True)
    monkeypatch.setattr(room, "is_supported", lambda: False)
    with pytest.raises(BTCompressError, match="or later, but"):
        export_onnx(net, x, tmp_path / "net.onnx")
    monkeypatch.setattr("btcompress.export.graphs.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(BTCompressError, match="needs onnxscript, which is not installed"):
        export_onnx(net, x, tmp_path / "net.onnx")


def test_integers_in_the_operator_of_layers_within_a_network(tmp_path):
    network = BTLSTM(12, 16, cp_rank=2, tucker_rank=2)
    exported = export_onnx(network, torch.randn(5, 3, 12), tmp_path / "net.onnx", form="lstm", int8=True)
    found = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert found.count("DynamicQuantizeLSTM") == 1
    assert found.count("LSTM") == 0
    assert 0 < exported.int8_error < 0.1
