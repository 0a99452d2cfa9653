import json
import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

import btcompress
from btcompress import compression, display, models
from btcompress.demo import Curve, Measure, story
from btcompress.display import console, curves, demo, pixels, progress, tables
from btcompress.errors import BTCompressError
from btcompress.finetune import Epoch
from btcompress.results import (
    Agreement,
    CalibrationProgress,
    CalibrationReport,
    FineTuneReport,
    FitProgress,
    InputsReport,
    LeftDense,
    PricingProgress,
    RoundedLSTM,
    RoundingReport,
    Sweep,
    UntouchedReport,
)

#: Everything that moves a cursor, sets a title, turns a line around or ends it, and what rich would take as markup.
HOSTILE = "a\x1b[31m\x1b]0;title\x07\x9b2J\r\b\n\u2028\u202e\u200f\U000e0041\t[bold]:warning:[/none]"
SHOWN = r"a\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\n\u2028\u202e\u200f\U000e0041\t[bold]:warning:[/none]"


def visible(text):
    return all(each == "\n" or each.isprintable() for each in text)


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout and stderr terminals of so many columns."""

    def of_columns(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)

    return of_columns


@pytest.fixture
def report():
    model = nn.ModuleDict({"lstm": nn.LSTM(64, 32), "head": nn.Linear(32, 5)})
    return btcompress.report(btcompress.factorize(model, tucker_rank=3))


@pytest.fixture
def hostile_model(tmp_path):
    """A checkpoint with such characters in its keys and in its name, and one tensor that only a note names."""
    lstm = {f"{HOSTILE}.{key}": tensor for key, tensor in nn.LSTM(64, 32).state_dict().items()}
    path = tmp_path / f"{HOSTILE.replace('/', '')}.pt"
    with path.open("wb") as file:
        torch.save({**lstm, f"{HOSTILE}.count": b"3", "scores.weight": torch.ones(5, 6)}, file)
    return path


def test_nothing_that_a_terminal_would_obey_comes_out_of_keys_and_file_names(hostile_model, run):
    shown_file = SHOWN.replace("/", "") + ".pt"
    out, _ = run("inspect", hostile_model)
    assert visible(out)
    assert f"{shown_file}: " in out
    assert f"{SHOWN}.count (bytes)." in out
    for command in (("factorize", hostile_model), ("plan", hostile_model, "--max-error", "0.9")):
        out, err = run(*command)
        assert visible(out + err)
        assert out.count(SHOWN[:40]) > 1
    result = hostile_model.with_name(hostile_model.name.replace(".pt", ".bt.safetensors"))
    out, err = run("report", result, "--against", hostile_model, "--yardsticks")
    assert visible(out + err)
    assert json.loads(run("report", result, "--json")[0])["matrices"][0]["name"] == f"{HOSTILE}.weight_ih_l0"


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", HOSTILE],
        ["inspect", f"--{HOSTILE}"],
        ["factorize", "x.pt", "--gates", HOSTILE],
        ["factorize", "x.pt", "--cp-rank", HOSTILE],
        ["factorize", "x.pt", "--tucker-rank", HOSTILE],
        ["factorize", "x.pt", "--device", HOSTILE],
        [HOSTILE],
    ],
    ids=["file", "option", "choice", "number", "numbers", "device", "command"],
)
def test_errors_are_one_visible_line_with_exit_code_2(arguments, run):
    out, err = run(*arguments, code=2)
    assert out == ""
    assert re.fullmatch(r"Error: [^\n]+\n", err)
    assert visible(err)


def test_errors_without_end_keep_their_beginning_and_their_end(run, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise BTCompressError(f"keys {'x' * 100_000} are too many. Do this instead.")

    monkeypatch.setattr(compression, "read", refuse)
    _, err = run("inspect", tmp_path, code=2)
    assert err.startswith("Error: keys xxx")
    assert err.endswith("xxx are too many. Do this instead.\n")
    assert len(err) <= 2001
    assert int(re.search(r"\(([\d,]+) characters left out\)", err)[1].replace(",", "")) > 98_000


def test_of_very_many_notices_and_reasons_some_are_printed_and_json_has_all(report, capsys):
    names = [f"matrix {index}" for index in range(100_000)]
    left = tuple(LeftDense(name, "it is small") for name in names)
    display.show_report(replace(report, notices=tuple(names), advice=tuple(names), left_dense=left))
    out = capsys.readouterr().out
    for title in ("Note", "Advice", "Left dense"):
        lines = [line for line in out.splitlines() if line.startswith(f"{title}: ")]
        assert len(lines) == 21
        assert lines[0].startswith(f"{title}: matrix 0")
        assert lines[-1] == f"{title}: and 99,980 more (--json shows all)."
    display.show_json(replace(report, notices=tuple(names)).to_dict())
    assert json.loads(capsys.readouterr().out)["notices"] == names


def test_of_very_many_matrices_some_are_printed(report, capsys):
    row = replace(report.matrices[0], roundings=())
    display.show_report(replace(report, matrices=(row,) * 700))
    out = capsys.readouterr().out
    assert sum(line.startswith("lstm.weight_ih_l0 ") for line in out.splitlines()) == 500
    assert "and 200 more (--json shows all)." in out


@pytest.mark.parametrize("columns", [1, 20, 40, 60, 80])
def test_numbers_are_whole_on_terminals_of_any_width(columns, report, terminal, capsys):
    terminal(columns)
    row = replace(
        report.matrices[0],
        shape=(1024, 57600),
        tucker_ranks=tuple(range(11, 23)),
        in_modes=(8, 20, 20, 18),
        params_before=58_982_400,
        params_after=3_392,
        weight_error=0.123,
        activation_error=0.456,
        weighted_activation_error=0.789,
        svd_rank=321,
    )
    model = replace(report.model, params_before=1_234_567_890_123, params_after=987_654_321)
    display.show_report(replace(report, matrices=(row,), model=model))
    words = capsys.readouterr().out.replace("\x1b[0m", "").split()
    ranks = ",".join(map(str, range(11, 23)))
    numbers = [ranks, "58,982,400", "3,392", "17,389x", "0.123", "0.456", "0.789", "321)", "1,234,567,890,123"]
    for number in [*numbers, "987,654,321", "57600", "8,20,20,18"]:
        assert number in words
    assert not any("…" in word for word in words)


def in_fewer_bits(report, **fields):
    """The report with its matrix in 4 bits."""
    row = replace(report.matrices[0], precision="int4/32", bytes_before=8192, bytes_after=700, **fields)
    return replace(report, matrices=(row,))


def lines_of(capsys):
    plain = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out)
    return [" ".join(line.split()) for line in plain.splitlines()]


def test_where_a_matrix_has_fewer_bits_sizes_are_bytes_behind_what_numbers_are_stored_as(report, capsys):
    display.show_report(report)
    plain = lines_of(capsys)
    assert "matrix N R before after ratio error equal size" in plain
    assert not any("stored as" in line or "of which" in line for line in plain)
    few = in_fewer_bits(report, svd_rank=1, svd_error=0.9)
    dense = replace(
        few.matrices[0],
        name="lstm.weight_hh_l0",
        shape=(128, 32),
        form="dense",
        core="none",
        precision="int3/32",
        cp_rank=0,
        tucker_ranks=(),
        in_modes=(),
        out_modes=(),
        bytes_after=1300,
    )
    display.show_report(replace(few, matrices=(*few.matrices, dense)))
    lines = lines_of(capsys)
    assert "matrix N R stored as before after ratio error equal bytes" in lines
    error = f"{few.matrices[0].weight_error:.3f}"
    assert f"lstm.weight_ih_l0 1 3 int4/32 8.2 kB 700 bytes 11.7x {error}! 0.900 (rank 1)" in lines
    second = lines.index(f"lstm.weight_hh_l0 - - int3 by rows 8.2 kB 1.3 kB 6.30x {error}! 0.900 (rank 1)")
    assert lines[second + 1 : second + 3] == ["128 x 32", "as dense"]
    assert "of which the matrices above 16.4 kB 2.0 kB 8.19x" in lines


def test_several_precisions_of_a_matrix_are_all_shown(report, capsys):
    display.show_report(
        replace(report, matrices=(replace(report.matrices[0], precision="int4/64, float16", bytes_after=9),))
    )
    assert any("int4 by rows, float16" in line for line in lines_of(capsys))


ROUNDINGS = (
    RoundingReport("int8/64", 8192, 0.0041, 0.0051, 0.0061),
    RoundingReport("int4/32", 5000, 0.0812, 0.0712, 0.0612),
    RoundingReport("int2/32", 690, 0.5, 0.3, 0.4),
    RoundingReport("int2/64", 600, 0.35, 0.32, 0.41),
    RoundingReport("int4/32", 5000, 0.09, 0.06, 0.0512, fed_back=True),
    RoundingReport("int2/32", 690, 0.4, 0.25, 0.3012, fed_back=True),
)


def test_yardsticks_of_rounding_alone_stand_beside_the_matrix_as_it_is(report, capsys):
    few = in_fewer_bits(report, roundings=ROUNDINGS, activation_error=0.2, weighted_activation_error=0.1)
    display.show_report(few)
    lines = lines_of(capsys)
    first = lines.index("rounded alone as it is by rows groups of 32 no more bytes")
    assert lines[first + 1 : first + 7] == [
        "lstm.weight_ih_l0",
        "bytes 700 bytes 8.2 kB 5.0 kB int2/32",
        f"weight error {few.matrices[0].weight_error:.3f} 0.004 0.081 0.500",
        "activation error 0.200 0.005 0.071 0.300",
        "weighted activation error 0.100 0.006 0.061 0.400",
        "errors fed back - 0.051 0.301",
    ]


def test_where_no_rounding_is_so_small_it_is_said(report, capsys):
    display.show_report(in_fewer_bits(report, roundings=ROUNDINGS[:2]))
    lines = lines_of(capsys)
    assert "bytes 700 bytes 8.2 kB 5.0 kB none so few" in lines
    assert "activation error not measured 0.005 0.071 -" in lines
    display.show_report(replace(report, matrices=(replace(report.matrices[0], roundings=()),)))
    assert "rounded alone" not in capsys.readouterr().out


def test_lstms_with_their_matrices_rounded_alone_have_a_table(report, capsys):
    ways = [("int8", False, 0.01), ("int4", False, 0.05), ("same", False, 0.06), ("equal_bytes", True, 0.045)]
    given = InputsReport("decoder", 25, 0.0234, None, tuple(RoundedLSTM(*way) for way in ways))
    display.show_report(replace(report, on_inputs=(given, InputsReport("other", 3, 0.5))))
    lines = lines_of(capsys)
    first = lines.index("matrices rounded alone as it is by rows groups of 32 no more bytes at no more bytes")
    assert lines[first + 1 : first + 3] == [
        "hidden-state error of decoder 0.0234 0.0100 0.0500 - 0.0600",
        "errors fed back - - 0.0450 -",
    ]
    assert "other" not in lines[first + 3]


def test_calibrations_that_rounded_tell_the_error_before_training_through_it(report, terminal, capsys):
    terminal(160)
    row = CalibrationReport("rnn", 0.0755, 0.0312, 10, 640, 160, 1.5, 0.0524, 15, FEWER, AGREEMENT, 0.0811)
    calibrated = replace(report, calibrated=(row, CalibrationReport("", 0.5, 0.25, 10, 640, 160, 1.5)))
    display.show_report(calibrated)
    errors, shares = [
        line for line in capsys.readouterr().out.splitlines() if "of rnn" in line or "5,320 steps" in line
    ]
    for error, share in (("0.0755", "90.0%"), ("0.0312", "99.1%")):
        assert errors.index(error) + len(error) == shares.index(share) + len(share)
    display.show_report(calibrated)
    lines = lines_of(capsys)
    assert "on sequences held back the weights the inputs rounded calibrated epochs sequences" in lines
    first = lines.index("hidden-state error of rnn 0.0755 0.0524 0.0811 0.0312 15 by layer + 10 160")
    assert lines[first + 1] == "decides as the dense one, of 5,320 steps 90.0% 99.1%"
    assert "hidden-state error 0.5000 not measured not measured 0.2500 10 160" in lines


def test_tensors_that_are_the_originals_but_for_their_precision_are_counted_apart(report, capsys):
    display.show_report(replace(report, untouched=UntouchedReport(5, (), trained=False, rounded=2)))
    words = (
        "5 of 7 tensors are the dense checkpoint's, bit for bit, and 2 more once rounded to what they are stored as."
    )
    assert f"Not factorized: {words}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("columns", [1, 20, 40, 80])
def test_bits_and_bytes_are_whole_on_terminals_of_any_width(columns, report, terminal, capsys):
    terminal(columns)
    few = in_fewer_bits(report, roundings=ROUNDINGS, activation_error=0.2, weighted_activation_error=0.1)
    given = InputsReport("decoder", 25, 0.0234, None, (RoundedLSTM("int4", False, 0.0512),))
    display.show_report(replace(few, on_inputs=(given,)))
    words = capsys.readouterr().out.replace("\x1b[0m", "").split()
    for number in ("int4/32", "8.2", "700", "11.7x", "0.061", "0.301", "int2/32", "0.0512", "0.0234"):
        assert number in words
    assert not any("…" in word for word in words)


AGREEMENT = Agreement(0.991, 0.975, 5_320, 160)
FEWER = replace(AGREEMENT, steps=0.9)


def test_calibrations_tell_both_fits_the_epochs_of_each_kind_and_the_decisions(report, capsys):
    row = CalibrationReport("rnn", 0.0755, 0.0312, 10, 640, 160, 1.5, 0.0524, 15, FEWER, AGREEMENT)
    old = CalibrationReport("", 0.5, 0.25, 10, 640, 160, 1.5)
    display.show_report(replace(report, calibrated=(row, old)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first = lines.index("hidden-state error of rnn 0.0755 0.0524 0.0312 15 by layer + 10 160")
    assert lines[first - 2 : first] == [
        "fitted to fitted to",
        "on sequences held back the weights the inputs calibrated epochs sequences",
    ]
    assert lines[first + 1 : first + 3] == [
        "decides as the dense one, of 5,320 steps 90.0% 99.1%",
        "decides as the dense one, of 160 sequence ends 97.5% 97.5%",
    ]
    assert lines[first + 3] == "hidden-state error 0.5000 not measured 0.2500 10 160"


def test_trainings_and_inputs_given_tell_the_decisions(report, capsys):
    steps = Agreement(0.991, None, 5_320, 0)
    training = FineTuneReport("accuracy", True, 0.75, 0.5, 0.7, 4, 3, 90, 10, 1.5, None, steps)
    given = InputsReport("decoder", 25, 0.0234, steps)
    display.show_report(replace(report, finetuned=(training,), on_inputs=(given, InputsReport("", 3, 0.5))))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "decides as the dense one, of 5,320 steps not measured 99.1%" in lines
    first = lines.index("on the inputs given measured sequences")
    assert lines[first + 1 : first + 4] == [
        "hidden-state error of decoder 0.0234 25",
        "decides as the dense one, of 5,320 steps 99.1%",
        "hidden-state error 0.5000 3",
    ]


def test_names_without_end_are_folded_in_the_middle(report, terminal, capsys):
    name = "Q" + "x" * 10_000 + "Z"
    # In 20 columns each column of numbers stands alone behind the name.
    for columns, most in ((20, 500), (200, 200)):
        terminal(columns)
        display.show_report(replace(report, matrices=(replace(report.matrices[0], name=name),)))
        out = capsys.readouterr().out
        assert "Q" in out
        assert "characters" in out
        assert "Z" in out
        assert out.count("x") < most


class Clock:
    """Takes the place of the clock of progress."""

    def __init__(self, monkeypatch):
        self.seconds = 100.0
        monkeypatch.setattr(progress, "_now", lambda: self.seconds)


def epoch(number, epochs=20, seconds=10.0):
    return Epoch(number, epochs, 0.5, 0.25, 1e-3, 1.0, seconds, 100.0)


#: For each kind of progress: how it begins, and what it is told when a share is done.
PROGRESS = {
    "fits": (display.fit_progress, lambda share: FitProgress("lstm.weight", 0, 1, Sweep(round(100 * share), 100, 0.5))),
    "pricing": (display.pricing_progress, lambda share: PricingProgress("lstm.weight", 0, 1, share)),
    "calibration": (display.calibration_progress, lambda share: CalibrationProgress("layer 0", 0, 1, share)),
    "fine-tuning": (display.finetune_progress, lambda share: epoch(round(100 * share), 100, 1.0)),
}


@pytest.mark.parametrize("kind", PROGRESS)
def test_long_work_tells_a_log_now_and_then_what_is_done_and_how_long_the_rest_takes(kind, monkeypatch, capsys):
    begin, told = PROGRESS[kind]
    clock, lines = Clock(monkeypatch), {}
    with begin() as on_progress:
        for second in range(1, 101):
            clock.seconds += 1
            on_progress(told(second / 100))
            if text := capsys.readouterr().err:
                lines[second] = text
    assert list(lines) == [5, 35, 65, 95]
    assert "35% done" in lines[35]
    assert "about 65 s left\n" in lines[35]
    assert all(line.count("\n") == 1 and visible(line) and "\x1b" not in line for line in lines.values())


@pytest.mark.parametrize("kind", PROGRESS)
def test_short_work_tells_a_log_nothing(kind, monkeypatch, capsys):
    begin, told = PROGRESS[kind]
    clock = Clock(monkeypatch)
    with begin() as on_progress:
        for tenth in range(1, 50):
            clock.seconds += 0.1
            on_progress(told(tenth / 50))
    assert capsys.readouterr() == ("", "")


def test_a_log_is_told_of_another_stage_at_once_but_not_of_many_in_a_moment(monkeypatch, capsys):
    clock, seen = Clock(monkeypatch), []
    with display.calibration_progress() as on_progress:
        for second in range(1, 61):
            clock.seconds += 1
            stage = 0 if second < 20 else 1 if second < 40 else second
            on_progress(CalibrationProgress(f"stage {stage}", stage, 60, 0.5, 3 * 3600.0, "loss 0.5"))
            if text := capsys.readouterr().err:
                seen.append((second, text))
    assert [second for second, _ in seen] == [5, 20, 40, 45, 50, 55, 60]
    assert seen[1][1] == "stage 1 (2 of 60): 2% done, loss 0.5, about 3 h left\n"


def test_demonstrations_tell_how_long_the_rest_of_each_stage_takes(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with display.demo_progress() as on_progress:
        on_progress(story.DemoProgress("drawing"))
        clock.seconds += 1000
        on_progress(story.DemoProgress("calibrating"))
        clock.seconds += 10
        on_progress(story.DemoProgress("calibrating", part=CalibrationProgress("layer 0", 0, 1, 0.25)))
        assert capsys.readouterr().err == "layer 0 (1 of 1): 25% done, about 30 s left\n"
        on_progress(story.DemoProgress("training"))
        clock.seconds += 20
        on_progress(story.DemoProgress("training", epoch(1, 4, 20.0)))
    assert capsys.readouterr().err.startswith("training: 25% done, epoch 1 of 4, ")


@pytest.mark.parametrize("kind", PROGRESS)
def test_bars_show_the_time_left(kind, terminal, monkeypatch, capsys):
    terminal(120)
    begin, told = PROGRESS[kind]
    clock = Clock(monkeypatch)
    with begin() as on_progress:
        clock.seconds += 10
        on_progress(told(0.1))
        on_progress(told(0.1))
    assert "about 90 s left" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [1, 20, 80])
def test_progress_shows_any_name_on_any_terminal(columns, terminal, monkeypatch, capsys):
    terminal(columns)
    clock = Clock(monkeypatch)
    long = HOSTILE + "x" * 10_000
    with display.fit_progress() as on_progress:
        clock.seconds += 2.0
        on_progress(FitProgress(long, 0, 2, Sweep(1, 2, 0.5)))
    with display.calibration_progress() as on_calibrating:
        clock.seconds += 2.0
        on_calibrating(CalibrationProgress(long, 0, 2, 0.5, 60.0, HOSTILE))
    with display.working(HOSTILE):
        pass
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", capsys.readouterr().err)
    assert visible(drawn)
    assert columns < 80 or "fitting" in drawn
    assert len(drawn) < 4000


BOUND, SHARE = Measure("bound on the log-likelihood", higher_is_better=False), Measure("accuracy", is_share=True)


def demonstrated(measures, scores, rivals=()):
    """What a demonstration made, as far as it is shown below the report; scores are of dense and tuned models."""
    task = SimpleNamespace(measures=measures, examples="drawings", size=SimpleNamespace(n_test=1000))
    names = (story.DENSE, story.TUNED, *(name for name, _, _ in rivals))
    n_bytes = (4_000_000_000, 40_000, *(each for _, each, _ in rivals))
    found = (*scores, *(each for _, _, each in rivals))
    outcomes = tuple(map(story.Outcome, names, [each // 4 for each in n_bytes], n_bytes, found))
    return story.DemoResult(task, None, None, (), outcomes, None)


@pytest.mark.parametrize("columns", [1, 60, 80, 200])
def test_demonstrations_show_all_numbers_on_any_terminal(columns, terminal, capsys):
    terminal(columns)
    result = demonstrated([BOUND, SHARE, SHARE, SHARE], [(1234.5, 0.125, 0.25, 0.5), (12.25, 1.0, 0.75, 0.0)])
    result = replace(result, outcomes=(*result.outcomes, story.Outcome("x" * 50, 5, 5, None)))
    tables.show_table(console.make_console(), demo._outcomes_table(result))
    shown = capsys.readouterr().out
    for number in ("1,000,000,000", "1.00x", "100,000x", "1,234", "12.25", "12.5 %", "100.0 %", "0.0 %"):
        assert number in shown
    assert shown.count("diverged") == 4
    assert "log-likelihood" in shown


@pytest.mark.parametrize(
    ("measure", "dense", "tuned", "lost"),
    [(SHARE, 0.5, 0.5, False), (SHARE, 0.5, 0.499, True), (BOUND, 10.0, 9.5, False), (BOUND, 10.0, 10.5, True)],
)
def test_demonstrations_say_whether_anything_was_lost(measure, dense, tuned, lost):
    text = demo._held_text(demonstrated([measure], [(dense,), (tuned,)]))
    assert text.startswith(f"With W 100,000 times smaller and fine-tuned, {measure.name} is {measure.written(tuned)}, ")
    assert text.endswith(f"model {measure.written(dense)}: {'something' if lost else 'nothing'} was lost.")


def test_demonstrations_say_what_as_small_did_better():
    rivals = [("a", 40_000, (0.6,)), ("b", 60_000, (0.4,)), ("c", 80_000, (0.9,)), ("d", 40_000, None)]
    text = demo._held_text(demonstrated([SHARE], [(0.5,), (0.5,)], rivals))
    assert text.endswith(" Of all others as small did better: a.")
    text = demo._held_text(demonstrated([BOUND], [(0.5,), (0.5,)], rivals[2:]))
    assert text.endswith(" Of all others as small did better: none.")


def test_curves_of_any_metric_have_room_for_what_comes_after_the_first_epoch(terminal, capsys):
    terminal(80)
    drawn = [
        Curve("one", (1e6, 105.5, 99.5)),
        Curve("two", (math.inf, 140.0, 119.5)),
        Curve("three", (math.nan, 120.0)),
    ]
    curves.show_curves(console.make_console(), drawn, BOUND, "drawings")
    shown = capsys.readouterr().out
    assert "bound on the log-likelihood on drawings held back; lower is better" in shown
    ticks = [float(number) for number in re.findall(r"([\d.]+)┤", shown)]
    assert 95 < min(ticks) < 100
    assert 140 < max(ticks) < 145
    for line in ("o one", "x two", "+ three"):
        assert line in shown


@pytest.mark.parametrize(("columns", "shown"), [(60, 60), (200, 120)])
def test_pictures_are_as_wide_as_a_terminal_that_takes_them(columns, shown, terminal, tmp_path, capsys):
    Image.new("RGB", (400, 200), (200, 10, 10)).save(tmp_path / "picture.png")
    pixels.show_picture(console.make_console(), tmp_path / "picture.png")
    assert capsys.readouterr().out == ""
    terminal(columns)
    pixels.show_picture(console.make_console(), tmp_path / "picture.png")
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert {len(line) for line in lines} == {shown}
    assert len(lines) == shown // 4


def test_json_has_no_text_that_is_not_unicode(capsys):
    display.show_json({"name\udcff": ["a\ud800b", ("\udcc3\udca9",), 1.5, None]})
    assert json.loads(capsys.readouterr().out) == {r"name\xff": [r"a\ud800b", ["é"], 1.5, None]}


#: For each command, what it calls first that takes long.
LONG_WORK = {
    "inspect": (compression, "read"),
    "plan": (compression, "read"),
    "factorize": (compression, "read"),
    "report": (models, "load"),
    "demo": (story, "draw_data"),
}


def stop_with(error, command, monkeypatch, tmp_path):
    """Let a command's work end like this; returns its arguments."""

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(*LONG_WORK[command], stop)
    wish = ["--max-error", "0.5"] if command == "plan" else []
    return [command, *(["--output"] if command == "demo" else []), tmp_path, *wish]


@pytest.mark.parametrize("command", LONG_WORK)
def test_ctrl_c_is_one_line_and_code_130(command, monkeypatch, tmp_path, run):
    arguments = stop_with(KeyboardInterrupt(), command, monkeypatch, tmp_path)
    assert run(*arguments, code=130) == ("", "Interrupted. No file is left half written.\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7.28 TiB\nat alloc.cpp"),
    ],
)
def test_memory_that_runs_out_is_one_line_that_says_what_helps(error, monkeypatch, tmp_path, run):
    _, err = run(*stop_with(error, "factorize", monkeypatch, tmp_path), code=2)
    assert re.fullmatch(
        r"Error: memory ran out \(.*7\.28 TiB.*\), of which [\d.]+ .B are available .*smaller ranks.*--max-memory.*\n",
        err,
    )


def test_defects_keep_their_traceback_which_is_visible_text(monkeypatch, tmp_path, run, capsys):
    arguments = stop_with(ZeroDivisionError(HOSTILE), "inspect", monkeypatch, tmp_path)
    with pytest.raises(ZeroDivisionError) as caught:
        run(*arguments)
    sys.excepthook(caught.type, caught.value, caught.tb)
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in read" in err or "in stop" in err
    assert visible(err)
