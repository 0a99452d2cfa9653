"""What a bench measures in ONNX Runtime, beside torch: the same LSTM, in floats and integers, by the same threads."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.benching import graphs, machine, measuring
from btcompress.benching.graphs import block_term_graphs, dense_graphs
from btcompress.benching.machine import in_threads
from btcompress.benching.ways import inputs_of
from btcompress.checkpoint import find_recurrent
from btcompress.errors import BTCompressError
from btcompress.export.modules import dense_module, layer_module
from btcompress.reporting.speed import noise_warning, speed_advice
from btcompress.timings import BenchCase, WayTiming

TORCH = ["dense_onednn", "dense_native", "int8", "block_terms"]
ONNX = [
    "onnx_dense",
    "onnx_dense_int8",
    "onnx_block_terms",
    "onnx_block_terms_int8",
    "onnx_block_terms_int8_lstm",
]
LSTMS = {
    "two layers, both ways": nn.LSTM(6, 5, num_layers=2, bidirectional=True),
    "projected, without bias": nn.LSTM(6, 5, bias=False, proj_size=3),
    "cell": nn.LSTMCell(6, 5),
}


def factorized(model):
    return btcompress.factorize(model, tucker_rank=2, matrices=("input", "recurrent"), max_sweeps=5)


def bench(compressed, **options):
    return btcompress.bench(compressed, **{"batch": (2,), "steps": (3,), "seconds": 0.01, **options})


@pytest.mark.parametrize("name", LSTMS)
def test_all_graphs_compute_the_lstm_that_torch_does(name):
    compressed = factorized(nn.ModuleDict({"rnn": LSTMS[name]}))
    (entry,) = find_recurrent(compressed.outline())
    x, state = inputs_of(entry, 2, 3, torch.float32, "cpu", 0)
    module = dense_module(entry, compressed.dense_state_dict(), torch.float32, "cpu")
    dense, left_out = dense_graphs(module, entry)
    own, left_out_too = block_term_graphs(compressed, entry, 2, 3)
    # ONNX's operator has no projections.
    written = ONNX if entry.proj_size == 0 else ONNX[:-1]
    assert [each.way for each in (*dense, *own)] == written
    assert left_out == []
    assert [each.way for each in left_out_too] == ONNX[len(written) :]
    whole = state if entry.kind == "lstm" else tuple(each.unsqueeze(0) for each in state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        outputs = layer_module(compressed, entry)(x, *whole)
    expected = [each.detach().numpy() for each in outputs]
    for graph in (*dense, *own):
        allowed = 0.1 if "int8" in graph.way else 1e-5
        for found, right in zip(graph.call(x, state)(), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=allowed, err_msg=graph.way)
    assert {each.n_params for each in dense} == {sum(p.numel() for p in LSTMS[name].parameters())}
    assert {each.n_params for each in own} == {compressed.n_params}


def operators(path):
    import onnx

    found = onnx.load(path).graph.node
    bodies = [each.g.node for node in found for each in node.attribute if each.name == "body"]
    return {node.op_type for nodes in (found, *bodies) for node in nodes}


def test_dense_graphs_have_the_operator_and_integers_are_integers(monkeypatch):
    seen, made = [], graphs.session

    def session(path, **options):
        seen.append((operators(path), options))
        return made(path, **options)

    monkeypatch.setattr(graphs, "session", session)
    model = nn.ModuleDict({"a": nn.LSTM(16, 16), "b": nn.LSTM(16, 16, proj_size=3)})
    compressed = btcompress.factorize(model, target_ratio=3, matrices=("input", "recurrent"), max_sweeps=5)
    with in_threads(2):
        for entry in find_recurrent(compressed.outline()):
            dense_graphs(dense_module(entry, model.state_dict(), torch.float32, "cpu"), entry)
            block_term_graphs(compressed, entry, 1, 1)
    dense, dense_int8, _, own_int8, operator_int8, projected, *_ = (kinds for kinds, _ in seen)
    assert "LSTM" in dense
    assert "DynamicQuantizeLSTM" in dense_int8
    assert own_int8 >= {"Scan", "MatMulInteger"}
    assert "DynamicQuantizeLSTM" in operator_int8
    assert "Scan" in projected
    assert "LSTM" not in projected
    assert [options for _, options in seen] == [{"threads": 2, "takes_turns": True}] * 9


def test_both_runtimes_take_turns_in_one_run(monkeypatch):
    taken, taking = [], measuring.take_turns

    def take_turns(calls, *more):
        taken.append(list(calls))
        return taking(calls, *more)

    monkeypatch.setattr(measuring, "take_turns", take_turns)
    report = bench(factorized(nn.LSTM(6, 5)), runtime=("torch", "onnx"), train=True)
    assert taken == [[*TORCH, *ONNX], [way for way in TORCH if way != "int8"]]
    prediction, training = report.cases
    assert [way.way for way in prediction.ways] == [*TORCH, *ONNX]
    assert {(way.peak_bytes, way.operations) for way in prediction.ways if way.way in ONNX} == {(None, None)}
    assert [(each.way, each.reason) for each in training.left_out if each.way in ONNX] == [
        (way, "it predicts only") for way in ONNX
    ]
    assert (training.onnx_ratio, prediction.onnx_ratio > 0) == (None, True)
    assert report.machine.onnxruntime == __import__("onnxruntime").__version__
    (alone,) = bench(factorized(nn.LSTM(6, 5)), runtime="onnx").cases
    assert ([way.way for way in alone.ways], alone.ratio, alone.left_out) == (ONNX, None, ())
    assert bench(factorized(nn.LSTM(6, 5))).machine.onnxruntime is None


def test_threads_of_one_runtime_sleep_before_the_other_has_its_turn(monkeypatch):
    rests, taken = [], []

    def take_turns(calls, *_):
        for timed in calls.values():
            with timed.around():
                taken.append(len(rests))
        raise KeyboardInterrupt

    monkeypatch.setattr(machine.time, "sleep", rests.append)
    monkeypatch.setattr(measuring, "take_turns", take_turns)
    compressed, both = factorized(nn.LSTM(6, 5)), ("torch", "onnx")
    for options in ({"threads": 2}, {"runtime": both, "threads": 1}, {"runtime": both, "threads": 2}):
        assert rests == []
        with pytest.raises(KeyboardInterrupt):
            bench(compressed, **options)
    assert len(rests) == 9
    assert taken[-9:] == list(range(9))


def test_dense_graphs_are_made_once_and_those_of_block_terms_for_each_case(monkeypatch):
    requests, making = [], graphs.graph_of

    def graph_of(weights, request):
        is_dense = weights.layers[0][0].w.shape is None
        requests.append((is_dense, request.batch, request.steps, request.int8, request.form))
        return making(weights, request)

    monkeypatch.setattr(graphs, "graph_of", graph_of)
    bench(factorized(nn.LSTM(6, 5)), runtime="onnx", batch=(1, 2))
    assert requests == [
        (True, 1, 1, False, "operator"),
        (True, 1, 1, True, "operator"),
        *[(False, batch, 3, *own) for batch in (1, 2) for own in ((False, "auto"), (True, "auto"), (True, "operator"))],
    ]


def test_a_graph_that_cannot_be_written_is_left_out_with_the_reason(monkeypatch):
    def graph_of(weights, request):
        raise BTCompressError("too large")

    monkeypatch.setattr(graphs, "graph_of", graph_of)
    (case,) = bench(factorized(nn.LSTM(6, 5)), runtime=("torch", "onnx")).cases
    assert [way.way for way in case.ways] == TORCH
    assert {each.reason for each in case.left_out} == {"it cannot be written (too large)"}
    assert [each.way for each in case.left_out] == ONNX


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "tflite"}, "--runtime tflite is no list of runtimes. Give torch, onnx, or both."),
        ({"runtime": ()}, "--runtime nothing is no list"),
        ({"runtime": "onnx", "train": True}, "ONNX Runtime trains nothing."),
        ({"runtime": ("onnx", "onnx"), "device": "cuda"}, "ONNX Runtime is measured on the CPU alone."),
    ],
)
def test_runtimes_that_there_are_not_are_refused(options, words):
    with pytest.raises(BTCompressError) as refused:
        bench(factorized(nn.LSTM(6, 5)), **options)
    assert words in str(refused.value)


@pytest.mark.parametrize("missing", ["graphs", "integers"])
def test_what_is_not_installed_is_said_before_anything_is_measured(missing, monkeypatch):
    monkeypatch.setattr(f"btcompress.export.{missing}.find_spec", lambda name: None)
    monkeypatch.setattr(measuring, "take_turns", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(BTCompressError, match=r"pip install 'btcompress\[onnx\]'"):
        bench(factorized(nn.LSTM(6, 5)), runtime="onnx")


def case(batch, **seconds):
    ways = (WayTiming(name, each, (each, each * 1.1), 0.0, 8, 1, 10) for name, each in seconds.items())
    return BenchCase("rnn", "prediction", batch, 1, tuple(ways))


def test_advice_compares_within_each_runtime_and_integers_with_nothing():
    cases = [
        case(1, dense_native=2.0, block_terms=1.0, onnx_dense=0.3, onnx_block_terms=0.1, onnx_block_terms_int8=9.0),
        case(16, dense_native=2.0, block_terms=2.0, onnx_dense=0.1, onnx_block_terms=0.2),
    ]
    assert [each.onnx_ratio for each in cases] == [pytest.approx(3.0), pytest.approx(0.5)]
    advice = list(speed_advice(cases))
    assert advice[:2] == [
        "At batch 1 this file runs 2.0 times as fast as the dense LSTM; at batch 16 no faster.",
        "In ONNX Runtime at batch 1 this file runs 3.0 times as fast as the dense LSTM; at batch 16 2.0 times as slow.",
    ]
    assert "Where it is slower" in advice[2]
    assert advice[3:] == []
    steady = list(noise_warning(cases))
    noisy = WayTiming("onnx_dense", 1.0, (1.0, 1.0), 0.2, 8, 1, 10)
    unused = WayTiming("onnx_dense_int8", 1.0, (1.0, 1.0), 0.2, 8, 1, 10)
    (warning,) = noise_warning([BenchCase("rnn", "prediction", 1, 1, (noisy, unused))])
    assert steady == []
    assert "1 of the 1 measurements" in warning


def test_advice_names_dense_integers_where_nothing_of_ours_is_as_fast():
    floats = {"onnx_dense": 0.5, "onnx_block_terms": 0.4}
    cases = [
        case(1, **floats, onnx_dense_int8=0.2, onnx_block_terms_int8=0.3),
        case(2, **floats, onnx_dense_int8=0.1, onnx_block_terms_int8=0.9),
        case(4, **floats, onnx_dense_int8=0.299, onnx_block_terms_int8=0.3),
        case(8, **floats, onnx_dense_int8=0.45),
        case(16, **floats),
    ]
    *_, advice = speed_advice(cases)
    assert advice.startswith(
        "In ONNX Runtime the dense LSTM in int8 is the fastest of all, 1.5 to 4.0 times as fast as block terms, at "
        "batch 1 and 1 step, batch 2 and 1 step. "
    )
    other = replace(cases[0], lstm="")
    assert (
        "batch 1 and 1 step of rnn, batch 1 and 1 step of the LSTM at the top."
        in list(speed_advice([cases[0], other]))[-1]
    )


def test_command_measures_records_and_report_repeats_it(tmp_path, run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    path = Path(tmp_path, "out.safetensors")
    btcompress.save(factorized(nn.ModuleDict({"rnn": nn.LSTM(6, 5)})), path)
    sizes = ("--batch", "1", "--steps", "2", "--seconds", "0.01", "--threads", "1")
    out, err = run("bench", path, *sizes, "--runtime", "torch,onnx", "--record")
    assert err == ""
    for words in ("ONNX, dense ", "ONNX, block terms, int8", "ONNX Runtime ", "Advice: In ONNX Runtime at batch 1"):
        assert words in out
        assert words in run("report", path)[0]
    (told,) = json.loads(run("report", path, "--json")[0])["bench"]["cases"]
    seconds = {way["way"]: way["seconds"] for way in told["ways"]}
    assert told["onnx_ratio"] == pytest.approx(seconds["onnx_dense"] / seconds["onnx_block_terms"])
