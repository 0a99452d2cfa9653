import json
import re
import sys
from dataclasses import replace

import pytest
import torch

import btcompress
from btcompress import display
from btcompress.checkpoint import from_state_dict
from btcompress.errors import BTCompressError
from btcompress.page import largest, page
from btcompress.page.drawing import drawable, named
from btcompress.recipe import recorded_recipe
from btcompress.reporting.curves import matrix_curves
from btcompress.reporting.markdown import document
from btcompress.results import LearningCurve
from lowrankresults import low_rank_result
from pages import Taken, dense_and_report, dense_state

#: What would be markup, a script, a template, a formula or an entity, if it were taken for one.
HOSTILE = (
    "</text></title></style>--><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{7*7}}{%x%}$x_1$中\u202e"
)
SECTIONS = [
    "What to know",
    "Where the bytes went",
    "Error against bytes",
    "Singular values",
    "Calibration and fine-tuning",
    "Speed",
    "Agreement with the dense model",
    "How to get it again",
]


@pytest.fixture(scope="module")
def made():
    return dense_and_report()


def drawn(dense, report):
    curves = matrix_curves(largest(report.matrices), dense)
    history = [{"step": "factorize", "recipe": {"target_ratio": 4.0, "seed": 3}}, {"step": "finetune"}]
    return page(report, "out.safetensors", source="model.pt", history=history, curves=curves)


@pytest.fixture(scope="module")
def text(made):
    return drawn(*made)


@pytest.fixture(scope="module")
def taken(text):
    return Taken.of(text)


def test_sections_stand_in_order_behind_the_advice_and_have_drawings_with_words(text, taken):
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", text) == SECTIONS
    assert text.index('id="advice"') < text.index("an advice") < text.index('id="sizes"')
    drawings = [value for tag, name, value in taken.attributes if (tag, name) == ("svg", "aria-label")]
    assert taken.tags.count("svg") == len(drawings) == taken.tags.count("figcaption")
    # Bytes; four matrices twice; stages, and curves of two trainings; one case; agreement.
    assert len(drawings) == 1 + 2 * 4 + 1 + 2 + 1 + 1
    assert any("calibrated 0.1234" in label for label in drawings)
    assert any("all layers from 0.2700 to 0.1300 in 1 epoch" in label for label in drawings)
    assert "target_ratio: 4.0" in taken.text
    assert "The recipe ends where the record does not say" in taken.text


def test_tables_have_all_numbers_of_the_report(made, taken):
    _, report = made
    header, *rows = taken.tables["The matrices that were chosen"]
    assert len(rows) == len(report.matrices) == 4
    for row, cells in zip(report.matrices, rows, strict=True):
        found = dict(zip(header, cells, strict=True))
        assert found["matrix"] == row.name
        assert found["before"] == f"{row.params_before:,}"
        assert found["after"] == f"{row.params_after:,}"
        assert found["weight error"] == f"{row.weight_error:.3f}"
        assert found["weighted"] == f"{row.weighted_activation_error:.3f}"
    assert [row[0] for row in taken.tables["Bytes of each layer, before and after"][1:]] == [
        *("rnn, layer 0", "rnn, layer 1", "head", "names and record"),
    ]
    assert ["rnn, prediction, batch 1, 50 steps", "block terms", "0.500"] in [
        row[:3] for row in taken.tables["Every way to run a layer, by turns"]
    ]
    every = " ".join(cell for table in taken.tables.values() for row in table for cell in row)
    for number in ("0.610 (rank 3)", "0.4321", "0.2345", "0.3456", "98.5%", "95.0%", "0.8500", "0.0123", "2.90x"):
        assert number in every, number
    for words in ("a notice", "a warning", "advice on speed", "it is a vector", "on A processor", "it predicts only"):
        assert words in taken.text


def test_nothing_from_elsewhere_becomes_markup_script_or_template():
    dense, report = dense_and_report(f"{HOSTILE}.", n_layers=1)
    way = replace(report.bench.cases[0].ways[0], way=HOSTILE)
    bench = replace(report.bench, cases=(replace(report.bench.cases[0], lstm=HOSTILE, ways=(way,)),))
    report = replace(report, notices=(HOSTILE,), advice=(HOSTILE,), bench=bench)
    history = [{"step": "factorize", "recipe": {"layers": [HOSTILE]}}, {"step": HOSTILE}]
    curves = matrix_curves(largest(report.matrices), dense)
    text = page(report, HOSTILE, source=HOSTILE, history=history, curves=curves)
    taken = Taken.of(text)
    assert {"script", "img", "iframe", "object", "link", "base", "form", "a:href"}.isdisjoint(taken.tags)
    assert not [name for _, name, _ in taken.attributes if name.startswith("on") or name == "src"]
    links = [value for _, name, value in taken.attributes if name in ("href", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert HOSTILE.replace("\u202e", "\\u202e") in taken.text
    assert "{{7*7}}" in taken.text
    assert "\u202e" not in taken.text
    shown = document(report, HOSTILE)
    assert "\\<script\\>" in shown
    assert not re.search(r"(?<!\\)[<`\[$]", shown)


def test_drawings_take_their_colours_from_the_page_and_share_no_names(text, taken):
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert not [found for each in drawings for found in re.findall(r"#[0-9a-fA-F]{6}\b", each)]
    assert all("var(--ink)" in each and "<text" in each for each in drawings)
    used = set(re.findall(r"var\(--(\w+)\)", "".join(drawings)))
    assert used <= set(re.findall(r"--(\w+): #", text))
    ids = [value for _, name, value in taken.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    inner = {value[1:] for _, name, value in taken.attributes if name == "href"} | set(
        re.findall(r"url\(#([^)]*)\)", text)
    )
    assert inner <= set(ids)


def test_page_is_the_same_each_time_in_ascii_and_asks_for_nothing(made, text):
    assert drawn(*made) == text
    assert text.isascii()
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_page_of_very_many_matrices_stays_small_and_has_all_of_them_in_its_tables(made):
    _, report = made
    rows = [replace(report.matrices[n % 4], name=f"layers.{n}.{report.matrices[n % 4].name}") for n in range(200)]
    many = replace(report, matrices=tuple(rows), layers=report.layers * 70)
    text = page(many, "out.safetensors")
    assert len(text) < 1_000_000
    taken = Taken.of(text)
    assert {row[0] for row in taken.tables["The matrices that were chosen"][1:]} == {row.name for row in rows}
    assert f"{200 - len(largest(rows))} more matrices are in the tables alone" in taken.text


def test_without_the_dense_checkpoint_it_is_said_what_to_give(made):
    bare = replace(btcompress.report(low_rank_result(dense_state(n_layers=1))), expected_speed=None)
    taken = Taken.of(page(bare, "out.safetensors"))
    assert taken.tags.count("svg") == 1 + len(bare.matrices)
    for words in ("--against MODEL --html PAGE", "bench out.safetensors --record", "factorize --calibration FILE"):
        assert words in taken.text


@pytest.mark.parametrize("number", [0.0, 1e308])
def test_numbers_that_no_scale_has_are_left_out_of_the_drawings(made, number):
    _, report = made
    row = replace(report.matrices[0], weight_error=number, svd_error=number)
    curve = LearningCurve((number, number))
    trainings = (replace(report.finetuned[0], before=number, after=number, dense=number, learning_curves=(curve,)),)
    calibrated = (replace(report.calibrated[0], hidden_state_error_before=number, learning_curves=(curve,)),)
    odd = replace(report, matrices=(row,), finetuned=trainings, calibrated=calibrated, on_inputs=(), bench=None)
    assert "nan" not in re.findall(r'd="[^"]*(nan|inf)', page(odd, "x"))


def test_lines_of_very_many_points_keep_their_ends():
    points = [(float(n), 1 / (n + 1)) for n in range(10_000)]
    kept = drawable(points)
    assert len(kept) < 200
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert drawable([(0, float("nan")), (1, 2)]) == [(1, 2)]
    assert named("a" * 100 + "z") == named("a" * 90 + "z")
    assert len(named("a" * 100 + "z")) < 50


def test_curves_of_the_dense_matrices_go_through_what_the_report_measured(made):
    dense, report = made
    for row, curves in zip(report.matrices, matrix_curves(report.matrices, dense), strict=True):
        each = {curve.kind: dict(curve.points) for curve in curves.curves}
        assert each["low_rank"][row.svd_rank * sum(row.shape) * 4] == pytest.approx(row.svd_error)
        measured = {(rounding.bytes, rounding.weight_error) for rounding in row.roundings}
        assert len(measured & {*each["rows"].items(), *each["groups"].items()}) >= 2
        wanted = torch.linalg.svdvals(dense.tensors[row.name].double())
        assert curves.singular_values == pytest.approx((wanted / wanted[0]).tolist(), abs=1e-7)
    zeros = from_state_dict({key: torch.zeros_like(tensor) for key, tensor in dense.tensors.items()})
    assert {(each.singular_values, each.curves) for each in matrix_curves(report.matrices, zeros)} == {((), ())}


def test_bytes_of_layers_add_up_to_those_of_the_model(made):
    _, report = made
    assert sum(layer.bytes_before for layer in report.layers) == report.model.bytes_before
    assert sum(layer.bytes_after for layer in report.layers) == report.model.tensor_bytes_after
    state = dense_state()
    tied = {**state, "tied.weight": state["head.weight"]}
    again = btcompress.report(low_rank_result(tied))
    assert again.layers[-1].name == "tied"
    assert (again.layers[-1].bytes_before, again.layers[-1].bytes_after) == (0, 0)
    assert sum(layer.bytes_before for layer in again.layers) == again.model.bytes_before


def test_recipe_on_record_is_the_one_that_was_run():
    history = [
        {"step": "factorize", "recipe": {"target_ratio": 4.0, "layers": ["rnn.*"], "calibration": [{"data": "x.npz"}]}},
        {"step": "calibrate"},
        {"step": "factorize", "recipe": {"bits": 4}},
    ]
    recipe = recorded_recipe(history, "model.pt", "out.safetensors")
    assert [step.record for step in recipe.steps] == [history[0]["recipe"], history[2]["recipe"]]
    assert str(recipe.model) == "model.pt"
    trained = [*history[:2], {"step": "finetune"}, history[2]]
    assert len(recorded_recipe(trained, "model.pt", "out.safetensors").steps) == 1


@pytest.mark.parametrize(
    "step",
    [
        {"step": "factorize", "matrices": ["input"], "options": {}},
        {"step": "factorize", "recipe": {"plan": {"wish": {"target_ratio": 2.0}}}},
        {"step": "factorize", "recipe": {"target_ratio": "a lot"}},
        {"step": "factorize", "recipe": [1]},
        {"step": "random start"},
    ],
    ids=["older version", "plan in memory", "no number", "no mapping", "no recipe"],
)
def test_record_that_does_not_say_it_all_gives_no_recipe(step):
    assert recorded_recipe([step], "model.pt", "out.safetensors") is None


def test_markdown_begins_with_the_advice_and_has_every_table(made):
    _, report = made
    text = document(report, "out_1.safetensors")
    assert text.startswith("## out\\_1.safetensors\n\n- ")
    assert text.index("an advice") < text.index("### Where the bytes went") < text.index("### Notes")
    assert "0.610 (rank 3)" in text
    assert "| rnn, prediction, batch 1, 50 steps | block terms | 0.500 |" in text
    assert all(line.count("|") > 3 for line in text.splitlines() if line.startswith("|"))


def test_page_and_markdown_mark_what_is_worse_as_a_terminal_does_and_say_what_it_means(made, capsys):
    _, report = made
    calibrated = (replace(report.calibrated[0], hidden_state_error_after=0.9),)
    worse = replace(report, calibrated=calibrated)
    meaning = "! is worse than fitted to the weights."
    display.show_report(worse)
    assert "0.9000!" in (shown := capsys.readouterr().out)
    assert meaning in shown
    text = page(worse, "x")
    assert '<td class="number worse">0.9000<span class="mark">!</span></td>' in text
    (legend,) = re.findall(rf'<p class="legend" id="([^"]*)">{meaning}</p>', text)
    assert f'<table aria-describedby="{legend}">' in text
    assert re.search(rf"\| 0\.9000! \|[^#]*\n\n{meaning}\n", document(worse, "x"))
    for unmarked in (page(report, "x"), document(report, "x")):
        assert meaning not in unmarked
        assert "0.1234!" not in unmarked


@pytest.fixture
def files(tmp_path):
    state = dense_state(n_layers=1)
    torch.save(state, tmp_path / "model.pt")
    btcompress.save(low_rank_result(state), tmp_path / "out.safetensors")
    return tmp_path


def test_files_are_written_once_and_again_only_with_force(files, run):
    out, _ = run("report", "out.safetensors", "--html", "a.html", "--markdown", "a.md", cwd=files)
    assert out.endswith("Wrote a.html\nWrote a.md\n")
    before = (files / "a.html").read_bytes()
    assert (files / "a.md").read_text().startswith("## out.safetensors")
    _, err = run("report", "out.safetensors", "--html", "a.html", cwd=files, code=2)
    assert "a.html already exists" in err
    _, err = run("report", "missing.safetensors", "--html", "a.html", cwd=files, code=2)
    assert "a.html already exists" in err  # before anything is read
    out, _ = run("report", "out.safetensors", "--html", "a.html", "--force", "--json", cwd=files)
    assert json.loads(out)["layers"][0]["name"] == "rnn"
    assert (files / "a.html").read_bytes() == before
    assert sorted(path.name for path in files.iterdir()) == ["a.html", "a.md", "model.pt", "out.safetensors"]


def test_what_is_read_is_never_written(files, run):
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    for target in ("out.safetensors", "model.pt"):
        for option in ("--html", "--markdown"):
            arguments = ("out.safetensors", "--against", "model.pt", option, target, "--force")
            _, err = run("report", *arguments, cwd=files, code=2)
            assert "never overwritten" in err
    _, err = run("report", "out.safetensors", "--html", "x", "--markdown", "./x", cwd=files, code=2)
    assert "would both write x" in err
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_standard_output_gets_one_thing_and_nothing_else(files, run):
    out, _ = run("report", "out.safetensors", "--markdown", "-", cwd=files)
    assert out.startswith("## out.safetensors\n")
    assert "Wrote" not in out
    out, _ = run("report", "out.safetensors", "--html", "-", cwd=files)
    assert out.startswith("<!DOCTYPE html>")
    assert out.endswith("</html>\n")
    for more in (("--json",), ("--markdown", "-")):
        _, err = run("report", "out.safetensors", "--html", "-", *more, cwd=files, code=2)
        assert "cannot share standard output" in err
    assert not (files / "-").exists()


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_missing_package_is_named_before_anything_is_read(package, run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    _, err = run("report", "missing.safetensors", "--html", "a.html", cwd=tmp_path, code=2)
    assert f"needs the package {package}" in err
    assert "pip install 'btcompress[page]'" in err
    with pytest.raises(BTCompressError, match=package):
        page(btcompress.report(low_rank_result(dense_state())), "x")


def test_learning_curves_have_four_digits_and_stay_finite():
    largest_float = sys.float_info.max
    assert LearningCurve.of(0.123456, [largest_float, 1234.56]).metrics == (0.1235, largest_float, 1235.0)
