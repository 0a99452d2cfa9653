"""Files of ONNX, Flax and MXNet: sound ones, mutations of graphs, and what is read of them beside another reading."""

import contextlib
import math
import struct
from functools import cache

import msgspec
import numpy as np
import torch

from btcompress.checkpoint import read
from btcompress.kinds import KINDS
from btcompress.modes import ShapeRequest
from btcompress.plan import make_plan
from fuzz.files import WrongAnswerError, placed, reading
from fuzz.mutators import raw

_I, _H = 3, 4
_OPERATORS = ("Slice", "Concat", "Reshape", "Gather", "Split", "Cast", "Transpose", "LSTM", "GRU", "RNN", "Constant")
_SIZES = (0, -1, 1, 2, 3, 4, 16, 2**31, 2**62, -(2**63))
_VERSIONS = (-1, 0, 1, 5, 9, 11, 13, 17, 25, 99, 2**62)
_MXNET_TYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8", 7: "|b1", 8: "<i2", 9: "<u2"}
_MXNET_TYPES |= {10: "<u4", 11: "<u8", 12: "<u2"}
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA


def _drawn(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _graph(nodes, constants, outputs=("y",), inputs=("x",)):
    from onnx import TensorProto, helper, numpy_helper

    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    given, made = (
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, None) for each in e] for e in (inputs, outputs)
    )
    return helper.make_graph(nodes, "g", given, made, values)


@cache
def onnx_files():
    """Graphs with weights as they are, behind steps, and in the branches of an ``If``."""
    from onnx import helper

    def node(operator, *inputs, **attributes):
        return helper.make_node(operator, ["x", *inputs], ["y"], name=f"/net/{operator}", hidden_size=_H, **attributes)

    own = {"W": _drawn(1, 4 * _H, _I), "R": _drawn(1, 4 * _H, _H), "B": _drawn(1, 8 * _H), "head.weight": _drawn(2, _H)}
    cut = own | {"w": own["W"][0], "axis": np.array([0]), **{f"at{n}": np.array([n * 2 * _H]) for n in range(3)}}
    del cut["W"]
    steps = [helper.make_node("Slice", ["w", f"at{n}", f"at{n + 1}", "axis"], [f"cut{n}"]) for n in range(2)]
    steps += [
        helper.make_node("Concat", ["cut0", "cut1"], ["c"], axis=0),
        helper.make_node("Unsqueeze", ["c", "axis"], ["W"]),
    ]
    both = {"W": _drawn(2, 3 * _H, _I), "R": _drawn(2, 3 * _H, _H)}
    branch = _graph([node("LSTM", "W", "R", "B")], {}, inputs=())
    graphs = {
        "plain": _graph([node("LSTM", "W", "R", "B")], own),
        "steps": _graph([*steps, node("LSTM", "W", "R", "B")], cut),
        "both ways": _graph([node("GRU", "W", "R", linear_before_reset=1, direction="bidirectional")], both),
        "branches": _graph([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)], own),
    }
    imports = [helper.make_opsetid("", 17)]
    return {
        name: helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
        for name, graph in graphs.items()
    }


def mutate_onnx(data, rng):
    """One or a few changes of what a graph says, or of its bytes."""
    import onnx
    from google.protobuf.message import DecodeError

    if rng.random() < 0.4:
        return raw.mutate(data, rng)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        return raw.mutate(data, rng)
    for _ in range(rng.randint(1, 4)):
        _change(model, rng)
    return model.SerializeToString()


def _change(model, rng):
    nodes = list(model.graph.node)
    nodes += [inner for node in nodes for each in node.attribute if each.HasField("g") for inner in each.g.node]
    constants = list(model.graph.initializer)
    node, constant = rng.choice(nodes), rng.choice(constants)
    names = [each.name for each in constants] + [name for each in nodes for name in each.output] + ["", "x", "none"]
    action = rng.randrange(9)
    if action == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif action == 1:
        node.op_type = rng.choice(_OPERATORS)
    elif action == 2 and constant.dims:
        constant.dims[rng.randrange(len(constant.dims))] = rng.choice(_SIZES)
    elif action == 3:
        constant.data_type = rng.randrange(30)
    elif action == 4 and node.attribute:
        attribute = rng.choice(list(node.attribute))
        attribute.i, attribute.type = rng.choice(_SIZES), rng.randrange(12)
    elif action == 5:
        node.input.append(rng.choice(names))
    elif action == 6 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(names)
    elif action == 7:
        model.opset_import[0].version = rng.choice(_VERSIONS)
    else:
        constant.raw_data = rng.randbytes(rng.choice((0, 1, 8, 64)))


def _packed(array):
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode((list(array.shape), str(array.dtype), array.tobytes())))


@cache
def flax_files():
    """Parameters of a cell and of a head, one array in parts."""
    cell = {f"i{gate}": {"kernel": _packed(_drawn(_I, _H))} for gate in "ifgo"}
    cell |= {f"h{gate}": {"kernel": _packed(_drawn(_H, _H)), "bias": _packed(_drawn(_H))} for gate in "ifgo"}
    head = {"kernel": _packed(_drawn(_H, 2).astype(np.float16)), "bias": _packed(np.array([True, False]))}
    parts = {"0": _packed(_drawn(5)), "1": _packed(_drawn(7))}
    whole = {"__msgpack_chunked_array__": True, "shape": {"0": 3, "1": 4}, "chunks": parts}
    trees = {"cell": {"params": {"cell": cell, "head": head}, "step": 3}, "parts": {"whole": whole, "rate": 0.5}}
    return {name: msgspec.msgpack.encode(tree) for name, tree in trees.items()}


@cache
def mxnet_files():
    """Files of every version."""
    arrays = {"arg:lstm0_l0_i2h_weight": _drawn(4 * _H, _I), "arg:lstm0_l0_h2h_weight": _drawn(4 * _H, _H)}
    arrays |= {"aux:mean": _drawn(3).astype(np.float64), "counts": np.arange(3, dtype=np.int64)}
    return {f"version {n}": _params(arrays, version) for n, version in enumerate((0, _V1, _V2, _V3))}


def _params(arrays, version):
    numbers = {"<f4": 0, "<f8": 1, "<i8": 6}
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        head = struct.pack("<Ii", version, 0) if version in (_V2, _V3) else struct.pack("<I", version)
        sizes = struct.pack(f"<I{array.ndim}{'q' if version else 'I'}", array.ndim, *array.shape)
        parts += [head if version else b"", sizes, struct.pack("<iii", 1, 0, numbers[array.dtype.str]), array.tobytes()]
    names = [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    return b"".join([*parts, struct.pack("<Q", len(names)), *names])


def check(other, name, data, folder):
    """Read the file and plan for it; what stayed under its own name is what another reading finds there.

    Args:
        other: the other reading: arrays' bytes by name.
        name: of the file.
        data: its bytes.
        folder: where it is put.
    """
    checkpoint = read(placed(folder, name, data))
    make_plan(checkpoint, ShapeRequest(), matrices=KINDS)
    with reading():
        expected = other(data)
    for key, tensor in checkpoint.tensors.items():
        ours = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        if key in expected and ours != expected[key]:
            raise WrongAnswerError("the values of a tensor: an independent reading finds others", key[:200])


def by_onnx(data):
    """Initializers of the graph whose names are theirs alone, as onnx reads them."""
    import onnx

    constants = list(onnx.ModelProto.FromString(data).graph.initializer)
    names = [each.name for each in constants]
    found = {}
    for each in constants:
        # Of what onnx does not read, nothing is compared: such a constant is left out by name.
        with contextlib.suppress(Exception):
            if names.count(each.name) == 1:
                found[each.name] = onnx.numpy_helper.to_array(each).tobytes()
    return found


def by_tree(data):
    """The arrays of a tree of Flax by their paths; those in parts apart."""
    found = {}

    def walk(tree, path):
        if isinstance(tree, dict):
            for name, each in tree.items():
                walk(each, (*path, str(name)))
        elif isinstance(tree, msgspec.msgpack.Ext) and tree.code == 1:
            found[".".join(path)] = bytes(msgspec.msgpack.decode(tree.data)[2])

    walk(msgspec.msgpack.decode(data), ())
    return found


def by_struct(data):
    """The arrays of MXNet by their names."""
    position = 16

    def take(form):
        nonlocal position
        values = struct.unpack_from(f"<{form}", data, position)
        position += struct.calcsize(f"<{form}")
        return values

    arrays = []
    for _ in range(take("Q")[0]):
        (version,) = take("I")
        if version in (_V2, _V3):
            take("i")
        known = version in (_V1, _V2, _V3)
        n_axes = take("i")[0] if known else version
        if n_axes == (-1 if version == _V3 else 0):
            arrays.append(b"")
            continue
        sizes = take(f"{n_axes}{'q' if known else 'I'}")
        n_bytes = math.prod(sizes) * np.dtype(_MXNET_TYPES[take("iii")[2]]).itemsize
        arrays.append(data[position : position + n_bytes])
        position += n_bytes
    names = [take(f"{take('Q')[0]}s")[0].decode() for _ in range(take("Q")[0])] or [str(n) for n in range(len(arrays))]
    return {name.removeprefix("arg:").removeprefix("aux:"): each for name, each in zip(names, arrays, strict=True)}
