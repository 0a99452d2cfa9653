"""The scripts that time layers run, on small sizes; and the figures they are held to are read off right."""

import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def run_script(monkeypatch, capsys):
    """A script as ``python`` runs it, in this process; returns its rows, its other lines and its exit code."""

    def call(name, *arguments):
        monkeypatch.syspath_prepend(SCRIPTS)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        lines = capsys.readouterr().out.splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        return rows, [line for line in lines if not line.startswith("{")], code

    return call


def test_lstm_speed_times_every_form_of_every_case_against_both_kernels(run_script):
    rows, lines, code = run_script(
        "lstm_speed.py", "--small", "--seconds", 0, "--batch", 1, "--steps", 1, 6, "--table", "--device", "cpu"
    )
    forms = {16: ("low rank", "block terms"), 240: ("block terms",)}
    assert [(row["inputs"], row["kind"], row["steps"], row["batch"], row["form"]) for row in rows] == [
        (inputs, kind, steps, batch, form)
        for inputs, own in forms.items()
        for steps, batch, kind in [
            *((steps, 1, kind) for steps in (1, 6) for kind in ("prediction", "training")),
            (1, 1, "cell"),
        ]
        for form in own
    ]
    for row in rows:
        names = {"dense, oneDNN", "dense, without oneDNN", row["form"]}
        if (row["kind"], row["form"]) == ("prediction", "low rank"):
            names.add("plain loop")
        assert row["seconds"].keys() == row["quartiles"].keys() == names
        dense = min(row["seconds"]["dense, oneDNN"], row["seconds"]["dense, without oneDNN"])
        assert row["ratio"] == pytest.approx(dense / row["seconds"][row["form"]], rel=0.01)
    assert code == 0
    assert sum(line.startswith(("| 16, 16,", "| 240, 8,")) for line in lines) == 2 * (2 + 2 + 1)


def test_gru_speed_times_every_case_of_both_cells(run_script):
    rows, lines, code = run_script("gru_speed.py", "--size", 8, "--seconds", 0, "--table")
    cases = [(1, 1, "prediction"), (50, 1, "prediction"), (50, 16, "prediction"), (50, 16, "training")]
    assert [(row["cell"], row["steps"], row["batch"], row["kind"]) for row in rows] == [
        (cell, *case) for cell in ("gru", "rnn") for case in cases
    ]
    assert all(row["ratio"] == pytest.approx(row["dense"] / row["low rank"]) for row in rows)
    assert rows[0]["way"].startswith("loop")
    assert (code, len(lines)) == (0, 2 + len(rows))


def test_the_other_kernel_is_chosen_for_a_while_only(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    timing = importlib.import_module("timing")
    seen = []
    calls = dict.fromkeys(("first", "second"), lambda: seen.append(torch.backends.mkldnn.enabled))
    timing.seconds_in_turns(calls, "cpu", turns=2, settings={"second": timing.without_onednn})
    assert seen == [True, True, False, False, True, False, True, False]
    assert torch.backends.mkldnn.enabled


ROW = {"inputs": 512, "hidden": 512, "steps": 1, "batch": 1, "kind": "prediction", "form": "low rank"}
SECONDS = {"dense, oneDNN": 3e-3, "dense, without oneDNN": 2e-3}


@pytest.mark.parametrize(("ratio", "code", "said"), [(3.01, 0, "met"), (2.99, 1, "missed")])
def test_lstm_speed_says_of_earlier_rows_whether_a_figure_is_met(run_script, tmp_path, ratio, code, said):
    slow = {**ROW, "kind": "training", "ratio": 0.95, "seconds": SECONDS}
    first, last = tmp_path / "first", tmp_path / "last"
    first.write_text(json.dumps({**ROW, "ratio": 0.1, "seconds": SECONDS}) + "\nno row\n")
    last.write_text("\n".join(json.dumps(row) for row in (slow, {**ROW, "ratio": ratio, "seconds": SECONDS})))
    rows, lines, exit_code = run_script("lstm_speed.py", "--read", first, last, "--check")
    assert (rows, exit_code) == ([], code)
    assert f"{said}  prediction, low rank, 512 inputs, 1 step, batch 1: {ratio}, to be 3" in lines
    assert f"met  prediction: {ratio}, to be 0.952" in lines
    assert "met  training: 0.95, to be 0.909" in lines
    assert "not measured  cell: to be 0.952" in lines


def test_lstm_speed_names_every_row_that_misses_a_figure_for_all(run_script, tmp_path):
    path = tmp_path / "rows"
    rows = [{**ROW, "kind": "cell", "batch": batch, "ratio": ratio} for batch, ratio in ((1, 0.9), (16, 2), (32, 0.5))]
    path.write_text("\n".join(map(json.dumps, rows)))
    _, lines, code = run_script("lstm_speed.py", "--read", path, "--check")
    start = lines.index("missed  cell: 0.5, to be 0.952, 2 of 3 missed")
    assert lines[start + 1 : start + 3] == [
        "    low rank, 512 x 512, 1 step, batch 32: 0.5",
        "    low rank, 512 x 512, 1 step, batch 1: 0.9",
    ]
    assert code == 1


def test_the_short_run_has_every_case_that_a_figure_names(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    script = runpy.run_path(str(SCRIPTS / "speed_cases.py"))
    cases = [case for case in script["all_cases"](script["SIZES"]) if script["in_short_run"](case)]
    rows = [case.row(form) for case in cases for form in case.size.forms]
    assert all(any(figure.covers(row) for row in rows) for figure in script["FIGURES"] if figure.names_sizes)
    assert len(cases) < len(list(script["all_cases"](script["SIZES"]))) / 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("training_step.py", ()), ("training_step.py", ("--ways",)), ("step_cost.py", ("--device", "cpu"))],
)
def test_another_script_that_times_layers_runs(run_script, name, arguments, monkeypatch):
    run = subprocess.run

    def one_of_them(command, **options):
        """The fresh processes whose memory is measured are all started alike."""
        return run(command, **options) if "paper's modes" in command else subprocess.CompletedProcess(command, 0, "1")

    monkeypatch.setattr(subprocess, "run", one_of_them)
    rows, _, code = run_script(name, "--small", "--repeats", 1, *arguments)
    assert rows
    assert code == 0
