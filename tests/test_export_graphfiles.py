"""Results as ONNX files: as small as they are, checked, whole or not at all."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import btcompress
from btcompress import BTLSTM
from btcompress.checkpoint import from_state_dict
from btcompress.contraction.layout import plan_layout
from btcompress.errors import BTCompressError, OutputError
from btcompress.export import GraphRequest, cells, checking, export_graphs, graphs, integers
from btcompress.export.graphfiles import RECORD, graph_of
from btcompress.export.modules import layer_module
from btcompress.export.targets import chosen_lstms
from btcompress.export.weights import Weights
from btcompress.packing import Integers
from btcompress.shapes import BlockTermShape, MatrixShape
from lowrankresults import low_rank_result
from test_export_graphs import inputs_of, module_of, operators

BOTH = ("input", "recurrent")


def named(module, *names):
    return {f"{name}.{key}": value for name in names for key, value in module.state_dict().items()}


def compressed_of(module, **options):
    return btcompress.factorize(from_state_dict(named(module, "net")), **{"matrices": BOTH, **options})


def low_rank_of(module, precision=None):
    return low_rank_result(named(module, "net"), precision=precision)


def lstm_of(inputs=40, hidden=48, layers=1, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return nn.LSTM(inputs, hidden, layers, **options).to(dtype)


def run(path, x, h, c):
    feed = {"x": x.numpy(), "h0": h.numpy(), "c0": c.numpy()}
    runner = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in runner.run(None, feed)]


#: What is stored, and the bits of its numbers.
STORED = {
    "dense, 4 bits": (lambda module: compressed_of(module, bits=4), 4),
    "dense, 8 bits, small groups": (lambda module: compressed_of(module, bits=8, group=8), 8),
    "dense, 3 bits": (lambda module: compressed_of(module, bits=3), 3),
    "dense, 2 bits, large groups": (lambda module: compressed_of(module, bits=2, group=128), 2),
    "low rank, 5 bits": (lambda module: low_rank_of(module, Integers(5, 16)), 5),
    "low rank, 4 bits": (lambda module: low_rank_of(module, Integers(4)), 4),
    "block terms, 4 bits": (lambda module: compressed_of(module, cp_rank=2, tucker_rank=3, bits=4), 4),
    "low rank, float16": (lambda module: low_rank_of(module, torch.float16), 16),
    "others in bfloat16": (lambda module: compressed_of(module, cp_rank=2, others="bfloat16"), 32),
}


@pytest.mark.parametrize("dequantize", ["load", "run"])
@pytest.mark.parametrize("what", STORED)
def test_numbers_in_few_bits_stay_so_in_the_file_and_have_the_same_values(what, dequantize, tmp_path):
    make, bits = STORED[what]
    # 44 columns are no whole number of groups of 8 or 32.
    compressed = make(lstm_of(44, 52))
    (graph,) = export_graphs(compressed, tmp_path / "out.onnx", GraphRequest(dequantize=dequantize))
    assert graph.error < 2e-6
    assert graph.n_bytes == graph.path.stat().st_size
    assert graph.n_bytes - compressed.n_bytes < 10_000
    proto = onnx.load(graph.path)
    assert (operators(proto.graph)["DequantizeLinear"] > 0) == (bits <= 8 and dequantize == "run")
    assert any(each.data_type == onnx.TensorProto.UINT4 for each in proto.graph.initializer) == (bits == 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_are_those_of_the_tensors_own_dtype(dtype, tmp_path):
    for precision in (None, Integers(4)):
        compressed = low_rank_of(lstm_of(dtype=dtype), precision)
        (graph,) = export_graphs(compressed, tmp_path / "out.onnx", force=True)
        assert graph.error < 2e-6


def test_a_file_is_about_as_large_as_the_tensors_that_it_holds(tmp_path):
    module = lstm_of(96, 96, 2)
    for compressed in (low_rank_of(module), low_rank_of(module, Integers(4)), compressed_of(module, cp_rank=2)):
        for form in ("lstm", "scan"):
            (graph,) = export_graphs(compressed, tmp_path / "out.onnx", GraphRequest(form=form), force=True)
            assert graph.n_bytes - compressed.n_bytes < max(10_000, 0.05 * compressed.n_bytes)


def test_the_file_computes_what_the_module_does_with_any_steps_and_batch(tmp_path):
    compressed = low_rank_of(lstm_of(layers=2, bidirectional=True))
    (graph,) = export_graphs(compressed, tmp_path / "out.onnx", GraphRequest(steps=50, batch=16))
    module = layer_module(compressed, chosen_lstms(compressed, None)[0])
    for n_steps, batch in ((1, 1), (7, 2), (3, 5)):
        x, h, c = torch.randn(n_steps, batch, 40), torch.randn(4, batch, 48), torch.randn(4, batch, 48)
        torch.testing.assert_close(run(graph.path, x, h, c), list(module(x, h, c)), atol=1e-5, rtol=0)
    assert set(graph.forms) == {"l0", "l0_reverse", "l1", "l1_reverse"}


def test_a_graph_says_what_it_was_made_of(tmp_path):
    compressed = low_rank_of(lstm_of())
    (graph,) = export_graphs(compressed, tmp_path / "out.onnx")
    proto = onnx.load(graph.path)
    (record,) = (json.loads(each.value) for each in proto.metadata_props if each.key == RECORD)
    assert (record["lstm"], record["forms"]) == ("net", dict(graph.forms))
    assert set(record["matrices"]) == {"weight_ih_l0", "weight_hh_l0"}
    assert (proto.producer_name, proto.producer_version) == ("btcompress", btcompress.__version__)


def test_the_same_export_gives_the_same_bytes(tmp_path):
    compressed = low_rank_of(lstm_of(), Integers(4))
    for request in (GraphRequest(), GraphRequest(int8=True)):
        first, second = (
            export_graphs(compressed, tmp_path / name, request, force=True)[0].path.read_bytes() for name in "ab"
        )
        assert first == second


@pytest.mark.parametrize("what", ["low rank", "low rank, 8 bits", "dense, 4 bits"])
def test_integers_compute_within_the_steps_and_the_error_is_told(what, tmp_path):
    module = lstm_of(128, 160)
    compressed = {
        "low rank": lambda: low_rank_of(module),
        "low rank, 8 bits": lambda: low_rank_of(module, Integers(8)),
        "dense, 4 bits": lambda: compressed_of(module, bits=4),
    }[what]()
    (plain,) = export_graphs(compressed, tmp_path / "plain.onnx", GraphRequest(form="scan"))
    (graph,) = export_graphs(compressed, tmp_path / "int8.onnx", GraphRequest(int8=True, form="scan"))
    proto = onnx.load(graph.path)
    (scan,) = (node for node in proto.graph.node if node.op_type == "Scan")
    (body,) = (each.g for each in scan.attribute if each.name == "body")
    assert operators(body)["MatMulInteger"] == (1 if what == "dense, 4 bits" else 2)
    assert operators(proto.graph)["MatMul"] == 0
    assert 0 < graph.int8_error < 0.2
    assert graph.error < 2e-6
    x, h, c = torch.randn(9, 2, 128), torch.randn(1, 2, 160), torch.randn(1, 2, 160)
    floats, whole = (torch.cat([each.flatten() for each in run(each.path, x, h, c)]) for each in (plain, graph))
    assert 0 < (floats - whole).abs().max() < 0.2
    if what == "low rank":
        assert graph.n_bytes <= 0.3 * plain.n_bytes
    assert [each.key for each in proto.metadata_props] == [RECORD]


def test_several_lstms_are_several_files(tmp_path):
    compressed = low_rank_result(named(lstm_of(), "a", "b.c"))
    told = []
    found = export_graphs(compressed, tmp_path / "out.onnx", on_graph=told.append)
    assert [each.path.name for each in found] == ["out.a.onnx", "out.b.c.onnx"] == [each.name for each in told]
    (one,) = export_graphs(compressed, tmp_path / "out.onnx", lstm="b.c")
    assert one.path.read_bytes() == found[1].path.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        export_graphs(compressed, tmp_path / "out.onnx")


def test_a_cell_of_a_result(tmp_path):
    torch.manual_seed(0)
    compressed = low_rank_of(nn.LSTMCell(40, 48))
    (graph,) = export_graphs(compressed, tmp_path / "out.onnx", GraphRequest(lengths=True, batch_first=True))
    assert graph.error < 2e-6
    assert dict(graph.forms).keys() == {"l0"}


def test_a_graph_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    compressed = low_rank_of(lstm_of())
    monkeypatch.setitem(cells._CELLS, "lstm", replace(cells.cell_of("lstm"), gates=(0, 1, 2, 3)))
    with pytest.raises(BTCompressError, match="off by"):
        export_graphs(compressed, tmp_path / "out.onnx", GraphRequest(form="lstm"))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_in_order_is_not_written(tmp_path, monkeypatch):
    compressed = low_rank_of(lstm_of())
    monkeypatch.setattr(graphs.Nodes, "name", lambda self, hint: hint)
    with pytest.raises(BTCompressError, match="not in order"):
        export_graphs(compressed, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnx_ir"])
def test_what_is_missing_is_said_before_anything_else(missing, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(BTCompressError, match=rf"needs {missing}.*pip install 'btcompress\[onnx\]'"):
        export_graphs(tmp_path / "none.safetensors", tmp_path / "out.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(integers, "find_spec", lambda _: None)
    with pytest.raises(BTCompressError, match="needs onnxruntime"):
        export_graphs(tmp_path / "none.safetensors", tmp_path / "out.onnx", GraphRequest(int8=True))


def test_without_onnxruntime_a_graph_is_written_unchecked_and_that_is_said(tmp_path, monkeypatch):
    compressed = low_rank_of(lstm_of())
    monkeypatch.setattr("btcompress.export.graphfiles.has_runtime", lambda: False)
    (graph,) = export_graphs(compressed, tmp_path / "out.onnx")
    assert graph.error is None
    assert "not compared" in graph.notices[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch": 0}, "batch must be a whole number from 1"),
        ({"steps": 1.5}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"form": "loop"}, "form must be auto, operator, scan or lstm, but 'loop' was given"),
        ({"dequantize": "never"}, "dequantize must be load or run"),
    ],
)
def test_requests_are_checked_when_made(options, match):
    with pytest.raises(BTCompressError, match=match):
        GraphRequest(**options)


def test_what_is_told_of_a_graph_is_plain_json(tmp_path):
    compressed = low_rank_of(lstm_of())
    (graph,) = export_graphs(compressed, tmp_path / "out.onnx")
    told = json.loads(json.dumps(graph.to_dict()))
    assert told["path"] == str(tmp_path / "out.onnx")
    assert np.isclose(told["error"], graph.error)


def test_no_file_is_written_where_one_of_several_fails(tmp_path, monkeypatch):
    compressed = low_rank_result(named(lstm_of(), "a", "b"))
    checked = []

    def fails_at_last(path):
        checked.append(path)
        if len(checked) == 2:
            raise BTCompressError("not in order")

    monkeypatch.setattr("btcompress.export.graphfiles.check_operators", fails_at_last)
    with pytest.raises(BTCompressError, match="not in order"):
        export_graphs(compressed, tmp_path / "out.onnx")
    assert len(checked) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["low rank", "order 3"])
def test_integers_of_the_operator_are_of_dense_matrices(kind, tmp_path):
    module = module_of(kind, layers=2, bidirectional=True)
    request = GraphRequest(int8=True, form="lstm")
    proto, forms, _ = graph_of(Weights.of_module("", module), request)
    (tmp_path / "float.onnx").write_bytes(proto.SerializeToString())
    integers.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    after = operators(onnx.load(tmp_path / "int8.onnx").graph)
    assert set(forms.values()) == {"lstm"}
    assert (after["DynamicQuantizeLSTM"], after["LSTM"], after["MatMul"]) == (4, 0, 0)
    inputs = dict(zip(("x", "h0", "c0"), inputs_of(module), strict=True))
    floats, whole = (checking.run(tmp_path / name, inputs) for name in ("float.onnx", "int8.onnx"))
    assert 0 < checking.relative_error(whole, floats) < 0.3


@pytest.mark.parametrize("kind", ["Kronecker", "block terms", "order 3", "separate"])
def test_integers_compute_by_factors_of_every_form(kind, tmp_path):
    module = module_of(kind)
    request = GraphRequest(int8=True)
    proto, _, _ = graph_of(Weights.of_module("", module), request)
    (tmp_path / "float.onnx").write_bytes(proto.SerializeToString())
    integers.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    before, after = (operators(onnx.load(tmp_path / name).graph) for name in ("float.onnx", "int8.onnx"))
    assert before["MatMul"] == after["MatMulInteger"] > 0
    assert after["MatMul"] == 0
    inputs = dict(zip(("x", "h0", "c0"), inputs_of(module), strict=True))
    floats, whole = (checking.run(tmp_path / name, inputs) for name in ("float.onnx", "int8.onnx"))
    assert 0 < checking.relative_error(whole, floats) < 0.3


def test_the_stream_on_the_page_about_deploying_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "deploying.md").read_text()
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if '"lstm.onnx"' in each)
    compressed = low_rank_of(lstm_of(layers=2, bidirectional=True))
    export_graphs(compressed, tmp_path / "lstm.onnx")
    monkeypatch.chdir(tmp_path)
    found: dict[str, np.ndarray] = {}
    exec(code, found)
    assert found["y"].shape == (1, 1, 96)
    assert found["h"].shape == found["c"].shape == (4, 1, 48)


def test_integers_of_stacks_of_tall_matrices_have_one_scale(tmp_path):
    part = BlockTermShape((3, 6, 5, 6), (8, 2, 2, 2), (4, 4, 4, 4), 2, 540, 64, 4)
    layout = plan_layout(part.n_blocks, part.in_modes, part.out_modes, part.ranks)
    assert any(len(step.right) == 3 and max(step.right) >= 64 for step in layout.steps)
    module = BTLSTM(540, 16, shapes={"weight_ih_l0": MatrixShape(part)})
    proto, _, _ = graph_of(Weights.of_module("", module), GraphRequest(int8=True))
    (tmp_path / "float.onnx").write_bytes(proto.SerializeToString())
    integers.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    assert operators(onnx.load(tmp_path / "int8.onnx").graph)["MatMul"] == 0
    inputs = dict(zip(("x", "h0", "c0"), inputs_of(module), strict=True))
    floats, whole = (checking.run(tmp_path / name, inputs) for name in ("float.onnx", "int8.onnx"))
    assert 0 < checking.relative_error(whole, floats) < 0.3


def test_final_states_that_are_next_to_nothing_are_held_against_all_outputs():
    """Where gates are shut at the last step, rounding is large beside ``hn``, and small beside what the LSTM gives."""
    y, cn = torch.rand(4, 1, 2), torch.rand(1, 1, 2)
    y[-1] = 1e-8
    right, found = (y, y[-1:], cn), (y + 1e-7, y[-1:] + 1e-7, cn)
    assert checking.layer_error(found, right) < 1e-6 < checking.relative_error(found, right)
    assert checking.layer_error((y, y[-1:] + 0.5, cn), right) > 0.4
    assert checking.layer_error((y, y[-1:], cn + 0.5), right) > 0.4
    assert checking.layer_error((y[:2], y[-1:], cn), right) == torch.inf
