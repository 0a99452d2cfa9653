"""What is said of the speed that the cost model expects, and of which layers it is asked."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import btcompress
from btcompress import display
from btcompress.nn import BTLSTM, BTLSTMCell
from btcompress.reporting import expected
from btcompress.results import ExpectedCase
from btcompress.timings import BenchCase, BenchReport, Machine, WayTiming

BOTH = ("input", "recurrent")
SLOWER = (
    "Where it is slower, use the dense weights, which btcompress.to_dense forms of the file, if it is the time that "
    "counts."
)
SOURCE = "So says the cost model, of predictions on a CPU of two cores; btcompress bench measures it on this machine."


def factorized(model, matrices=BOTH, **options):
    return btcompress.factorize(model, tucker_rank=2, matrices=matrices, **options)


@pytest.fixture
def ratios(monkeypatch):
    """Ratios by batch and steps, in the place of the cost model's; and the tasks that it was asked about."""
    given = {(1, 1): 2.44, (1, 50): 1.72, (16, 50): 1.4, (16, 1): 0.5}
    asked = []

    def speed(tasks, *, cell):
        asked.append((tasks, cell))
        return given[tasks[0].batch, tasks[0].steps]

    monkeypatch.setattr(expected, "speed_over_dense", speed)
    return given, asked


def test_faster_lstm_is_said_to_be_so_at_each_batch_and_number_of_steps(ratios):
    speed = btcompress.report(factorized(nn.ModuleDict({"rnn": nn.LSTM(6, 5)}))).expected_speed
    assert speed.cases == (
        ExpectedCase("rnn", 1, 1, 2.44),
        ExpectedCase("rnn", 1, 50, 1.72),
        ExpectedCase("rnn", 16, 50, 1.4),
    )
    assert speed.advice == (
        "At batch 1 and 1 step this file is expected to run 2.4 times as fast as the dense LSTM; at batch 1 and 50 "
        "steps 1.7 times as fast; at batch 16 and 50 steps 1.4 times as fast.",
        SOURCE,
    )


@pytest.mark.parametrize(
    ("ratio", "words", "slower"),
    [
        (0.25, "4.0 times as slow", True),
        (0.82, "1.2 times as slow", True),
        (0.84, "about as fast", False),
        (1.19, "about as fast", False),
        (1.3, "1.3 times as fast", False),
        (12.4, "12 times as fast", False),
    ],
)
def test_slower_is_said_clearly_and_what_estimates_cannot_tell_apart_is_alike(ratios, ratio, words, slower):
    ratios[0].update(dict.fromkeys(ratios[0], ratio))
    speed = btcompress.report(factorized(nn.LSTM(6, 5))).expected_speed
    assert speed.advice == (
        f"At batch 1 this file is expected to run {words} as the dense LSTM; at batch 16 and 50 steps {words}.",
        *[SLOWER] * slower,
        SOURCE,
    )


def test_several_lstms_are_named_and_those_alike_share_a_sentence(ratios):
    model = nn.ModuleDict({"a": nn.LSTM(6, 5), "b": nn.LSTMCell(6, 5), "c": nn.LSTM(4, 5)})
    assert btcompress.report(factorized(model)).expected_speed.advice == (
        "At batch 1 and 1 step a, c are expected to run 2.4 times as fast as the dense LSTMs; at batch 1 and 50 steps "
        "1.7 times as fast; at batch 16 and 50 steps 1.4 times as fast.",
        "At batch 1 b is expected to run 2.4 times as fast as the dense LSTM; at batch 16 2.0 times as slow.",
        SLOWER,
        SOURCE,
    )
    assert [cell for _, cell in ratios[1]] == [False] * 3 + [True] * 2 + [False] * 3


@pytest.mark.parametrize(
    "lstm",
    [
        nn.LSTM(6, 5, num_layers=2),
        nn.LSTM(6, 5, num_layers=2, bidirectional=True),
        nn.LSTM(6, 5, num_layers=2, proj_size=3),
        nn.LSTM(6, 5, num_layers=2, proj_size=3, bidirectional=True, bias=False),
        nn.LSTMCell(6, 5),
    ],
    ids=["layers", "both ways", "projected", "projected both ways", "cell"],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("matrices", [BOTH, ("input",), ("recurrent",)], ids="+".join)
def test_the_model_is_asked_of_the_tasks_that_the_module_meets_when_it_runs(ratios, lstm, matrices):
    compressed = factorized(lstm, matrices)
    btcompress.report(compressed)
    module = btcompress.apply(lstm, compressed)
    assert isinstance(module, BTLSTM | BTLSTMCell)
    assert len(ratios[1]) == (2 if isinstance(module, BTLSTMCell) else 3)
    for tasks, cell in ratios[1]:
        module.choice.tasks.clear()
        x = torch.zeros(tasks[0].steps, tasks[0].batch, 6)
        with torch.no_grad():
            module(x[0] if cell else x)
        met = list(module.choice.tasks.values())
        # What oneDNN's kernel cannot do goes to torch's own, whatever it is asked.
        assert [replace(task, onednn=not task.p) for task in met] == tasks


def test_of_what_runs_as_before_or_in_other_floats_nothing_is_said(ratios):
    linear = factorized(nn.ModuleDict({"rnn": nn.LSTM(6, 5), "head": nn.Linear(8, 9)}), ("linear",))
    rounded = btcompress.factorize(nn.LSTM(64, 32), bits=8)
    assert not rounded.matrices
    for compressed in (linear, rounded, *(factorized(nn.LSTM(6, 5).to(each)) for each in (torch.half, torch.double))):
        report = btcompress.report(compressed)
        assert report.expected_speed is None
        assert report.to_dict()["expected_speed"] is None
    assert not ratios[1]


def bench_of(lstm, mode="prediction", device="cpu"):
    ways = tuple(WayTiming(way, 1.0, (1.0, 1.0), 0.0, 8, 1, 5) for way in ("dense_native", "block_terms"))
    return BenchReport(Machine(device, "a", 2, "2"), (BenchCase(lstm, mode, 1, 1, ways),), (), (), ())


def test_what_was_measured_is_not_estimated(ratios):
    compressed = factorized(nn.ModuleDict({"a": nn.LSTM(6, 5), "b": nn.LSTM(6, 5)}))
    left = btcompress.report(replace(compressed, bench=bench_of("a"))).expected_speed
    assert {case.lstm for case in left.cases} == {"b"}
    assert left.advice[0].startswith("At batch 1 and 1 step b is expected")
    for others in (bench_of("a", mode="training"), bench_of("a", device="cuda"), bench_of("c")):
        speed = btcompress.report(replace(compressed, bench=others)).expected_speed
        assert {case.lstm for case in speed.cases} == {"a", "b"}
    assert btcompress.report(replace(factorized(nn.LSTM(6, 5)), bench=bench_of(""))).expected_speed is None


def test_forms_that_take_long_to_plan_are_left_out(ratios, monkeypatch):
    compressed = factorized(nn.ModuleDict({"a": nn.LSTM(8, 4), "b": nn.LSTM(27, 9)}), ("input",), order=3)
    monkeypatch.setattr(expected, "_MOST_FORMS", 1)
    assert {case.lstm for case in btcompress.report(compressed).expected_speed.cases} == {"a"}
    monkeypatch.setattr(expected, "_MOST_ORDER", 2)
    assert btcompress.report(compressed).expected_speed is None


def test_commands_show_it_and_json_has_it(ratios, run, tmp_path):
    torch.save(nn.ModuleDict({"rnn": nn.LSTM(30, 8)}).state_dict(), tmp_path / "model.pt")
    target = tmp_path / "out.safetensors"
    out, _ = run("factorize", tmp_path / "model.pt", "-o", target, "--cp-rank", "2", "--tucker-rank", "2")
    again, _ = run("report", target)
    for shown in (out, again):
        words = re.sub(r"\s+", " ", shown)
        assert "Expected speed: At batch 1 and 1 step this file is expected to run 2.4 times as fast as" in words
        assert f"Expected speed: {SOURCE}" in words
    value = json.loads(run("report", target, "--json")[0])["expected_speed"]
    assert value["cases"][0] == {"lstm": "rnn", "batch": 1, "steps": 1, "ratio": 2.44, "kind": "LSTM"}
    assert value["advice"][-1] == SOURCE


def test_of_very_many_lstms_the_first_are_shown(capsys):
    report = btcompress.report(factorized(nn.LSTM(6, 5)))
    display.show_report(replace(report, expected_speed=replace(report.expected_speed, advice=("text",) * 50)))
    out = capsys.readouterr().out
    assert out.count("Expected speed: text") == 20
    assert "Expected speed: and 30 more (--json shows all)." in out
