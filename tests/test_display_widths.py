"""Every table and list in terminals of 60, 80 and 200 columns: no line is longer, and no number is cut."""

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from btcompress import compression, display
from btcompress.checkpoint import from_state_dict
from btcompress.demo import Measure, story
from btcompress.demo.video import Clips
from btcompress.display import console, curves, demo, names, pixels, progress, tables
from btcompress.display.tables import NumberTable
from btcompress.export import ExportedGraph
from btcompress.recipe import FactorizeStep
from btcompress.results import (
    Agreement,
    CalibrationReport,
    CompressionReport,
    FineTuneReport,
    FitProgress,
    InputsReport,
    LeftDense,
    MatrixReport,
    ModelReport,
    RoundedLSTM,
    RoundingReport,
    Sweep,
    UntouchedReport,
    YardstickReport,
)
from btcompress.timings import BenchCase, BenchReport, LeftOut, Machine, WayTiming
from btcompress.wording import Worse

LAYER = "encoder.towers.0.recurrent_block.lstm"
ROUNDINGS = (
    RoundingReport("int8/57600", 58_999_999, 0.0041, 0.0051, 0.0061),
    RoundingReport("int4/32", 34_406_400, 0.0812, 0.0712, 0.0612),
    RoundingReport("int2/32", 12_345, 0.5, 0.3, 0.4),
    RoundingReport("int2/32", 12_345, 0.4, 0.25, 0.3012, fed_back=True),
)
MATRIX = MatrixReport(
    name=f"{LAYER}.weight_ih_l0_reverse",
    shape=(1024, 57600),
    in_modes=(8, 20, 20, 18),
    out_modes=(16, 4, 4, 4),
    gates="separate",
    cp_rank=2,
    tucker_ranks=(11, 12, 13, 14),
    core="full",
    params_before=58_982_400,
    params_after=13_568,
    weight_error=0.987,
    svd_rank=321,
    svd_error=0.876,
    activation_error=0.432,
    weighted_activation_error=0.321,
    yardsticks=(
        YardstickReport("low_rank", (321,), 1, 0.876, 0.765, 0.654),
        YardstickReport("low_rank_on_inputs", (321,), 1, 0.886, 0.775, 0.664),
        YardstickReport("tensor_train", (15, 16, 17), 1, 0.896, 0.785, 0.674),
        YardstickReport("greedy", (4, 4, 4, 4), 1, 0.906, 0.795, 0.684),
    ),
    row_order=True,
    precision="int4/32, float16",
    bytes_before=235_929_600,
    bytes_after=27_136,
    roundings=ROUNDINGS,
)
OTHER = replace(MATRIX, name=f"{LAYER.replace('0', '1')}.weight_ih_l0_reverse", svd_rank=0)
AGREEMENT = Agreement(0.991, 0.975, 5_320_000, 16_000)
ROUNDED = tuple(RoundedLSTM(name, fed, 0.01 * n) for n, name in enumerate(("int8", "equal_bytes")) for fed in (0, 1))
WAYS = (
    WayTiming("dense_onednn", 0.01234, (0.0123, 0.0125), 0.1, 9, 1, 58_982_400, 235_929_600, 117_964_800),
    WayTiming("dense_native", 0.1234, (0.12345, 0.12567), 0.1, 9, 1, 58_982_400, None, 117_964_800),
    WayTiming("block_terms", 0.2345, (0.23456, 0.23789), 0.1, 9, 1, 13_568, 27_136, 123_456),
)
CASE = BenchCase(LAYER, "prediction", 16, 50, WAYS, (LeftOut("int8", "torch has none for this layer here"),))
BENCH = BenchReport(
    Machine("cpu", "A Processor of 16 Cores", 2, "2.13.0"),
    (CASE, replace(CASE, batch=1)),
    ("something was not measured at batch 16.",),
    ("2 of 6 measurements are not steady.",),
    ("At batch 16 this file runs 19 times as slow as the dense LSTM.",),
)
REPORT = CompressionReport(
    matrices=(MATRIX, OTHER),
    left_dense=(LeftDense(f"{LAYER}.weight_hh_l0", "it has 1,048,576 parameters, of which none was chosen"),),
    model=ModelReport(1_234_567_890_123, 987_654_321, 4_938_271_560_492, 3_950_617_284),
    notices=("The file holds 3 tensors that are no weights.",),
    advice=("Nobody knows what weight errors of 0.987 do to the model; " * 4 + "measure them.",),
    untouched=UntouchedReport(120, ("head.bias",), trained=True, rounded=7),
    on_inputs=(InputsReport(LAYER, 2_500, 0.2345, AGREEMENT, ROUNDED),),
    calibrated=(CalibrationReport(LAYER, 0.1755, 0.2312, 10, 640, 1_600, 1.5, 0.1524, 15, AGREEMENT, AGREEMENT, 0.19),),
    finetuned=(FineTuneReport("accuracy", True, 0.75, 0.5, 0.4, 40, 3, 90, 1_000, 1.5, AGREEMENT, AGREEMENT),),
    bench=BENCH,
)
GRAPH = ExportedGraph(
    Path("g.onnx"), LAYER, {"l0": "scan", "l0_reverse": "scan"}, 12_345_678, 18, 9_876_543, 1.2e-6, 3.4e-2, ("Of 1.",)
)


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    layers = {f"{LAYER}{number}": nn.LSTM(24, 12) for number in range(2)}
    state = {f"{name}.{key}": tensor for name, lstm in layers.items() for key, tensor in lstm.state_dict().items()}
    return from_state_dict(state, "checkpoint-1234567.pt")


@pytest.fixture(scope="module")
def priced(checkpoint):
    return compression.priced_plan(checkpoint, FactorizeStep(target_ratio=3, of="bytes"))


@pytest.fixture(scope="module")
def prepared(checkpoint):
    return compression.prepare(checkpoint, FactorizeStep(cp_rank=9, tucker_rank=4)).plan


def demonstrated():
    measures = (
        Measure("bound on the log-likelihood", higher_is_better=False),
        *[Measure("accuracy", is_share=True)] * 3,
    )
    task = SimpleNamespace(measures=measures, examples="drawings", size=SimpleNamespace(n_test=1_000))
    scores = ((1234.5, 0.125, 0.25, 0.5), (12.25, 1.0, 0.75, 0.0), None)
    of_each = zip(
        (story.DENSE, story.TUNED, "tensor train, from scratch"), (58_982_400, 3_392, 3_400), scores, strict=True
    )
    outcomes = tuple(story.Outcome(name, n, 4 * n, score) for name, n, score in of_each)
    return story.DemoResult(task, None, None, (), outcomes, None)


@pytest.fixture
def shown(request, capsys, checkpoint, priced, prepared):
    """Print a display, and give what was printed."""
    ways = {
        "report": lambda: display.show_report(REPORT),
        "bench": lambda: display.show_bench(BENCH),
        "plan": lambda: display.show_priced_plan(checkpoint, priced),
        "inspect": lambda: display.show_inventory(checkpoint, prepared),
        "export": lambda: display.show_exported((GRAPH, replace(GRAPH, lstm="decoder", error=None))),
        "demo": lambda: tables.show_table(console.make_console(), demo._outcomes_table(demonstrated())),
        "curves": lambda: curves.show_curves(
            console.make_console(), [story.Curve("one", (0.1, 0.5, 0.9))], Measure("accuracy", is_share=True), "clips"
        ),
    }

    def show(what):
        capsys.readouterr()
        ways[what]()
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)

    return show


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout and stderr terminals of so many columns, with colours or without, or dumb ones."""

    def of_columns(columns, term="xterm", **environment):
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in {"COLUMNS": str(columns), "TERM": term, **environment}.items():
            monkeypatch.setenv(name, value)
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)

    return of_columns


def numbers(text):
    """Words with digits, without those of names, which may be folded."""
    return Counter(
        word for word in text.split() if any(map(str.isdigit, word)) and not re.search(r"weight_|lstm|…", word)
    )


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("what", ["report", "bench", "plan", "inspect", "export", "demo", "curves"])
def test_every_display_fits_the_terminal_with_all_its_numbers_whole(what, columns, shown, terminal):
    whole = shown(what)
    terminal(columns)
    fitted = shown(what)
    assert max(map(len, fitted.splitlines())) <= columns
    if what != "curves":  # whose axes have as many numbers as there is room for
        assert not numbers(whole) - numbers(fitted)


def test_numbers_of_a_value_are_all_there_at_60_columns(shown, terminal):
    terminal(60)
    words = shown("report").split()
    of_matrices = (
        "58,982,400 57600 8,20,20,18 16,4,4,4 11,12,13,14 0.987 0.876 0.432 0.321 321) 235.9 27.1 8,694x 0.301"
    )
    of_the_model = "1,234,567,890,123 987,654,321 0.2345 0.1755 0.1524 0.2312! 99.1% 0.4000! 0.7500 1,600"
    of_others = "15,16,17) 0.896 0.684 117,964,800 12.3 123,456"
    for number in f"{of_matrices} {of_the_model} {of_others}".split():
        assert number in words, number


def test_what_goes_to_a_file_is_neither_folded_nor_split(shown):
    lines = shown("report").splitlines()
    (first,) = (line for line in lines if line.startswith(MATRIX.name) and "0.876" in line)
    assert "int4/32, float16" in first
    assert "…" not in "".join(lines)


def printed(table, capsys):
    """The lines of a table as they are printed, without colours."""
    capsys.readouterr()
    tables.show_table(console.make_console(), table)
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()


def test_names_stay_different_when_they_are_folded(terminal, capsys):
    terminal(60)
    table = NumberTable("matrix", [f"{'-' * 15}{n}" for n in range(2)])
    for number in range(3):
        table.add_row(f"encoder.layers.{number}.rnn.weight_ih_l0", "1,000", "10")
    assert [line.split()[0] for line in printed(table, capsys)[1:]] == [
        "enco….0.rnn.weight_ih_l0",
        "enco….1.rnn.weight_ih_l0",
        "enco….2.rnn.weight_ih_l0",
    ]


def test_names_that_no_fold_tells_apart_are_broken_into_lines(terminal, capsys):
    terminal(60)
    table = NumberTable("matrix", ["before"])
    whole = [f"{'x' * 50}{n}{'y' * 50}" for n in (1, 2)]
    for row in whole:
        table.add_row(row, "1,000")
    lines = printed(table, capsys)
    text = "".join(lines).replace("1,000", "").replace(" ", "")
    assert all(name in text for name in whole)
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize(
    ("word", "width", "expected"),
    [
        ("encoder.weight_ih_l0", 20, "encoder.weight_ih_l0"),
        ("encoder.layer.weight_ih_l0", 20, "encoder.la…ght_ih_l0"),
        ("キーキーキーキー", 9, "キー…キー"),
    ],
)
def test_a_fold_keeps_both_ends(word, width, expected):
    assert names.folded(word, width, "…") == expected


def test_columns_of_a_part_stay_together_where_there_is_room():
    table = NumberTable("n", ["aaaaa", "bbbbb"], ["ccccc", "ddddd"])
    table.add_row("x", "1", "2", "3", "4")
    lines = [line.plain for line in table.lines(22)]
    assert lines == ["n  aaaaa  bbbbb", "x      1      2", "", "n  ccccc  ddddd", "x      3      4"]
    assert [line.plain for line in table.lines(29)] == [
        "n  aaaaa  bbbbb  ccccc  ddddd",
        "x      1      2      3      4",
    ]
    assert len(list(table.lines(8))) == 4 * 3 - 1


def coloured(capsys, shown_now):
    capsys.readouterr()
    shown_now()
    return capsys.readouterr().out


def worse_table():
    table = NumberTable("matrix", ["error", "of another"], worse="is worse than another.")
    table.add_row("one", Worse("0.500"), "0.400")
    table.add_row("two", "0.300", "0.400")
    tables.show_table(console.make_console(), table)


def test_what_is_worse_is_marked_and_red_and_the_mark_is_there_without_colour(terminal, capsys):
    terminal(80)
    text = coloured(capsys, worse_table)
    assert "\x1b[31m0.500!" in text
    assert "0.300!" not in text
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert plain.splitlines() == [
        "matrix  error   of another",
        "one     0.500!       0.400",
        "two     0.300        0.400",
        "! is worse than another.",
    ]
    terminal(80, NO_COLOR="1")
    text = coloured(capsys, worse_table)
    assert not re.search(r"\x1b\[[\d;]*3\dm", text)
    assert "0.500!" in text
    terminal(80, term="dumb")
    assert coloured(capsys, worse_table) == f"{plain}"


def test_output_that_is_piped_has_colours_only_if_it_is_forced_to(monkeypatch, capsys):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in coloured(capsys, worse_table)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m0.500!" in coloured(capsys, worse_table)
    assert not console.can_animate(console.make_error_console())


def test_marks_say_what_a_report_has_that_is_worse(shown, capsys):
    on_weights = replace(MATRIX, activation_error=None, weighted_activation_error=None)
    display.show_report(replace(REPORT, matrices=(on_weights,), calibrated=(), finetuned=()))
    text = capsys.readouterr().out
    assert "0.987!" in text
    assert "! is larger than before, or has a greater error than low rank of equal size." in text
    # Where outputs were measured they count, and training lets the errors of single matrices rise.
    assert "0.987!" not in shown("report")
    assert "0.2312!" in shown("report")
    assert "0.4000!" in shown("report")


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_bars_cut_no_number(columns, terminal, monkeypatch, capsys):
    terminal(columns)
    seconds = iter((100.0, 110.0, 120.0))
    monkeypatch.setattr(progress, "_now", lambda: next(seconds))
    with display.fit_progress() as on_progress:
        for sweep in (10, 11):
            on_progress(FitProgress(MATRIX.name, 2, 8, Sweep(sweep, 100, 0.1234)))
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    frame = drawn.split("fitting")[-1]
    assert re.search(r"\b0:00:\d\d\b", frame)
    assert {"(3", "8),", "0.1234,", "56"} <= set(frame.split())
    assert "…" not in drawn


def test_strips_of_clips_are_as_wide_as_the_terminal(terminal, capsys):
    terminal(60)
    clips = Clips(np.zeros((1, 8, 8 * 8 * 3), np.uint8), np.zeros(1, np.int64), ("left",), (8, 8, 3))
    pixels.show_clips(console.make_console(), clips)
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
