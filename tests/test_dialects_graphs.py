"""Recurrent layers of ONNX graphs, and in the names and files of Flax and MXNet.

Those of ONNX are held against ONNX Runtime on the same graph, those of Flax and MXNet against a step written out here.
"""

import hashlib
import re
import struct

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import btcompress
from btcompress.checkpoint import OtherRecurrent, from_state_dict, read
from btcompress.checkpoint import onnxfiles as room
from btcompress.dialects import convert
from btcompress.errors import CheckpointError, MemoryLimitError
from btcompress.memory import limited

T, B, I, H = 5, 2, 3, 4  # noqa: E741 - the letters of the docs
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def drawn(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed + sum(shape)).normal(size=shape).astype(dtype)


def weights_of(operator, directions=1, bias=True, size=H, inputs=I, seed=0):
    rows = GATES[operator] * size
    own = {"W": drawn(directions, rows, inputs, seed=seed), "R": drawn(directions, rows, size, seed=seed + 1)}
    return own | ({"B": drawn(directions, 2 * rows, seed=seed + 2)} if bias else {})


def node_of(operator, inputs, name=None, outputs=("y",), **attributes):
    """A recurrent node; a GRU as torch computes it, unless it is said otherwise."""
    own = {"linear_before_reset": 1} if operator == "GRU" else {}
    own |= {"hidden_size": H} | attributes
    return helper.make_node(
        operator, list(inputs), list(outputs), name=f"/net/rnn/{operator}" if name is None else name, **own
    )


def graph_of(nodes, constants=(), inputs=("x",), outputs=("y",), name="g", types=TensorProto.FLOAT):
    kept = [numpy_helper.from_array(value, key) for key, value in dict(constants).items()]
    given = [helper.make_tensor_value_info(each, types, None) for each in inputs]
    made = [helper.make_tensor_value_info(each, types, None) for each in outputs]
    return helper.make_graph(list(nodes), name, given, made, kept)


def model_of(graph, opset=17, **others):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, **others)


def saved(tmp_path, model, name="model.onnx"):
    path = tmp_path / name
    path.write_bytes(model.SerializeToString())
    return path


def simple(operator="LSTM", directions=1, bias=True, **attributes):
    """A model of one node whose weights are initializers."""
    own = weights_of(operator, directions, bias)
    return model_of(graph_of([node_of(operator, ["x", *own], **attributes)], own))


def torchs(checkpoint, name):
    """torch's layer with the tensors below a name."""
    entry = next(each for each in checkpoint.recurrent() if each.name == name)
    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[entry.type]
    arguments = {"nonlinearity": entry.nonlinearity} if entry.type == "rnn" else {}
    if entry.proj_size:
        arguments = {"proj_size": entry.proj_size}
    arguments |= {"bias": entry.bias, "bidirectional": entry.bidirectional}
    layer = kind(entry.input_size, entry.hidden_size, entry.num_layers, **arguments)
    layer.to(checkpoint.tensors[entry.keys[0]].dtype)
    layer.load_state_dict({key.removeprefix(entry.prefix): checkpoint.tensors[key] for key in entry.keys})
    return layer


def states(layer, x):
    with torch.no_grad():
        return layer(torch.from_numpy(x))[0].numpy()


def onnx_states(model, x):
    """The hidden states of a model's node (T, D, B, H) as torch has them: (T, B, D H)."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"x": x})
    return y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)


def refusals(checkpoint):
    return {each.name: each.reason for each in checkpoint.recurrent() if isinstance(each, OtherRecurrent)}


# What nodes compute


@pytest.mark.parametrize(
    ("operator", "directions", "bias", "attributes"),
    [
        ("LSTM", 1, True, {}),
        ("LSTM", 2, True, {"direction": "bidirectional"}),
        ("LSTM", 1, False, {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
        ("GRU", 1, True, {}),
        ("GRU", 2, False, {"direction": "bidirectional"}),
        ("RNN", 1, True, {}),
        ("RNN", 1, True, {"activations": ["Relu"]}),
        ("RNN", 2, False, {"direction": "bidirectional", "activations": ["Tanh", "Tanh"]}),
    ],
)
def test_nodes_give_the_hidden_states_of_onnx_runtime(tmp_path, operator, directions, bias, attributes):
    model = simple(operator, directions, bias, **attributes)
    checkpoint = read(saved(tmp_path, model))
    x = drawn(T, B, I)
    np.testing.assert_allclose(states(torchs(checkpoint, "net.rnn"), x), onnx_states(model, x), atol=1e-5)
    assert refusals(checkpoint) == {}
    assert any("net.rnn: converted from ONNX" in notice for notice in checkpoint.notices)
    assert all(key.startswith("net.rnn.") for key in checkpoint.tensors)
    if operator == "RNN":
        assert checkpoint.nonlinearities == {"net.rnn": attributes.get("activations", ["Tanh"])[0].lower()}


def test_a_node_that_runs_backward_is_a_layer_that_runs_forward(tmp_path):
    model = simple("LSTM", direction="reverse")
    checkpoint = read(saved(tmp_path, model))
    x = drawn(T, B, I)
    turned = states(torchs(checkpoint, "net.rnn"), x[::-1].copy())[::-1]
    np.testing.assert_allclose(turned, onnx_states(model, x), atol=1e-5)
    assert any("turn its inputs round" in notice for notice in checkpoint.notices)


def test_batches_first_change_no_weights(tmp_path):
    first, last = (read(saved(tmp_path, simple("GRU", layout=layout))).tensors for layout in (0, 1))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_keep_their_dtype(tmp_path, dtype):
    own = {part: value.astype(dtype) for part, value in weights_of("LSTM").items()}
    checkpoint = read(saved(tmp_path, model_of(graph_of([node_of("LSTM", ["x", *own])], own))))
    assert {each.dtype for each in checkpoint.tensors.values()} == {torch.from_numpy(own["W"]).dtype}


REFUSED = {
    "clip": ("LSTM", 1, {"clip": 3.0}, "clips"),
    "coupled gates": ("LSTM", 1, {"input_forget": 1}, "input_forget"),
    "other functions": ("LSTM", 1, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "hardsigmoid"),
    "other functions of a direction": (
        "GRU",
        2,
        {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Sigmoid", "Relu"]},
        "relu",
    ),
    "two nonlinearities": ("RNN", 2, {"direction": "bidirectional", "activations": ["Tanh", "Relu"]}, "tanh, relu"),
    "a function of its own": ("RNN", 1, {"activations": ["Softplus"]}, "softplus"),
    "reset before": ("GRU", 1, {"linear_before_reset": 0}, "before the recurrent matrix"),
    "directions": ("LSTM", 2, {}, "W has shape (2, 16, 3)"),
    "direction": ("LSTM", 1, {"direction": "sideways"}, "sideways"),
    "size": ("LSTM", 1, {"hidden_size": 5}, "hidden_size is 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_torchs_layers_do_not_compute_is_refused_by_name(tmp_path, case):
    operator, directions, attributes, reason = REFUSED[case]
    checkpoint = read(saved(tmp_path, simple(operator, directions, **attributes)))
    assert reason in refusals(checkpoint)["net.rnn"]
    assert set(checkpoint.tensors) == {"W", "R", "B"}  # as they are, under their own names


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_peepholes_are_refused_where_there_are_any(tmp_path, value):
    own = weights_of("LSTM") | {"P": np.full((1, 3 * H), value, np.float32)}
    node = node_of("LSTM", ["x", "W", "R", "B", "", "", "", "P"])
    checkpoint = read(saved(tmp_path, model_of(graph_of([node], own))))
    assert ("peepholes" in refusals(checkpoint).get("net.rnn", "")) == (value != 0)


def test_quantized_nodes_say_that_they_are(tmp_path):
    own = {"W": np.zeros((1, I, 4 * H), np.uint8), "R": np.zeros((1, H, 4 * H), np.uint8)}
    node = helper.make_node("DynamicQuantizeLSTM", ["x", *own], ["y"], name="q", domain="com.microsoft", hidden_size=H)
    path = saved(tmp_path, model_of(graph_of([node], own)))
    assert "Use the float model" in refusals(read(path))["q"]
    with pytest.raises(CheckpointError, match="quantized LSTM"):
        btcompress.factorize(path, cp_rank=1, tucker_rank=1)


def test_nodes_in_functions_are_refused_with_the_way_to_inline_them(tmp_path):
    body = [node_of("LSTM", ["x", "w", "r"], name="inner")]
    function = helper.make_function("own", "Layer", ["x", "w", "r"], ["y"], body, [helper.make_opsetid("", 17)])
    own = weights_of("LSTM", bias=False)
    call = helper.make_node("Layer", ["x", *own], ["y"], domain="own")
    checkpoint = read(saved(tmp_path, model_of(graph_of([call], own), functions=[function])))
    assert "inline_local_functions" in refusals(checkpoint)["Layer.inner"]


# Where weights are


def steps(*nodes):
    return [helper.make_node(operator, list(inputs), [out], **others) for operator, inputs, out, others in nodes]


def cut_and_joined(own):
    """As torch's exporter orders gates of weights that it does not fold: slices of torch's order, joined."""
    rows = own["W"][0]
    constants = {"w": np.concatenate([rows[:H], rows[2 * H : 3 * H], rows[3 * H :], rows[H : 2 * H]])}
    constants |= {f"at{n}": np.array([n * H]) for n in range(5)} | {"axis": np.array([0])}
    cuts = [("Slice", ["w", f"at{n}", f"at{n + 1}", "axis"], f"cut{n}", {}) for n in range(4)]
    joined = ("Concat", ["cut0", "cut3", "cut1", "cut2"], "joined", {"axis": 0})
    return constants, steps(*cuts, joined, ("Unsqueeze", ["joined", "axis"], "W", {}))


def turned(own):
    return {"w": own["W"].transpose(0, 2, 1).copy()}, steps(("Transpose", ["w"], "W", {"perm": [0, 2, 1]}))


def cast(own):
    return {"w": own["W"].astype(np.float64)}, steps(("Cast", ["w"], "W", {"to": TensorProto.FLOAT}))


def integers(own):
    scale = np.float32(np.abs(own["W"]).max() / 127)
    constants = {
        "w": np.round(own["W"] / scale).astype(np.int8),
        "scale": np.array(scale),
        "zero": np.array(0, np.int8),
    }
    return constants, steps(("DequantizeLinear", ["w", "scale", "zero"], "W", {}))


def in_constants(own):
    return {}, [helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(own["W"], ""))]


def reshaped(own):
    sizes = helper.make_node("Constant", [], ["sizes"], value_ints=list(own["W"].shape))
    return {"w": own["W"].reshape(-1)}, [sizes, *steps(("Reshape", ["w", "sizes"], "W", {}))]


def one_of_several(own):
    constants = {"w": np.stack([own["W"] + 1, own["W"]]), "at": np.array(1)}
    return constants, steps(("Gather", ["w", "at"], "g", {"axis": 0}), ("Identity", ["g"], "W", {}))


WAYS = [in_constants, cut_and_joined, turned, cast, integers, reshaped, one_of_several]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_weights_are_found_behind_the_steps_that_exporters_write(tmp_path, way):
    own = weights_of("LSTM")
    constants, made = way(own)
    rest = {"R": own["R"], "B": own["B"], "head.weight": drawn(2, H)}
    model = model_of(graph_of([*made, node_of("LSTM", ["x", *own])], constants | rest))
    checkpoint = read(saved(tmp_path, model))
    x = drawn(T, B, I)
    np.testing.assert_allclose(states(torchs(checkpoint, "net.rnn"), x), onnx_states(model, x), atol=1e-5)
    # What the weights alone are made of has gone; the rest stays.
    assert {key for key in checkpoint.tensors if not key.startswith("net.rnn.")} == {"head.weight"}


def test_steps_of_older_operator_sets_are_those_of_their_time(tmp_path):
    own = weights_of("LSTM")
    made = steps(
        ("Slice", ["w"], "cut", {"starts": [1], "ends": [2], "axes": [0]}),
        ("Squeeze", ["cut"], "flat", {"axes": [0]}),
        ("Unsqueeze", ["flat"], "W", {"axes": [0]}),
    )
    constants = {"w": np.concatenate([own["W"] + 1, own["W"]]), "R": own["R"], "B": own["B"]}
    model = model_of(graph_of([*made, node_of("LSTM", ["x", *own])], constants), opset=9)
    plain = read(saved(tmp_path, simple(), "plain.onnx")).tensors
    found = read(saved(tmp_path, model)).tensors
    assert all(torch.equal(found[key], plain[key]) for key in plain)


def test_constants_that_something_else_needs_stay(tmp_path):
    own = weights_of("LSTM")
    nodes = [node_of("LSTM", ["x", *own], outputs=("z",)), helper.make_node("Add", ["z", "total"], ["y"])]
    nodes.append(helper.make_node("ReduceSum", ["W"], ["total"]))
    counted = {"counts": np.arange(3), "mask": np.array([True])}
    checkpoint = read(saved(tmp_path, model_of(graph_of(nodes, own | counted))))
    assert {key for key in checkpoint.tensors if not key.startswith("net.rnn.")} == {"W", "counts", "mask"}


def test_weights_that_are_worked_out_at_run_time_are_no_constants(tmp_path):
    own = weights_of("LSTM", bias=False)
    exp = helper.make_node("Exp", ["W"], ["w"])
    for names, reason in ((["x", "w", "R"], "worked out by Exp"), (["x", "x", "R"], "no constant"), (["x"], "no w")):
        node = node_of("LSTM", names)
        checkpoint = read(saved(tmp_path, model_of(graph_of([exp, node], own))))
        assert reason in refusals(checkpoint)["net.rnn"]


def test_constants_that_torch_lacks_are_left_out_by_name(tmp_path):
    model = simple()
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"a"]))
    model.graph.initializer.append(helper.make_tensor("few", TensorProto.INT4, [2], [1, 2]))
    checkpoint = read(saved(tmp_path, model))
    (notice,) = [each for each in checkpoint.notices if each.startswith("Left out")]
    assert "words is of type STRING" in notice
    assert "few is of type INT4" in notice


# Graphs within graphs, shared weights, names


def branch(*nodes, outputs=("y",), constants=()):
    return graph_of(nodes, constants, inputs=(), outputs=outputs, name="branch")


def test_layers_in_branches_and_loops_are_found(tmp_path):
    outer, inner = weights_of("LSTM"), weights_of("GRU", seed=7)
    scan = weights_of("RNN", seed=9)
    then = branch(node_of("LSTM", ["x", *outer], name="/then/LSTM"))
    names = [f"g{part}" for part in inner]
    orelse = branch(
        node_of("GRU", ["x", *names], name="/else/GRU", outputs=("y",)),
        constants=dict(zip(names, inner.values(), strict=True)),
    )
    body = graph_of(
        [node_of("RNN", ["s", *(f"r{part}" for part in scan)], name="/body/RNN", outputs=("out",))],
        {f"r{part}": value for part, value in scan.items()},
        inputs=("s",),
        outputs=("out",),
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=orelse),
        helper.make_node("Scan", ["x"], ["z"], body=body, num_scan_inputs=1),
    ]
    checkpoint = read(saved(tmp_path, model_of(graph_of(nodes, outer, outputs=("y", "z")))))
    assert {each.name: each.class_name for each in checkpoint.recurrent()} == {
        "then": "LSTM",
        "else": "GRU",
        "body": "RNN",
    }


def test_constants_of_one_name_in_two_graphs_stay_two(tmp_path):
    values = [np.arange(2, dtype=np.float32) + n for n in range(3)]
    branches = [branch(helper.make_node("Add", ["x", "k"], ["y"]), constants={"k": value}) for value in values]
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("If", ["c"], ["z"], then_branch=branches[2], else_branch=branches[2]),
    ]
    found = read(saved(tmp_path, model_of(graph_of(nodes)))).tensors  # a node has its attributes in alphabetical order
    assert [(key, tensor[0].item()) for key, tensor in found.items()] == [("k", 1), ("k_1", 0), ("k_2", 2), ("k_3", 2)]


def test_nodes_that_share_weights_are_one_layer(tmp_path):
    own = weights_of("LSTM")
    nodes = [node_of("LSTM", ["x", *own], name=f"/a/rnn{n}/LSTM", outputs=(f"y{n}",)) for n in range(3)]
    other = node_of("LSTM", ["x", *own], name="/b/LSTM", outputs=("y3",), direction="reverse")
    checkpoint = read(saved(tmp_path, model_of(graph_of([*nodes, other], own, outputs=[f"y{n}" for n in range(4)]))))
    assert [each.name for each in checkpoint.recurrent()] == ["a.rnn0", "b"]
    assert checkpoint.source.n_params == sum(each.size for each in own.values())
    assert "a.rnn0: one layer with a.rnn1, a.rnn2 of the graph, which has the same weights." in checkpoint.notices


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["/encoder/lstm/LSTM", "/encoder/lstm/LSTM_1"], ["encoder.lstm", "encoder.lstm_1"]),
        (["", ""], ["lstm", "lstm_1"]),
        (["LSTM_79", "LSTM"], ["LSTM_79", "LSTM"]),
        (["same", "same"], ["same", "same_1"]),
        (["model/lstm/PartitionedCall/LSTM__45", "///"], ["model.lstm.PartitionedCall.LSTM__45", "lstm"]),
    ],
)
def test_layers_are_called_as_the_modules_that_were_exported(tmp_path, names, layers):
    constants, nodes = {}, []
    for n, name in enumerate(names):
        own = {f"{part}{n}": value for part, value in weights_of("LSTM", seed=n).items()}
        constants |= own
        nodes.append(node_of("LSTM", ["x", *own], name=name, outputs=(f"y{n}",)))
    checkpoint = read(saved(tmp_path, model_of(graph_of(nodes, constants, outputs=("y0", "y1")))))
    assert sorted(each.name for each in checkpoint.recurrent()) == sorted(layers)


def test_other_tensors_below_the_name_of_a_module_make_no_siblings(tmp_path):
    own = weights_of("LSTM") | {"net.rnn.h0": drawn(1, B, H)}
    node = node_of("LSTM", ["x", "W", "R", "B", "", "net.rnn.h0"])
    (entry,) = read(saved(tmp_path, model_of(graph_of([node], own)))).recurrent()
    assert (entry.name, entry.siblings) == ("net.rnn.LSTM", ())


def test_of_a_folder_the_weights_of_torch_are_read(tmp_path):
    saved(tmp_path, simple())
    written(tmp_path, {"a": packed(np.zeros(1))}, "flax_model.msgpack")
    with pytest.raises(CheckpointError, match="2 checkpoints"):
        read(tmp_path)
    torch.save(nn.LSTM(I, H).state_dict(), tmp_path / "pytorch_model.bin")
    assert read(tmp_path).source.name == "pytorch_model.bin"


# Data beside the model


def elsewhere(tmp_path, place="model.data", length=None, offset=4):
    model = simple()
    (data,) = [each for each in model.graph.initializer if each.name == "W"]
    content = data.raw_data
    data.ClearField("raw_data")
    data.data_location = TensorProto.EXTERNAL
    for key, value in (("location", place), ("offset", offset), ("length", length or len(content))):
        data.external_data.add(key=key, value=str(value))
    (tmp_path / "model.data").write_bytes(bytes(offset) + content)
    return saved(tmp_path, model)


def test_data_beside_the_model_are_read_and_belong_to_its_digest(tmp_path):
    path = elsewhere(tmp_path)
    checkpoint, plain = read(path), read(saved(tmp_path, simple(), "plain.onnx"))
    assert all(torch.equal(checkpoint.tensors[key], plain.tensors[key]) for key in plain.tensors)
    both = path.read_bytes() + (tmp_path / "model.data").read_bytes()
    assert checkpoint.source.sha256 == hashlib.sha256(both).hexdigest()
    assert checkpoint.source.n_bytes == len(both)


@pytest.mark.parametrize("place", ["../model.data", "/etc/hostname", "sub/model.data", "..", "", "a\\b", "x" * 300])
def test_data_are_taken_from_nowhere_but_beside_the_model(tmp_path, place):
    with pytest.raises(CheckpointError, match="must be in files beside"):
        read(elsewhere(tmp_path, place))


def test_data_that_are_missing_or_too_short_are_named(tmp_path):
    path = elsewhere(tmp_path)
    (tmp_path / "model.data").write_bytes(bytes(10))
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)
    (tmp_path / "model.data").unlink()
    with pytest.raises(CheckpointError, match=r"model\.data beside it, which is missing"):
        read(path)
    assert "damaged" in refusals(read(elsewhere(tmp_path, length=7)))["net.rnn"]


# Hostile files


def test_steps_make_no_more_than_a_file_may_hold(tmp_path):
    own = weights_of("LSTM", bias=False)
    doubled = [("Concat", [f"w{n}", f"w{n}"], f"w{n + 1}", {"axis": 0}) for n in range(60)]
    nodes = [*steps(*doubled), node_of("LSTM", ["x", "w60", "R"])]
    checkpoint = read(saved(tmp_path, model_of(graph_of(nodes, {"w0": own["W"], "R": own["R"]}))))
    assert "than the file holds" in refusals(checkpoint)["net.rnn"]


def test_steps_in_a_circle_or_without_end_are_given_up(tmp_path):
    own = weights_of("LSTM", bias=False)
    ring = steps(("Identity", ["W1"], "W0", {}), ("Identity", ["W0"], "W1", {}))
    long = steps(*(("Identity", [f"L{n}"], f"L{n + 1}", {}) for n in range(99)))
    for nodes, name in ((ring, "W0"), (long, "L99")):
        graph = graph_of([*nodes, node_of("LSTM", ["x", name, "R"])], {"L0": own["W"], "R": own["R"]})
        assert "more than 64 steps" in refusals(read(saved(tmp_path, model_of(graph))))["net.rnn"]


@pytest.mark.parametrize(
    ("sizes", "reason"), [([2**40, 2**40], "no tensor can"), ([-1, 4], "no tensor can"), ([7, 7, 7], "bytes")]
)
def test_sizes_that_are_not_those_of_the_data_are_refused(tmp_path, sizes, reason):
    model = simple()
    weight = next(each for each in model.graph.initializer if each.name == "W")
    weight.dims[:] = sizes
    assert reason in refusals(read(saved(tmp_path, model)))["net.rnn"]


def test_names_may_be_no_text(tmp_path):
    data = simple().SerializeToString().replace(b"/net/rnn/LSTM", b"/net/\xff\xfe\xfd/LSTM")
    (tmp_path / "model.onnx").write_bytes(data)
    (entry,) = read(tmp_path / "model.onnx").recurrent()
    assert entry.name == r"net.\xff\xfe\xfd"


def test_a_damaged_step_refuses_its_layer_alone(tmp_path):
    own = weights_of("LSTM")
    bad = helper.make_node("Transpose", ["W"], ["w"], perm=[0, 9])
    to_text = helper.make_node("Cast", ["W"], ["t"], to=TensorProto.STRING)
    nothing = helper.make_node("Gather", ["W", ""], ["n"])
    for made, name in ((bad, "w"), (to_text, "t"), (nothing, "n")):
        nodes = [made, node_of("LSTM", ["x", name, "R", "B"], name="bad"), node_of("LSTM", ["x", *own], outputs=("z",))]
        checkpoint = read(saved(tmp_path, model_of(graph_of(nodes, own))))
        assert set(refusals(checkpoint)) == {"bad"}
        assert len(checkpoint.recurrent()) == 2


@pytest.mark.parametrize("part", [b"\x08\x09\x12\x07", b"\x08\x09\x3a\x7f\x01", b"\x08\x09\x42\x02\x10\x11"])
def test_files_that_only_begin_like_models_are_damaged(tmp_path, part):
    (tmp_path / "model.onnx").write_bytes(part + b"\xff")
    with pytest.raises(CheckpointError, match="begins like an ONNX model"):
        read(tmp_path / "model.onnx")


def test_reading_a_model_asks_for_memory_and_for_onnx(tmp_path, monkeypatch):
    path = saved(tmp_path, simple())
    with limited(1000), pytest.raises(MemoryLimitError):
        read(path)
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install 'btcompress\[onnx\]'"):
        read(path)


# Flax


class Draw:
    """Tensors of a state dict, drawn in the order of their keys."""

    def __init__(self):
        self.state = {}

    def __call__(self, key, *shape):
        self.state[key] = torch.from_numpy(drawn(*shape, seed=len(self.state), dtype=np.float64))
        return self.state[key]


def run(step, x, n_states=2, size=H, state=None):
    """The hidden states of a step over a sequence; the step gives them first."""
    carry, found = [x.new_zeros(x.shape[1], state or size), x.new_zeros(x.shape[1], size)][:n_states], []
    for row in x:
        carry = step(row, *carry)
        found.append(carry[0])
    return torch.stack(found)


def lstm_step(i, f, g, o, c):
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(r, z, inputs, product, h):
    z = z.sigmoid()
    return ((1 - z) * (inputs + r.sigmoid() * product).tanh() + z * h,)


def flax_lstm(draw, under, forget="if"):
    kernels = {name: draw(under(name, "kernel"), I, H) for name in ("ii", forget, "ig", "io")}
    own = [(draw(under(f"h{gate}", "kernel"), H, H), draw(under(f"h{gate}", "bias"), H)) for gate in "ifgo"]

    def step(x, h, c):
        pairs = zip(kernels.values(), own, strict=True)
        return lstm_step(*(x @ kernel + h @ recurrent + bias for kernel, (recurrent, bias) in pairs), c)

    return step, 2


def flax_gru(draw, under):
    own = {gate: (draw(under(f"i{gate}", "kernel"), I, H), draw(under(f"i{gate}", "bias"), H)) for gate in "rzn"}
    recurrent = {gate: draw(under(f"h{gate}", "kernel"), H, H) for gate in "rzn"}
    bias = draw(under("hn", "bias"), H)

    def step(x, h):
        inputs = {gate: x @ kernel + each for gate, (kernel, each) in own.items()}
        r, z = (inputs[gate] + h @ recurrent[gate] for gate in "rz")
        return gru_step(r, z, inputs["n"], h @ recurrent["n"] + bias, h)

    return step, 1


def flax_simple(draw, under, inputs="i", recurrent="h"):
    kernel, bias = draw(under(inputs, "kernel"), I, H), draw(under(inputs, "bias"), H)
    own = draw(under(recurrent, "kernel"), H, H)
    return lambda x, h: ((x @ kernel + bias + h @ own).tanh(),), 1


def nnx_lstm(draw, under):
    kernel, own = draw(under("dense_i", "kernel"), I, 4 * H), draw(under("dense_h", "kernel"), H, 4 * H)
    bias = draw(under("dense_h", "bias"), 4 * H)
    return lambda x, h, c: lstm_step(*(x @ kernel + h @ own + bias).chunk(4, 1), c), 2


def nnx_gru(draw, under):
    kernel, bias = draw(under("dense_i", "kernel"), I, 3 * H), draw(under("dense_i", "bias"), 3 * H)
    own = draw(under("dense_h", "kernel"), H, 3 * H)

    def step(x, h):
        (r, z, n), (hr, hz, hn) = (x @ kernel + bias).chunk(3, 1), (h @ own).chunk(3, 1)
        return gru_step(r + hr, z + hz, n, hn, h)

    return step, 1


FLAX = {
    "OptimizedLSTMCell": (flax_lstm, {}),
    "LSTMCell of nnx": (flax_lstm, {"forget": "if_"}),
    "GRUCell": (flax_gru, {}),
    "SimpleCell": (flax_simple, {}),
    "fused LSTM": (nnx_lstm, {}),
    "fused GRU": (nnx_gru, {}),
    "fused SimpleCell": (flax_simple, {"inputs": "dense_i", "recurrent": "dense_h"}),
}


def agree(checkpoint, name, step, n_states, x=None, **sizes):
    x = torch.from_numpy(drawn(T, B, I, dtype=np.float64)) if x is None else x
    with torch.no_grad():
        found = torchs(checkpoint, name)(x)[0]
    torch.testing.assert_close(found, run(step, x, n_states, **sizes), rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", FLAX)
@pytest.mark.parametrize(
    ("form", "name"), [("params/net/Cell_0/{}/{}", "params.net.Cell_0"), ("cell.{}.{}", "cell"), ("{}.{}.value", "")]
)
def test_cells_of_flax_give_the_hidden_states_of_their_step(case, form, name):
    make, arguments = FLAX[case]
    draw = Draw()
    step, n_states = make(draw, form.format, **arguments)
    draw(form.format("Dense_0", "kernel"), H, 2)
    checkpoint = from_state_dict(draw.state)
    agree(checkpoint, name, step, n_states)
    assert any("converted from Flax" in notice for notice in checkpoint.notices)
    assert form.format("Dense_0", "kernel") in checkpoint.tensors


def kernels(names, *shape, prefix="cell"):
    return {f"{prefix}/{name}/kernel": torch.zeros(shape) for name in names.split()}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (kernels("if in hf hn", H, H), "MGUCell"),
        (kernels("ih hh", 3, 3, 2, 8), "convolutional"),
        (kernels("ii if ig io hi hf hg ho", 2, H, H), "stacked by vmap or scan"),
    ],
)
def test_cells_of_flax_that_torch_lacks_are_refused_by_name(state, reason):
    assert reason in refusals(from_state_dict(state))["cell"]


@pytest.mark.parametrize(
    "state",
    [
        kernels("ii if ig hi hf hg", H, H),
        kernels("dense_i dense_h", H, 5 * H),
        kernels("i h", H, I),
        kernels("ir iz in hr hz hn", H, H) | {"cell/hn/bias": torch.zeros(H + 1)},
        kernels("i h", H, H) | {"cell/i/bias": torch.zeros(H, dtype=torch.int64)},
        {"cell/i/kernel": torch.zeros(0, 0), "cell/h/kernel": torch.zeros(0, 0)},
    ],
)
def test_what_only_looks_like_a_cell_of_flax_stays(state):
    assert convert(state, "it").tensors == state
    assert convert(state, "it").refused == ()


def packed(array):
    content = msgspec.msgpack.encode((list(array.shape), str(array.dtype), array.tobytes()))
    return msgspec.msgpack.Ext(1, content)


def tree_of(state):
    tree = {}
    for key, tensor in state.items():
        *above, last = key.split("/")
        inner = tree
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = packed(tensor.numpy())
    return tree


def written(tmp_path, tree, name="params.msgpack"):
    path = tmp_path / name
    path.write_bytes(msgspec.msgpack.encode(tree))
    return path


def test_files_of_flax_hold_parameters_with_the_optimizer_and_averages_left_out(tmp_path):
    draw = Draw()
    step, n_states = flax_gru(draw, "params/cell/{}/{}".format)
    tree = tree_of(draw.state)
    tree |= {"step": 3, "opt_state": {"0": {"mu": tree["params"]}}, "ema_params": tree["params"]}
    path = written(tmp_path, tree)
    checkpoint = read(path)
    agree(checkpoint, "params.cell", step, n_states)
    assert len(checkpoint.tensors) == 4
    assert "Left out, the state of an optimizer: opt_state." in checkpoint.notices
    assert "Left out, averages of params, which are taken: ema_params." in checkpoint.notices
    assert checkpoint.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_arrays_of_flax_in_parts_are_put_together(tmp_path):
    draw = Draw()
    step, n_states = flax_simple(draw, "{}/{}".format)
    tree = tree_of(draw.state)
    for inner in tree.values():
        for name, key in (("kernel", "h/kernel"), ("kernel", "i/kernel")):
            array = draw.state[key].numpy()
            if inner[name] == packed(array):
                parts = {str(n): packed(each) for n, each in enumerate(np.array_split(array.reshape(-1), 3))}
                sizes = {str(n): size for n, size in enumerate(array.shape)}
                inner[name] = {"__msgpack_chunked_array__": True, "shape": sizes, "chunks": parts}
    agree(read(written(tmp_path, tree)), "", step, n_states)


def test_types_of_flax_are_those_of_torch(tmp_path):
    half = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(([2], "bfloat16", b"\x80\x3f\x00\xc0")))
    found = read(written(tmp_path, {"a": half, "b": packed(np.array([True])), "c": packed(np.zeros((0, 3)))})).tensors
    assert found["a"].tolist() == [1.0, -2.0]
    assert (found["a"].dtype, found["b"].dtype, tuple(found["c"].shape)) == (torch.bfloat16, torch.bool, (0, 3))


def extension(*content):
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode(content))


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"a": 1, "b": {"c": [None]}}, "holds no arrays"),
        ({"a": extension([2], "float32", b"1234")}, "damaged"),
        ({"a": extension([2**40, 2**40], "float32", b"")}, "damaged"),
        ({"a": extension([1], "object", b"1234")}, "damaged"),
        ({"a": extension([1], "float32")}, "damaged"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": -1}, "chunks": {"0": 1}}}, "damaged"),
        ({"a": {"b": packed(np.zeros(1))}, "a.b": packed(np.ones(1))}, "two arrays named"),
    ],
)
def test_damaged_files_of_flax_are_refused(tmp_path, tree, reason):
    with pytest.raises(CheckpointError, match=reason):
        read(written(tmp_path, tree))


@pytest.mark.parametrize(
    "content", [b"\x81\xa1a\xdd\x3f\xff\xff\xff\x01", b"\x81\xa1a" * 9999 + b"\x80", b"\x82\xa1a\x01"]
)
def test_counts_and_depths_of_flax_files_cost_nothing(tmp_path, content):
    (tmp_path / "params.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path / "params.msgpack")


def test_flax_itself_gives_the_same_hidden_states(tmp_path):
    linen = pytest.importorskip("flax.linen")
    serialization = pytest.importorskip("flax.serialization")
    import jax

    x = drawn(B, T, I)
    for cell in (linen.LSTMCell, linen.OptimizedLSTMCell, linen.GRUCell, linen.SimpleCell):
        layer = linen.RNN(cell(H))
        given = jax.tree_util.tree_map(lambda each: drawn(*each.shape), layer.init(jax.random.key(0), x))
        path = tmp_path / "params.msgpack"
        path.write_bytes(serialization.to_bytes(given))
        expected = np.asarray(layer.apply(given, x)).transpose(1, 0, 2)
        np.testing.assert_allclose(states(torchs(read(path), "params.cell"), x.transpose(1, 0, 2)), expected, atol=1e-5)


# MXNet


def mxnet_parts(draw, prefix, operator, inputs=I, size=H, state=None, bias=True):
    rows = GATES[operator] * size
    own = [draw(f"{prefix}i2h_weight", rows, inputs), draw(f"{prefix}h2h_weight", rows, state or size)]
    own += [draw(f"{prefix}{side}_bias", rows) if bias else 0.0 for side in ("i2h", "h2h")]
    return [*own, draw(f"{prefix}h2r_weight", state, size) if state else None]


def mxnet_step(operator, w, u, b, d, project=None):
    """As MXNet's cells: gates i, f, c, o of an LSTM and r, z, o of a GRU."""

    def step(x, h, c=None):
        inputs, product = x @ w.T + b, h @ u.T + d
        if operator == "RNN":
            return ((inputs + product).tanh(),)
        if operator == "GRU":
            (r, z, o), (hr, hz, ho) = inputs.chunk(3, 1), product.chunk(3, 1)
            return gru_step(r + hr, z + hz, o, ho, h)
        new_h, new_c = lstm_step(*(inputs + product).chunk(4, 1), c)
        return (new_h if project is None else new_h @ project.T), new_c

    return step, 2 if operator == "LSTM" else 1


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize(
    ("prefix", "name"),
    [("lstm0_", "lstm0"), ("net_rnn0_l0_", "net_rnn0"), ("net.0.l0_", "net.0"), ("l0_", ""), ("", "")],
)
def test_layers_and_cells_of_mxnet_give_the_hidden_states_of_their_step(operator, prefix, name):
    draw = Draw()
    own = mxnet_parts(draw, prefix, operator, bias=bool(name))
    checkpoint = from_state_dict(draw.state | {"embedding0_weight": torch.zeros(9, I)})
    agree(checkpoint, name, *mxnet_step(operator, *own))
    assert any("converted from MXNet" in notice for notice in checkpoint.notices)


def test_layers_of_mxnet_are_stacked_and_run_both_ways():
    draw, x = Draw(), torch.from_numpy(drawn(T, B, I, dtype=np.float64))
    expected = x
    for layer, inputs in enumerate((I, 2 * H)):
        own = [mxnet_step("GRU", *mxnet_parts(draw, f"gru0_{each}{layer}_", "GRU", inputs)) for each in "lr"]
        forward, backward = (step for step, _ in own)
        turned = run(backward, expected.flip(0), 1).flip(0)
        expected = torch.cat([run(forward, expected, 1), turned], -1)
    with torch.no_grad():
        found = torchs(from_state_dict(draw.state), "gru0")(x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_projections_of_mxnet_are_torchs():
    draw = Draw()
    own = mxnet_parts(draw, "lstm0_l0_", "LSTM", size=5, state=2)
    agree(from_state_dict(draw.state), "lstm0", *mxnet_step("LSTM", *own), size=5, state=2)


@pytest.mark.parametrize(("operator", "letters"), [("LSTM", "ifco"), ("GRU", "rzo")])
def test_unpacked_gates_of_mxnet_are_stacked(operator, letters):
    draw = Draw()
    own = mxnet_parts(draw, "lstm_l0_", operator)
    state = {}
    for key, tensor in draw.state.items():
        head, _, kind = key.rpartition("_")
        for letter, each in zip(letters, tensor.chunk(len(letters)), strict=True):
            state[f"{head}_{letter}_{kind}"] = each
    agree(from_state_dict(state), "lstm", *mxnet_step(operator, *own))


def mxnet_state(prefix, rows, *sizes):
    return {f"{prefix}i2h_weight": torch.zeros(rows, *sizes), f"{prefix}h2h_weight": torch.zeros(rows, *sizes)}


@pytest.mark.parametrize(
    ("state", "name", "reason"),
    [
        ({"lstm_parameters": torch.zeros(96)}, "lstm", "unpack_weights"),
        (mxnet_state("conv0_", 8, 2, 3, 3), "conv0", "convolutional"),
        (mxnet_state("r_l0_", 16, 4) | mxnet_state("r_l1_", 20, 5), "r", "several sizes"),
    ],
)
def test_what_mxnet_stores_otherwise_is_refused_by_name(state, name, reason):
    assert reason in refusals(from_state_dict(state))[name]


@pytest.mark.parametrize(
    "state",
    [
        mxnet_state("a_", 20, 4),
        mxnet_state("a_l1_", 16, 4),
        {"a_i2h_weight": torch.zeros(16, 4)},
        mxnet_state("a_", 16, 4) | {"a_i2h_bias": torch.zeros(15)},
        mxnet_state("a_", 16, 4) | {"a_h2r_weight": torch.zeros(3, 4)},
        mxnet_state("a_", 16, 4) | {"a_i2h_f_weight": torch.zeros(4, 4)},
        {"a_i2h_weight": torch.zeros(16), "a_h2h_weight": torch.zeros(16)},
        {"noise_parameters": torch.zeros(3)},
    ],
)
def test_what_only_looks_like_mxnets_stays(state):
    assert convert(state, "it").tensors == state
    assert convert(state, "it").refused == ()


def params(arrays, version=0xF993FAC9, names=None):
    """A file as MXNet's ``nd.save`` writes it, of float64 arrays."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        wide = "q" if version else "I"
        head = struct.pack("<Ii", version, 0) if version in (0xF993FAC9, 0xF993FACA) else struct.pack("<I", version)
        parts += [head if version else b"", struct.pack(f"<I{array.ndim}{wide}", array.ndim, *array.shape)]
        parts += [struct.pack("<iii", 1, 0, 1), array.tobytes()]
    names = list(arrays) if names is None else names
    parts += [struct.pack("<Q", len(names)), *(struct.pack("<Q", len(each)) + each.encode() for each in names)]
    return b"".join(parts)


@pytest.mark.parametrize("version", [0, 0xF993FAC8, 0xF993FAC9, 0xF993FACA])
def test_files_of_mxnet_are_read_in_every_version(tmp_path, version):
    draw = Draw()
    own = mxnet_parts(draw, "lstm0_l0_", "LSTM")
    arrays = {f"arg:{key}": tensor.numpy() for key, tensor in draw.state.items()} | {"aux:mean": np.ones(3)}
    path = tmp_path / "net-0000.params"
    path.write_bytes(params(arrays, version))
    checkpoint = read(path)
    agree(checkpoint, "lstm0", *mxnet_step("LSTM", *own))
    assert checkpoint.tensors["mean"].tolist() == [1.0, 1.0, 1.0]
    assert checkpoint.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


SOUND = params({"a": np.zeros((2, 3))})
SIZES = 24 + 4 + 4 + 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (SOUND[:-1], "damaged"),
        (SOUND[:60], "damaged"),
        (SOUND[:16] + struct.pack("<Q", 2**60) + SOUND[24:], "more than there is room for"),
        (SOUND[:SIZES] + struct.pack("<qq", 2**40, 2**40) + SOUND[SIZES + 16 :], "damaged"),
        (SOUND[:SIZES] + struct.pack("<qq", 2**30, 3) + SOUND[SIZES + 16 :], "damaged"),
        (SOUND[:SIZES] + struct.pack("<qq", -1, 3) + SOUND[SIZES + 16 :], "damaged"),
        (SOUND[:28] + struct.pack("<i", 1) + SOUND[32:], "sparse"),
        (params({"a": np.zeros(1)}, names=["a", "b"]), "2 names for 1 arrays"),
        (params({"a": np.zeros(1), "b": np.zeros(1)}, names=["a", "a"]), "two arrays named"),
    ],
)
def test_damaged_files_of_mxnet_are_refused(tmp_path, content, reason):
    (tmp_path / "net.params").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        read(tmp_path / "net.params")


# At full rank


def of_onnx(tmp_path):
    model = simple("LSTM", 2, direction="bidirectional")
    return saved(tmp_path, model), "net.rnn", lambda x: onnx_states(model, x)


def of_flax(tmp_path):
    draw = Draw()
    step, n_states = flax_gru(draw, "cell/{}/{}".format)
    path = written(tmp_path, tree_of(draw.state))
    return path, "cell", lambda x: run(step, torch.from_numpy(x).double(), n_states).numpy()


def of_mxnet(tmp_path):
    draw = Draw()
    step, n_states = mxnet_step("RNN", *mxnet_parts(draw, "rnn0_l0_", "RNN"))
    path = tmp_path / "net.params"
    path.write_bytes(params({key: tensor.numpy() for key, tensor in draw.state.items()}))
    return path, "rnn0", lambda x: run(step, torch.from_numpy(x).double(), n_states).numpy()


@pytest.mark.parametrize("made", [of_onnx, of_flax, of_mxnet], ids=lambda made: made.__name__)
def test_a_model_factorized_at_full_rank_gives_the_hidden_states_of_its_framework(tmp_path, made):
    path, name, expected = made(tmp_path)
    kinds, x = ("input", "recurrent"), drawn(T, B, I)
    result = btcompress.factorize(path, cp_rank=1, tucker_rank=99, matrices=kinds, allow_growth=True)
    assert set(result.matrices) == {key for key in result.outline() if key.startswith(f"{name}.weight_")}
    dense = from_state_dict(btcompress.to_dense(result))
    x = x.astype(str(next(iter(dense.tensors.values())).dtype).removeprefix("torch."))
    np.testing.assert_allclose(states(torchs(dense, name), x), expected(x), atol=1e-5)
    assert result.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
