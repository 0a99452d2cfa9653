"""The command that exports: which files it writes, what it says of them, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.export import DenseExport, ExportedGraph, ExportedProgram, GraphRequest
from btcompress.export.checking import session
from btcompress.export.modules import layer_module
from btcompress.export.targets import chosen_lstms
from btcompress.memory import size_text


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and its result: two LSTMs, at whose states nothing was factorized, and a linear layer."""
    folder = tmp_path_factory.mktemp("files")
    deep = nn.ModuleDict({"er": nn.LSTM(6, 5, 2)})
    torch.save(nn.ModuleDict({"rnn": nn.LSTM(6, 5), "deep": deep, "head": nn.Linear(5, 3)}).state_dict(), folder / "m")
    compressed = btcompress.factorize(folder / "m", tucker_rank=2)
    btcompress.save(compressed, folder / "model.bt.safetensors")
    return folder / "model.bt.safetensors"


@pytest.fixture
def result(files, tmp_path):
    return Path(shutil.copy(files, tmp_path))


def made(path):
    return {each.name for each in path.parent.iterdir()} - {path.name}


def test_each_lstm_becomes_a_graph_beside_the_result_that_runs_as_the_module_does(result, run):
    out, err = run("export", result, "--to", "onnx")
    assert err == ""
    files = {name: result.parent / f"model.{name}.onnx" for name in ("rnn", "deep.er")}
    assert made(result) == {file.name for file in files.values()}
    compressed = btcompress.load(result)
    for name, file in files.items():
        assert f"Wrote {file}" in out
        (entry,) = chosen_lstms(compressed, name)
        x, h, c = (torch.randn(4, 2, 6), *torch.randn(2, entry.num_layers, 2, 5))
        outputs = session(file, threads=1).run(None, {"x": x.numpy(), "h0": h.numpy(), "c0": c.numpy()})
        for own, right in zip(outputs, layer_module(compressed, entry)(x, h, c), strict=True):
            np.testing.assert_allclose(own, right.numpy(), atol=1e-6)


def test_what_is_shown_and_the_json_say_the_same_of_a_file(result, run):
    out, _ = run("export", result, "--to", "onnx", "--lstm", "deep.er", "--int8", "--onnx-form", "scan")
    target = result.parent / "model.onnx"
    value = json.loads(run("export", result, "--to", "onnx", "--lstm", "deep.er", "--int8", "--force", "--json")[0])
    (file,) = value["files"]
    own = sum(tensor.nbytes for name, tensor in btcompress.load(result).tensors.items() if name.startswith("deep.er"))
    assert (value["to"], file["lstm"], file["path"]) == ("onnx", "deep.er", str(target))
    assert file["forms"] == {"l0": "scan", "l1": "scan"}
    assert (file["n_bytes"], file["tensor_bytes"]) == (target.stat().st_size, own)
    assert 0 <= file["error"] < 1e-5 < file["int8_error"]
    for words in ("deep.er", "l0, l1: Scan over steps", size_text(own), "error of", f"{file['int8_error']:.1e}"):
        assert words in out


def test_dense_checkpoint_has_the_ending_and_the_keys_of_the_original(result, run):
    out, err = run("export", result, "--to", "dense")
    target = result.parent / "model.dense.pt"
    assert (made(result), err) == ({target.name}, "")
    for words in ("whole checkpoint", f"Wrote {target}"):
        assert words in out
    dense = btcompress.load(result).dense_state_dict()
    found = torch.load(target, weights_only=True)
    assert list(found) == list(dense)
    assert all(torch.equal(found[key], dense[key]) for key in dense)
    value = json.loads(run("export", result, "--to", "dense", "-o", result.parent / "d.safetensors", "--json")[0])
    (file,) = value["files"]
    size = (result.parent / "d.safetensors").stat().st_size
    assert (value["to"], file["path"], file["n_bytes"]) == ("dense", str(result.parent / "d.safetensors"), size)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("m.pt", "pt"), ("m.jit", "pt"), ("m.safetensors", "safetensors"), ("m.safetensors.index.json", "safetensors")],
)
def test_dense_checkpoint_ends_as_the_original_did(name, ending, result, run, monkeypatch):
    opened, seen = btcompress.load(result), []

    def export_dense(compressed, path, force):
        seen.append(path)
        return DenseExport(path, 1, ())

    monkeypatch.setattr("btcompress.models.load", lambda _: replace(opened, source=replace(opened.source, name=name)))
    monkeypatch.setattr("btcompress.export.export_dense", export_dense, raising=False)
    run("export", result, "--to", "dense")
    assert seen == [result.parent / f"model.dense.{ending}"]


def test_programs_are_of_each_lstm_and_options_reach_them(result, run, monkeypatch):
    value = json.loads(run("export", result, "--to", "torch", "--lstm", "rnn", "--batch-first", "--json")[0])
    (file,) = value["files"]
    assert (file["lstm"], file["path"]) == ("rnn", str(result.parent / "model.pt2"))
    assert file["tensor_bytes"] < file["n_bytes"] == (result.parent / "model.pt2").stat().st_size
    x, h, c = (torch.randn(4, 7, 6), *torch.randn(2, 1, 4, 5))
    found = torch.export.load(result.parent / "model.pt2").module()(x, h, c)
    (entry,) = chosen_lstms(btcompress.load(result), "rnn")
    for own, right in zip(found, layer_module(btcompress.load(result), entry, batch_first=True)(x, h, c), strict=True):
        torch.testing.assert_close(own, right)
    seen = []

    def export_program(_, path, **options):
        seen.append(options)
        return (ExportedProgram(path, "rnn", 9, 8, 1e-7),)

    monkeypatch.setattr("btcompress.export.export_program", export_program, raising=False)
    run("export", result, "--to", "torch", "--one-step", "--force")
    run("export", result, "--to", "torch", "--batch-first")
    assert seen == [
        {"lstm": None, "force": True, "one_step": True},
        {"lstm": None, "force": False, "batch_first": True},
    ]


def test_options_reach_the_request(result, run, monkeypatch):
    seen = []

    def export_graphs(compressed, path, request, **options):
        seen.append((compressed.source.name, path, request, options))
        return (ExportedGraph(path, "rnn", {"l0": "scan"}, 100, 18),)

    monkeypatch.setattr("btcompress.export.export_graphs", export_graphs, raising=False)
    options = "--lengths --batch-first --int8 --onnx-form scan --dequantize run --batch 16 --steps 50 --lstm rnn -f"
    run("export", result, "--to", "onnx", *options.split(), "-o", result.parent / "o.onnx")
    run("export", result, "--to", "onnx")
    whole = GraphRequest(16, 50, "scan", True, True, True, "run")
    assert seen == [
        ("m", result.parent / "o.onnx", whole, {"lstm": "rnn", "force": True}),
        ("m", result.parent / "model.onnx", GraphRequest(), {"lstm": None, "force": False}),
    ]


def test_large_errors_of_integers_and_what_was_not_compared_are_told_with_the_name(result, run, monkeypatch):
    graphs = (
        ExportedGraph(result.parent / "a", "rnn", {"l0": "lstm"}, 100, 18, int8_error=0.31, warnings=("measure it",)),
        ExportedGraph(result.parent / "b", "", {"l0": "lstm"}, 100, 18, notices=("not \x1b compared",)),
    )
    monkeypatch.setattr("btcompress.export.export_graphs", lambda *_, **__: graphs, raising=False)
    out, _ = run("export", result, "--to", "onnx")
    for words in ("3.1e-01", "Warning: rnn: measure it", "Note: (top): not \\x1b compared"):
        assert words in out


def test_warned_of_where_integers_change_much(result, run, monkeypatch):
    monkeypatch.setattr("btcompress.export.graphfiles._LARGE", 1e-9)
    out, _ = run("export", result, "--to", "onnx", "--lstm", "rnn", "--int8")
    assert "Warning: computed in integers, outputs on random inputs are off by" in out
    assert re.search(r"Warning: with products in integers the file takes [\d.]+ kB, and [\d.]+ kB without", out)
    assert "measure your task" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "dense", "--int8"), "--to dense does not take --int8. Leave that out, or take --to onnx;"),
        (("--to", "dense", "--batch-first"), "take --to onnx or --to torch; --to dense takes none of these options."),
        (("--to", "torch", "--steps", "5", "--lengths"), "--to torch does not take --steps, --lengths."),
        (("--to", "pickle"), "'pickle' is not one of 'onnx', 'dense', 'torch'"),
        ((), "Missing option '--to'"),
        (("--to", "onnx", "--batch", "0"), "batch must be a whole number from 1 to 1,000,000, but 0 was given"),
        (("--to", "onnx", "--lstm", "other\n"), "there is no LSTM named 'other\\n'"),
        (("--to", "onnx", "-o", "nowhere/x.onnx"), "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line_and_nothing_is_written(options, words, result, run):
    out, err = run("export", result, *options, code=2, cwd=result.parent)
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert made(result) == set()


def test_targets_are_checked_before_any_graph_is_made(result, run, monkeypatch):
    (result.parent / "model.deep.er.onnx").write_text("precious")
    monkeypatch.setattr("btcompress.export.graphfiles.graph_of", lambda *_: pytest.fail("work was done"))
    _, err = run("export", result, "--to", "onnx", code=2)
    assert "model.deep.er.onnx already exists" in err
    assert made(result) == {"model.deep.er.onnx"}
    _, err = run("export", result, "--to", "onnx", "--lstm", "rnn", "--force", "-o", result, code=2)
    assert "is a file that is read, and is never overwritten" in err


def test_what_takes_more_than_there_is_is_refused_before_it_is_made(result, run, monkeypatch):
    monkeypatch.setattr("btcompress.export.graphfiles.graph_of", lambda *_: pytest.fail("work was done"))
    _, err = run("export", result, "--to", "onnx", "--lstm", "rnn", "--max-memory", "5k", code=2)
    assert "The graph of rnn would take" in err
    monkeypatch.setattr("btcompress.export.graphfiles._MOST_BYTES", 10)
    _, err = run("export", result, "--to", "onnx", "--lstm", "rnn", code=2)
    assert "a graph has at most 2 GB. Factorize it further, or export it with --to torch" in err
    assert made(result) == set()


def test_what_is_not_installed_is_named(result, run, monkeypatch):
    monkeypatch.setattr("btcompress.export.graphs.find_spec", lambda name: None)
    _, err = run("export", result, "--to", "onnx", code=2)
    assert "onnx, which is not installed here. Run pip install 'btcompress[onnx]'" in err
    assert made(result) == set()


def test_result_that_is_written_counts_where_stdout_is_gone(result, run, monkeypatch):
    monkeypatch.setattr("btcompress.display.console.lost_output", lambda: "No space left on device")
    _, err = run("export", result, "--to", "onnx", "--lstm", "rnn")
    assert f"Wrote {result.parent / 'model.onnx'}, but standard output did not take" in err
