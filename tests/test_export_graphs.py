"""LSTMs as ONNX graphs: every form of every kind computes what the module does."""

import itertools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.backend.test.case.node.lstm import LSTMHelper
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import btcompress
from btcompress import BTLSTM, BTLSTMCell
from btcompress.errors import BTCompressError
from btcompress.export import costs, layers
from btcompress.export.forms import Form, possible_forms
from btcompress.export.graphfiles import graph_of
from btcompress.export.request import GraphRequest
from btcompress.export.weights import Weights
from btcompress.modes import ShapeRequest
from btcompress.nn.options import recurrent_shapes
from btcompress.shapes import BlockTermShape, MatrixShape

#: Torch's gates i, f, g, o are these of ONNX's i, o, f, c.
TO_TORCH = (0, 2, 3, 1)


def session_of(proto):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def operators(graph):
    """How often each operator stands in a graph, and in those within it."""
    found = Counter()
    for node in graph.node:
        found[node.op_type] += 1
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += operators(attribute.g)
    return found


def graph_in(module, form=None, request=GraphRequest(), monkeypatch=None):
    if form is not None:
        monkeypatch.setattr(layers, "choose_form", lambda *_: form)
    proto, _, _ = graph_of(Weights.of_module("", module), request)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def low_rank(rows, columns, rank, *, gates=4, orders=False):
    return MatrixShape(BlockTermShape.low_rank(rows, columns, rank, gates))


def module_of(kind, *, layers=1, bidirectional=False, proj_size=0, inputs=10, hidden=12, bias=True):
    """An LSTM with random weights of a kind: all sizes differ."""
    torch.manual_seed(0)
    plain = nn.LSTM(inputs, hidden, layers, bias, bidirectional=bidirectional, proj_size=proj_size, device="meta")
    sizes = {name: parameter.shape for name, parameter in plain.named_parameters()}
    both = ("input", "recurrent")
    if kind == "dense":
        return nn.LSTM(inputs, hidden, layers, bias, bidirectional=bidirectional, proj_size=proj_size)
    if kind == "low rank":
        shapes = {
            name: low_rank(*size, 3, gates=1 if "hr" in name else 4) for name, size in sizes.items() if len(size) == 2
        }
    elif kind == "low rank input":
        shapes = {name: low_rank(*size, 3) for name, size in sizes.items() if "weight_ih" in name}
    elif kind == "Kronecker":
        part = BlockTermShape((2, 5), (8, 6), (3, 3), 1, inputs, 4 * hidden, 4, core="identity")
        shapes = {"weight_ih_l0": MatrixShape(part)}
    else:
        requests = {
            "block terms": ShapeRequest(cp_rank=2, tucker_rank=(2, 3), order=2),
            "order 3": ShapeRequest(cp_rank=3, tucker_rank=2, order=3),
            "one block": ShapeRequest(cp_rank=1, tucker_rank=2, order=3),
            "separate": ShapeRequest(cp_rank=2, tucker_rank=2, order=2, gates="separate"),
        }
        shapes = recurrent_shapes(sizes, None, requests[kind], both, 4)
    return BTLSTM(inputs, hidden, layers, bias, False, 0.0, bidirectional, proj_size, shapes=shapes)


def expected_of(module, x, h, c, lengths=None):
    module = module.double()
    x, h, c = (each.double() for each in (x, h, c))
    with torch.no_grad():
        if lengths is None:
            y, (hn, cn) = module(x, (h, c))
        else:
            packed, (hn, cn) = module(pack_padded_sequence(x, lengths, enforce_sorted=False), (h, c))
            y, _ = pad_packed_sequence(packed, total_length=len(x))
    module.float()
    return [each.numpy() for each in (y, hn, cn)]


def inputs_of(module, steps=5, batch=3, seed=1):
    torch.manual_seed(seed)
    weights = Weights.of_module("", module)
    n_states = len(weights.layers) * weights.n_directions
    return (
        torch.randn(steps, batch, weights.input_size),
        torch.randn(n_states, batch, weights.output_size),
        torch.randn(n_states, batch, weights.hidden_size),
    )


def assert_same(proto, module, lengths=None, atol=1e-6):
    x, h, c = inputs_of(module)
    expected = expected_of(module, x, h, c, lengths)
    feed = {"x": x.numpy(), "h0": h.numpy(), "c0": c.numpy()}
    if lengths is not None:
        feed["lengths"] = lengths.numpy()
    for found, right in zip(session_of(proto).run(None, feed), expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right, rtol=0, atol=atol)


KINDS = ["dense", "low rank", "low rank input", "Kronecker", "block terms", "order 3", "one block", "separate"]
ALL = GraphRequest(steps=7, batch=2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_computes_what_the_module_does(kind, monkeypatch):
    module = module_of(kind)
    forms = list(possible_forms(Weights.of_module("", module).layers[0][0], ALL))
    assert {form.steps for form in forms} == {"lstm", "scan"}
    for form in forms:
        proto = graph_in(module, form, monkeypatch=monkeypatch)
        found = operators(proto.graph)
        assert (found["LSTM"], found["Scan"]) == ((1, 0) if form.steps == "lstm" else (0, 1))
        assert_same(proto, module)


@pytest.mark.parametrize("steps", ["lstm", "scan"])
@pytest.mark.parametrize("kind", ["low rank", "order 3"])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_layers_directions_and_lengths(steps, kind, with_lengths):
    module = module_of(kind, layers=2, bidirectional=True)
    proto = graph_in(module, request=GraphRequest(form=steps, lengths=with_lengths))
    assert_same(proto, module, torch.tensor([3, 5, 1]) if with_lengths else None)


@pytest.mark.parametrize("kind", ["dense", "low rank", "order 3"])
def test_projections_are_written_as_scans(kind):
    module = module_of(kind, layers=2, bidirectional=True, proj_size=5)
    proto = graph_in(module, request=GraphRequest(lengths=True))
    assert operators(proto.graph)["Scan"] == 4
    assert_same(proto, module, torch.tensor([2, 5, 4]))
    with pytest.raises(BTCompressError, match="no projections"):
        graph_in(module, request=GraphRequest(form="lstm"))


@pytest.mark.parametrize("steps", ["lstm", "scan"])
def test_without_biases(steps):
    module = module_of("low rank", bias=False)
    assert_same(graph_in(module, request=GraphRequest(form=steps)), module)


def test_batch_first_turns_inputs_and_outputs_alone():
    module = module_of("low rank", layers=2)
    x, h, c = inputs_of(module)
    y, hn, cn = expected_of(module, x, h, c)
    feed = {"x": x.transpose(0, 1).numpy(), "h0": h.numpy(), "c0": c.numpy()}
    found = session_of(graph_in(module, request=GraphRequest(batch_first=True))).run(None, feed)
    for own, right in zip(found, (y.swapaxes(0, 1), hn, cn), strict=True):
        np.testing.assert_allclose(own, right, atol=1e-6)


@pytest.mark.parametrize("steps", ["lstm", "scan"])
def test_padding_orders_and_columns_of_their_own(steps):
    """A matrix whose modes are larger than it is, and whose rows and columns stand in orders of their own."""
    part = BlockTermShape((3, 4), (16, 4), (2, 3), 2, 11, 52, 4, row_order=True, column_order=True)
    own = BlockTermShape.low_rank(52, 13, 4, 4).ordered({"row_order": None, "column_order": None})
    module = BTLSTM(11, 13, shapes={"weight_ih_l0": MatrixShape(part), "weight_hh_l0": MatrixShape(own)})
    torch.manual_seed(3)
    for weight, (rows, columns) in ((module.weight_ih_l0, (13, 11)), (module.weight_hh_l0, (13, 13))):
        weight.row_order.copy_(torch.randperm(rows))
        weight.column_order.copy_(torch.randperm(columns))
    for form in possible_forms(Weights.of_module("", module).layers[0][0], GraphRequest(form=steps)):
        with pytest.MonkeyPatch.context() as patch:
            assert_same(graph_in(module, form, monkeypatch=patch), module)


def test_a_cell_is_a_layer_of_any_number_of_steps():
    torch.manual_seed(0)
    cell = BTLSTMCell(10, 12, shapes={"weight_ih": low_rank(48, 10, 3), "weight_hh": low_rank(48, 12, 3)})
    x, h, c = torch.randn(4, 3, 10), torch.randn(3, 12), torch.randn(3, 12)
    feed = {"x": x.numpy(), "h0": h[None].numpy(), "c0": c[None].numpy()}
    y, hn, cn = session_of(graph_in(cell)).run(None, feed)
    outputs = []
    with torch.no_grad():
        for step in x:
            h, c = cell(step, (h, c))
            outputs.append(h)
    np.testing.assert_allclose(y, torch.stack(outputs), atol=1e-6)
    np.testing.assert_allclose(hn[0], h, atol=1e-6)
    np.testing.assert_allclose(cn[0], c, atol=1e-6)


@pytest.mark.parametrize("steps", ["lstm", "scan"])
def test_a_sequence_in_pieces_gives_what_the_whole_gives(steps):
    module = module_of("low rank", layers=2)
    runner = session_of(graph_in(module, request=GraphRequest(form=steps)))
    x, h, c = (each.numpy() for each in inputs_of(module, steps=9))
    whole, *final = runner.run(None, {"x": x, "h0": h, "c0": c})
    pieces = []
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 9)):
        y, h, c = runner.run(None, {"x": x[start:end], "h0": h, "c0": c})
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-6)
    np.testing.assert_allclose(h, final[0], atol=1e-6)
    np.testing.assert_allclose(c, final[1], atol=1e-6)


@pytest.mark.parametrize("steps", ["lstm", "scan"])
def test_outputs_after_two_hundred_steps(steps):
    module = module_of("low rank", layers=2, inputs=40, hidden=64)
    x, h, c = inputs_of(module, steps=200, batch=2)
    expected = expected_of(module, x, h, c)
    feed = {"x": x.numpy(), "h0": h.numpy(), "c0": c.numpy()}
    found = session_of(graph_in(module, request=GraphRequest(form=steps))).run(None, feed)
    for own, right in zip(found, expected, strict=True):
        assert np.abs(own - right).max() <= 1e-5 * np.abs(right).max()


@pytest.mark.parametrize("steps", ["lstm", "scan"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gates_and_directions_are_those_of_onnx_own_reference(direction, steps):
    generator = np.random.default_rng(0)
    n, hidden, inputs = 2 if direction == "bidirectional" else 1, 5, 4

    def drawn(*sizes):
        return generator.standard_normal(sizes).astype(np.float32)

    x, w, u, b = drawn(6, 3, inputs), drawn(n, 4 * hidden, inputs), drawn(n, 4 * hidden, hidden), drawn(n, 8 * hidden)
    h, c = drawn(n, 3, hidden), drawn(n, 3, hidden)
    reference = LSTMHelper(X=x, W=w, R=u, B=b, initial_h=h, initial_c=c, direction=direction)
    y, hn, cn = reference.step()
    found = as_the_operator(w, u, b, direction, {"x": x, "h0": h, "c0": c}, steps)
    for name, right in {"Y": y, "Y_h": hn, "Y_c": cn}.items():
        np.testing.assert_allclose(found[name], right, atol=1e-6)


def as_the_operator(w, u, b, direction, feed, steps):
    """What a graph of ours gives, as ONNX's operator gives it: ``Y`` is ``(T, directions, B, H)``."""
    hidden = u.shape[-1]
    if direction == "reverse":
        # Torch has no LSTM that runs backward alone: of one that runs both ways the other direction is left out.
        feed = {name: value if name == "x" else np.concatenate([value, value]) for name, value in feed.items()}
    runner = session_of(graph_in(torch_lstm(w, u, b, direction), request=GraphRequest(form=steps)))
    y, hn, cn = runner.run(None, feed)
    y = y.reshape(*y.shape[:2], -1, hidden).swapaxes(1, 2)
    kept = slice(1 if direction == "reverse" else 0, None)
    return {"Y": y[:, kept], "Y_h": hn[kept], "Y_c": cn[kept]}


def torch_lstm(w, u, b, direction):
    """Torch's LSTM of ONNX's matrices."""
    hidden = u.shape[-1]
    module = nn.LSTM(w.shape[-1], hidden, bidirectional=direction != "forward")
    suffixes = ("_l0", "_l0_reverse")[: 1 + module.bidirectional]
    for n, suffix in enumerate(suffixes):
        own = min(n, len(w) - 1)
        parts = {
            "weight_ih": w[own],
            "weight_hh": u[own],
            "bias_ih": b[own, : 4 * hidden],
            "bias_hh": b[own, 4 * hidden :],
        }
        for name, value in parts.items():
            gates = value.reshape(4, hidden, *value.shape[1:])[list(TO_TORCH)]
            getattr(module, name + suffix).data.copy_(torch.from_numpy(gates.reshape(value.shape)))
    return module


# It makes the cases of all its operators, numbers that overflow among them.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_own_cases_of_the_operator():
    # Torch's LSTM has no peepholes.
    cases = [case for case in onnx_cases() if "peepholes" not in case.name]
    assert len(cases) >= 3
    for case in cases:
        (node,) = case.model.graph.node
        ((inputs, outputs),) = case.data_sets
        given = dict(zip([name for name in node.input if name], inputs, strict=True))
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        batch_first, direction = attributes.get("layout", 0), attributes.get("direction", b"forward").decode()
        w, u = given["W"], given["R"]
        b = given.get("B", np.zeros((len(w), 8 * u.shape[-1]), np.float32))
        x = given["X"].swapaxes(0, 1) if batch_first else given["X"]
        zeros = np.zeros((len(w), x.shape[1], u.shape[-1]), np.float32)
        for steps in ("lstm", "scan"):
            found = as_the_operator(w, u, b, direction, {"x": x, "h0": zeros, "c0": zeros}, steps)
            for name, right in zip([name for name in node.output if name], outputs, strict=True):
                axes = {"Y": (2, 0, 1, 3), "Y_h": (1, 0, 2)}[name] if batch_first else range(found[name].ndim)
                np.testing.assert_allclose(found[name].transpose(axes), right, atol=1e-6)


def onnx_cases():
    from onnx.backend.test.case.node import collect_testcases

    return [case for case in collect_testcases("LSTM") if case.name.startswith("test_lstm")]


@pytest.mark.parametrize("kind", ["low rank", "order 3", "separate"])
def test_factors_stay_factors_in_the_graph(kind):
    module = module_of(kind, layers=2, inputs=40, hidden=48)
    numbers = sum(parameter.numel() for name, parameter in module.named_parameters() if "weight" in name)
    for steps in ("lstm", "scan"):
        proto = graph_in(module, request=GraphRequest(form=steps))
        matrices = (each for each in proto.graph.initializer if each.name.startswith("weight"))
        assert sum(int(np.prod(each.dims)) for each in matrices) == numbers


def test_operators_are_standard_and_of_the_lowest_set_that_has_them():
    proto = graph_in(module_of("order 3", layers=2, bidirectional=True), request=GraphRequest(lengths=True))
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", 18)]
    assert all(node.domain == "" for node in proto.graph.node)
    assert [each.name for each in proto.graph.input] == ["x", "h0", "c0", "lengths"]
    assert [each.name for each in proto.graph.output] == ["y", "hn", "cn"]


def test_the_fastest_form_by_the_cost_model_is_chosen():
    direction = Weights.of_module("", module_of("low rank")).layers[0][0]
    for steps, batch in itertools.product((1, 50), (1, 16)):
        request = GraphRequest(steps=steps, batch=batch)
        times = {form: costs.seconds(form, direction, 12, request) for form in possible_forms(direction, request)}
        assert costs.choose_form(direction, 12, request) == min(times, key=times.__getitem__)
    assert costs.choose_form(direction, 12, GraphRequest(form="lstm")) == Form("lstm", "factors", "dense")


def test_large_layers_are_scanned_and_small_ones_are_not():
    forms = {}
    for hidden in (32, 1024):
        module = BTLSTM(
            hidden,
            hidden,
            shapes={n: low_rank(4 * hidden, hidden, hidden // 5) for n in ("weight_ih_l0", "weight_hh_l0")},
        )
        direction = Weights.of_module("", module).layers[0][0]
        forms[hidden] = costs.choose_form(direction, hidden, GraphRequest(steps=50)).steps
    assert forms == {32: "lstm", 1024: "scan"}


def test_very_large_matrices_are_never_formed():
    shape = btcompress.BlockTermShape((10, 24, 20, 12), (16, 4, 4, 4), (2, 2, 2, 2), 2, 57600, 1024, 4)
    module = BTLSTM(57600, 256, shapes={"weight_ih_l0": MatrixShape(shape)})
    direction = Weights.of_module("", module).layers[0][0]
    assert {(form.steps, form.inputs) for form in possible_forms(direction, GraphRequest())} == {("scan", "factors")}
    # Sums of 57,600 numbers in float32.
    assert_same(graph_in(module), module, atol=1e-5)
