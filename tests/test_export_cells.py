"""GRUs and plain RNNs as ONNX graphs: every form of every kind gives torch's outputs and states."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from btcompress.checkpoint import CompressedCheckpoint, CompressedMatrix, from_state_dict
from btcompress.errors import BTCompressError
from btcompress.export import GraphRequest, costs, layers
from btcompress.export.forms import possible_forms
from btcompress.export.graphfiles import graph_of
from btcompress.export.integers import has_integers, quantize
from btcompress.export.weights import Weights
from btcompress.modes import ShapeRequest, choose_shapes
from btcompress.packing import Integers
from btcompress.shapes import GATES, BlockTermShape, MatrixShape
from forms import in_fewer_bits, random_form

INPUTS, H, STEPS, BATCH = 10, 12, 5, 3
STREAM = GraphRequest()

#: Torch's class and its arguments beside sizes, by what it is called here.
CELLS = {"GRU": (nn.GRU, {}), "tanh": (nn.RNN, {}), "relu": (nn.RNN, {"nonlinearity": "relu"})}

#: How matrices are written.
REQUESTS = {
    "block terms": ShapeRequest(cp_rank=2, tucker_rank=(2, 3), order=2),
    "order 3": ShapeRequest(cp_rank=2, tucker_rank=2, order=3),
    "separate": ShapeRequest(cp_rank=2, tucker_rank=2, order=2, gates="separate"),
}


def shapes_of(kind, sizes, n_gates):
    if kind == "dense":
        return {}
    if kind == "low rank":
        return {key: MatrixShape(BlockTermShape.low_rank(*size, 3, n_gates)) for key, size in sizes.items()}
    if kind == "low rank input":
        return {key: shape for key, shape in shapes_of("low rank", sizes, n_gates).items() if "weight_ih" in key}
    if kind == "padded and ordered":
        part = BlockTermShape((3, 4), (4 * n_gates, 4), (2, 3), 2, INPUTS, n_gates * H, n_gates)
        own = BlockTermShape.low_rank(n_gates * H, H, 4, n_gates)
        orders = ("row_order", "column_order")
        names = sorted(sizes, reverse=True)
        return {key: MatrixShape(each.ordered(orders)) for key, each in zip(names, (part, own), strict=True)}
    return {
        key: choice.shape
        for key, choice in choose_shapes(REQUESTS[kind], {key: (*size, n_gates) for key, size in sizes.items()}).items()
    }


def result_of(module, kind):
    """A result with block terms drawn at random, and the dense module of it."""
    state = {f"net.{key}": value for key, value in module.state_dict().items()}
    sizes = {key: tuple(value.shape) for key, value in state.items() if value.dim() == 2}
    n_gates = len(GATES["gru" if isinstance(module, nn.GRU | nn.GRUCell) else "rnn"])
    generator, matrices, parts = torch.Generator().manual_seed(0), {}, {}
    for key, shape in shapes_of(kind, sizes, n_gates).items():
        forms = [random_form(shape.part, generator, torch.float32) for _ in range(shape.n_parts)]
        # The first tensor takes the scale: entries of the matrix are to be as large as torch draws them.
        scale = H**-0.5 / max(form.to_dense().abs().max() for form in forms)
        parts[key] = [replace(form, factors=[form.factors[0] * scale, *form.factors[1:]]) for form in forms]
        matrices[key] = CompressedMatrix(shape, torch.float32, 0.5, 3, 0.5)
    named = {"net": module.nonlinearity} if isinstance(module, nn.RNN | nn.RNNCell) else {}
    checkpoint = replace(from_state_dict(state), nonlinearities=named)
    return CompressedCheckpoint.of(checkpoint, matrices, parts)


def weights_of(compressed):
    (entry,) = compressed.recurrent()
    return Weights.of_result(compressed, entry)


def reference(module, compressed):
    """Torch's own, with the matrices of the result, in float64."""
    dense = {key.removeprefix("net."): value for key, value in compressed.dense_state_dict().items()}
    module.load_state_dict(dense)
    return module.double()


def graph(weights, request=STREAM, form=None):
    with pytest.MonkeyPatch.context() as patch:
        if form is not None:
            patch.setattr(layers, "choose_form", lambda *_: form)
        proto, _, _ = graph_of(weights, request)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(proto, feed):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feed.items()})


def inputs_of(weights, lengths=None):
    torch.manual_seed(1)
    n_states = len(weights.layers) * weights.n_directions
    feed = {"x": torch.randn(STEPS, BATCH, INPUTS), "h0": torch.randn(n_states, BATCH, H)}
    return feed if lengths is None else {**feed, "lengths": lengths}


def expected_of(module, feed):
    x, h = feed["x"].double(), feed["h0"].double()
    with torch.no_grad():
        if "lengths" not in feed:
            return module(x, h)
        y, hn = module(pack_padded_sequence(x, feed["lengths"], enforce_sorted=False), h)
        return pad_packed_sequence(y, total_length=len(x))[0], hn


def assert_same(proto, module, feed, atol=1e-6):
    found, right = run(proto, feed), expected_of(module, feed)
    assert len(found) == len(right) == 2
    for own, each in zip(found, right, strict=True):
        np.testing.assert_allclose(own, each, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["dense", "low rank", "low rank input", "padded and ordered", *REQUESTS])
@pytest.mark.parametrize("cell", ["GRU", "relu"])
def test_every_form_computes_what_torch_does(cell, kind):
    kind = "block terms" if (cell, kind) == ("relu", "separate") else kind
    make, arguments = CELLS[cell]
    compressed = result_of(make(INPUTS, H, **arguments), kind)
    weights, module = weights_of(compressed), reference(make(INPUTS, H, **arguments), compressed)
    forms = list(possible_forms(weights.layers[0][0], GraphRequest(steps=7)))
    operator = "GRU" if cell == "GRU" else "RNN"
    assert {form.steps for form in forms} == {operator.lower(), "scan"}
    for form in forms:
        proto = graph(weights, form=form)
        kinds = {node.op_type for node in proto.graph.node}
        assert (operator in kinds) != ("Scan" in kinds)
        assert_same(proto, module, inputs_of(weights))


@pytest.mark.parametrize("form", ["operator", "scan"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("bias", "lengths"), [(True, None), (False, torch.tensor([3, 5, 1]))])
def test_layers_directions_biases_and_lengths(cell, bias, lengths, form):
    make, arguments = CELLS[cell]
    arguments = {**arguments, "num_layers": 2, "bidirectional": True, "bias": bias}
    compressed = result_of(make(INPUTS, H, **arguments), "low rank")
    weights, module = weights_of(compressed), reference(make(INPUTS, H, **arguments), compressed)
    proto = graph(weights, GraphRequest(form=form, lengths=lengths is not None))
    assert [each.name for each in proto.graph.input[:2]] == ["x", "h0"]
    assert [each.name for each in proto.graph.output] == ["y", "hn"]
    assert_same(proto, module, inputs_of(weights, lengths))
    if lengths is not None:
        whole = torch.full((BATCH,), STEPS)
        assert_same(proto, module, inputs_of(weights, whole))


@pytest.mark.parametrize(
    ("make", "arguments"), [(nn.GRUCell, {}), (nn.RNNCell, {"nonlinearity": "relu"}), (nn.RNNCell, {"bias": False})]
)
def test_a_cell_is_a_layer_of_any_number_of_steps(make, arguments):
    compressed = result_of(make(INPUTS, H, **arguments), "low rank")
    weights, cell = weights_of(compressed), reference(make(INPUTS, H, **arguments), compressed)
    feed = inputs_of(weights)
    h, outputs = feed["h0"][0].double(), []
    for step in feed["x"].double():
        h = cell(step, h)
        outputs.append(h.detach())
    for form in ("operator", "scan"):
        y, hn = run(graph(weights, GraphRequest(form=form)), feed)
        np.testing.assert_allclose(y, torch.stack(outputs), atol=1e-6)
        np.testing.assert_allclose(hn[0], h.detach(), atol=1e-6)


def test_few_bits_are_the_values_that_they_stand_for():
    compressed = in_fewer_bits(result_of(nn.GRU(INPUTS, H), "low rank"), Integers(4, 16), {})
    weights, module = weights_of(compressed), reference(nn.GRU(INPUTS, H), compressed)
    for form in ("operator", "scan"):
        assert_same(graph(weights, GraphRequest(form=form)), module, inputs_of(weights))


def test_products_in_integers_are_those_of_scans_alone(tmp_path):
    compressed = result_of(nn.GRU(INPUTS, H), "low rank")
    weights, module = weights_of(compressed), reference(nn.GRU(INPUTS, H), compressed)
    with pytest.raises(BTCompressError, match=r"no GRU in integers.*take scan"):
        graph(weights, GraphRequest(form="operator", int8=True))
    source, target = tmp_path / "floats.onnx", tmp_path / "integers.onnx"
    source.write_bytes(graph(weights, GraphRequest(int8=True)).SerializeToString())
    quantize(source, target)
    assert has_integers(target)
    assert_same(onnx.load(target), module, inputs_of(weights), atol=0.05)


@pytest.mark.parametrize("make", [nn.GRU, nn.RNN])
def test_the_cheapest_form_is_chosen_by_constants_of_the_cell(make):
    direction, request = weights_of(result_of(make(INPUTS, H), "dense")).layers[0][0], GraphRequest(steps=9, batch=2)
    times = {form: costs.seconds(form, direction, H, request) for form in possible_forms(direction, request)}
    assert costs.choose_form(direction, H, request) == min(times, key=times.__getitem__)
    read = costs.quantities(next(iter(times)), direction, H, request).read
    assert read == 9 * H * H * (3 if make is nn.GRU else 1) / 1e6
    name = "gru" if make is nn.GRU else "rnn"
    assert {costs.constants_of(form, direction) for form in times} == {name, f"scan of {name}"}
