"""A bench in a file's record: written by asking only, beside tensors that stay as they are; and shown again."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import btcompress
from btcompress.checkpoint import read_compressed, record_bench, writer
from btcompress.checkpoint.safetensorsfiles import read_tensors, write_tensors
from btcompress.errors import CheckpointError, OutputError
from btcompress.packing import Integers
from btcompress.timings import BenchCase, BenchReport, LeftOut, Machine, WayTiming
from roundedresults import in_bits

OWN = WayTiming("block_terms", 0.0005, (0.0004, 0.0006), 0.01, 31, 4, 90, 1234, 96)
DENSE = WayTiming("dense_native", 0.00145, (0.001, 0.002), 0.02, 31, 1, 300, None, 600)
CASE = BenchCase("rnn", "prediction", 1, 50, (DENSE, OWN), (LeftOut("int8", "it predicts only"),))
BENCH = BenchReport(Machine("cpu", "A \ud800 processor", 2, "2.0"), (CASE,), ("a note",), ("a warning",), ("advice",))


@pytest.fixture
def result(tmp_path):
    """A file with tied tensors and matrices in few bits."""
    lstm = nn.LSTM(12, 8)
    model = nn.ModuleDict({"rnn": lstm, "again": lstm, "head": nn.Linear(8, 5)})
    compressed = btcompress.factorize(model, tucker_rank=2, layers=("rnn.*",))
    precisions = {"rnn.weight_ih_l0": Integers(4, 8), "head.weight": Integers(5, 8)}
    path = tmp_path / "out.safetensors"
    btcompress.save(in_bits(compressed, precisions), path)
    return path


def record(path, bench=BENCH):
    record_bench(path, bench, read_compressed(path))


def header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["btcompress"])


def data(path):
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_recorded_bench_comes_back_and_nothing_else_changes(result):
    before, tensors = header(result), data(result)
    record(result)
    found = read_compressed(result)
    assert found.bench == replace(BENCH, machine=replace(BENCH.machine, name="A \\ud800 processor"))
    after = header(result)
    assert after.pop("bench")
    assert (after, data(result)) == (before, tensors)
    second = replace(BENCH, notices=("another",))
    record(result, second)
    assert read_compressed(result).bench.notices == ("another",)
    assert data(result) == tensors


def test_fields_that_later_versions_add_stay_when_a_bench_is_recorded(result):
    tensors, _ = read_tensors(result)
    text = json.dumps({**header(result), "from later": [1, {"a": None}]})
    write_tensors(result, {name: tensor.clone() for name, tensor in tensors.items()}, {"btcompress": text, "note": "x"})
    record(result)
    assert header(result)["from later"] == [1, {"a": None}]
    with safe_open(result, "pt") as file:
        assert file.metadata()["note"] == "x"


def test_mode_and_link_of_a_file_stay_when_a_bench_is_recorded(result, tmp_path):
    result.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(result)
    record(link)
    assert link.is_symlink()
    assert (result.stat().st_mode & 0o777, read_compressed(result).bench is None) == (0o640, False)


def test_bench_that_cannot_be_written_leaves_the_file_as_it_was(result, monkeypatch):
    before = result.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_tensors", full)
    with pytest.raises(OutputError, match="No space left"):
        record(result)
    assert result.read_bytes() == before
    assert list(result.parent.iterdir()) == [result]


def test_bench_is_not_recorded_where_other_bytes_came_back(result, monkeypatch):
    def other(path, tensors, metadata):
        return write_tensors(path, {**tensors, next(iter(tensors)): torch.zeros(3)}, metadata)

    before = result.read_bytes()
    monkeypatch.setattr(writer, "write_tensors", other)
    with pytest.raises((OutputError, CheckpointError)):
        record(result)
    assert result.read_bytes() == before


def test_bench_is_not_recorded_in_a_file_that_was_replaced_meanwhile(result):
    measured = read_compressed(result)
    btcompress.save(btcompress.factorize(nn.LSTM(12, 8), tucker_rank=1), result.with_name("other"))
    result.with_name("other").replace(result)
    before = result.read_bytes()
    with pytest.raises(OutputError, match="was replaced while it was measured"):
        record_bench(result, BENCH, measured)
    assert result.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda bench: bench["cases"][0]["ways"][0].update(seconds=0),
        lambda bench: bench["cases"][0]["ways"][0].update(seconds=-1.0),
        lambda bench: bench["cases"][0]["ways"][0].update(seconds=1e300),
        lambda bench: bench["cases"][0]["ways"][0].update(quartiles=[1.0]),
        lambda bench: bench["cases"][0]["ways"][0].update(peak_bytes=-1),
        lambda bench: bench["cases"][0].update(batch=0),
        lambda bench: bench["cases"][0].update(steps=2**80),
        lambda bench: bench.update(cases=None),
        lambda bench: bench.update(advice="text"),
        lambda bench: bench.pop("machine"),
    ],
)
def test_bench_of_other_fields_or_numbers_is_refused(result, damage):
    record(result)
    tensors, _ = read_tensors(result)
    about = header(result)
    damage(about["bench"])
    write_tensors(result, {name: tensor.clone() for name, tensor in tensors.items()}, {"btcompress": json.dumps(about)})
    with pytest.raises(CheckpointError, match=r"cannot be read as a compressed checkpoint: .*bench"):
        read_compressed(result)


def test_report_repeats_the_bench_whatever_it_names(result, run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert json.loads(run("report", result, "--json")[0])["bench"] is None
    later = replace(CASE, mode="a \x1b[2J mode", ways=(replace(OWN, way="by magic"),), left_out=(LeftOut("b", "c"),))
    record(result, replace(BENCH, cases=(CASE, later)))
    out, _ = run("report", result)
    for words in ("rnn, prediction, batch 1, 50 steps", "2.90x", "by magic", "Warning: a warning", "Advice: advice"):
        assert words in out
    assert "\x1b" not in out
    told = json.loads(run("report", result, "--json")[0])["bench"]
    assert told["cases"][0]["ratio"] == pytest.approx(2.9)
    assert told["cases"][0]["ways"][1]["steps_per_second"] == pytest.approx(100_000)
    assert told["cases"][1]["ratio"] is None


def test_bench_stays_with_the_forms_it_was_measured_of(result):
    record(result)
    compressed = read_compressed(result)
    assert compressed.with_step({"step": "factorize"}).bench == compressed.bench
    assert compressed.only(["rnn.weight_ih_l0"]).bench is None
    further = btcompress.compress(result, btcompress.FactorizeStep(tucker_rank=1, matrices=("recurrent",)))
    assert further.bench is None


def test_part_of_a_result_has_the_tensors_of_its_keys_alone(result):
    compressed = read_compressed(result)
    keys = [key for key in compressed.keys if key.startswith("rnn.")]
    part = compressed.only(keys)
    assert list(part.dense_state_dict()) == keys
    dense = compressed.dense_state_dict()
    assert all(torch.equal(tensor, dense[key]) for key, tensor in part.dense_state_dict().items())
    assert set(part.tensors) == {name for name in compressed.tensors if name.startswith("rnn.")}
    assert part.stored.keys() == {name for name in compressed.stored if name.startswith("rnn.")}


def test_same_command_writes_the_same_bytes_as_nothing_records_unasked(result, run):
    before = result.read_bytes()
    run("bench", result, "--batch", "1", "--steps", "1", "--seconds", "0.01")
    assert result.read_bytes() == before


def test_command_measures_shows_and_records(result, run, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    sizes = ("--batch", "1,2", "--steps", "3", "--seconds", "0.01", "--threads", "1", "--train")
    out, err = run("bench", result, *sizes, "--record")
    assert err == ""
    for words in (
        "rnn, prediction, batch 1, 3 steps",
        "rnn, training, batch 2, 3 steps",
        "block terms",
        "dense, oneDNN",
        "Left out: dense, dynamic int8, in training: it predicts only.",
        "Advice: At batch",
        f"Wrote {result}",
    ):
        assert words in out
    told = json.loads(run("report", result, "--json")[0])["bench"]
    assert [(case["mode"], case["batch"], case["steps"]) for case in told["cases"]] == [
        (mode, batch, 3) for mode in ("prediction", "training") for batch in (1, 2)
    ]
    assert told["machine"]["threads"] == 1
    again = json.loads(run("bench", result, *sizes, "--json")[0])
    assert [each.keys() for each in again["cases"][0]["ways"]] == [each.keys() for each in told["cases"][0]["ways"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "1,x"), "'1,x' is not a list of whole numbers"),
        (("--batch", "0"), "--batch 0 is no list of sizes"),
        (("--steps", "-1"), "--steps -1 is no list of sizes"),
        (("--lstm", "lstm"), "no LSTM named 'lstm'"),
        (("--device", "cuda:99"), "cannot be used here"),
        (("--threads", "0"), "--threads 0"),
        (("--against", "out.safetensors"), "compressed already"),
    ],
)
def test_what_cannot_be_measured_ends_in_one_line(result, run, options, words):
    _, err = run("bench", result, *options, cwd=result.parent, code=2)
    assert err.startswith("Error: ")
    assert words in err
