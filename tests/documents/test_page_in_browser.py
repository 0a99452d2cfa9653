"""The report as a page, opened in a browser: what it shows, asks for and fits into."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import btcompress
from btcompress.calibration import SampleInputs
from btcompress.memory import size_text
from btcompress.wording import ratio_text

#: Viewports: a screen and a telephone, in both colour schemes.
_VIEWS = [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")]
#: Of axe's findings, those that keep somebody from reading.
_SERIOUS = ("serious", "critical")


class Tagger(nn.Module):
    """A small tagger with an output layer, whose decisions can be compared."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"recurrent_layers": nn.LSTM(24, 16, num_layers=2, batch_first=True)})
        self.head = nn.Linear(16, 5)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a calibrated result with its page, and the report as JSON."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    torch.save(Tagger().state_dict(), folder / "model.pt")
    x = np.random.default_rng(0).standard_normal((60, 8, 24), dtype=np.float32)
    np.savez(folder / "inputs.npz", x=x)
    result = btcompress.factorize(
        folder / "model.pt",
        target_ratio=4,
        of="bytes",
        matrices=("input", "recurrent"),
        calibration=(SampleInputs(str(folder / "inputs.npz")),),
        calibration_epochs=4,
    )
    btcompress.save(result, folder / "model.bt.safetensors")
    return folder


@pytest.fixture(scope="module")
def measured(report):
    """The page, written by the command that prints the same as JSON."""
    arguments = ["model.bt.safetensors", "--against", "model.pt", "--inputs", "inputs.npz", "--yardsticks"]
    command = [sys.executable, "-m", "btcompress", "report", *arguments, "--html", "page.html", "--json"]
    done = subprocess.run(command, cwd=report, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def opened(browser, report, measured):
    """Opens the page in a view; what it asked for and complained of is kept beside it."""
    contexts = []

    def open_in(width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        heard = {"requests": [], "complaints": []}
        tab.on("request", lambda request: heard["requests"].append(request.url))
        tab.on("console", lambda message: heard["complaints"].append(message.text))
        tab.on("pageerror", lambda error: heard["complaints"].append(str(error)))
        tab.goto((report / "page.html").as_uri())
        return tab, heard

    yield open_in
    for context in contexts:
        context.close()


def rows_of(tab, caption):
    """The cells of a table as they are shown, a mapping from headers for each row."""
    table = tab.locator("table", has=tab.locator("caption", has_text=caption))
    header, *rows = table.locator("tr").all()
    names = header.locator("th").all_inner_texts()
    return [dict(zip(names, row.locator("th, td").all_inner_texts(), strict=True)) for row in rows]


@pytest.mark.parametrize(("width", "scheme"), _VIEWS)
def test_page_opens_alone_and_fits_the_view(width, scheme, opened, report):
    tab, heard = opened(width, scheme)
    assert heard == {"requests": [(report / "page.html").as_uri()], "complaints": []}
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.title() == "model.bt.safetensors: report of a compression"
    for drawing in tab.locator("figure svg").all():
        box = drawing.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 50
        assert box["x"] + box["width"] <= width
        # Letters in it can be read: none of them is smaller than 9 of the page's pixels.
        scale = box["width"] / float(drawing.get_attribute("viewBox").split()[2])
        sizes = drawing.locator("text").evaluate_all(
            "all => all.map(each => parseFloat(getComputedStyle(each).fontSize))"
        )
        assert min(sizes) * scale > 9


@pytest.mark.parametrize(("width", "scheme"), _VIEWS)
def test_no_text_of_a_drawing_is_cut_off(width, scheme, opened):
    tab, _ = opened(width, scheme)
    cut = tab.evaluate(
        """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
            const outer = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < outer.left - 1 || box.right > outer.right + 1 || box.top < outer.top - 1
                    || box.bottom > outer.bottom + 1;
            }).map(text => text.textContent);
        })"""
    )
    assert cut == []


def test_numbers_shown_are_those_of_json(opened, measured):
    tab, _ = opened(1280, "light")
    rows = rows_of(tab, "The matrices that were chosen")
    assert len(rows) == len(measured["matrices"]) == 4
    for shown, row in zip(rows, measured["matrices"], strict=True):
        assert shown["matrix"] == row["name"]
        assert shown["bytes before"] == size_text(row["bytes_before"])
        assert shown["bytes after"] == size_text(row["bytes_after"])
        assert shown["ratio"] == ratio_text(row["bytes_ratio"])
        assert shown["weight error"] == f"{row['weight_error']:.3f}"
        assert shown["activation error"] == f"{row['activation_error']:.3f}"
        assert shown["weighted"] == f"{row['weighted_activation_error']:.3f}"
        assert shown["SVD at equal bytes"] == f"{row['svd_error']:.3f} (rank {row['svd_rank']})"
    layers = rows_of(tab, "Bytes of each layer, before and after")
    sizes = [(size_text(each["bytes_before"]), size_text(each["bytes_after"])) for each in measured["layers"]]
    assert [(each["bytes before"], each["bytes after"]) for each in layers[: len(sizes)]] == sizes
    model = {each["whole model"]: each for each in rows_of(tab, "The whole model, before and after")}
    assert model["parameters"]["after"] == f"{measured['model']['params_after']:,}"
    assert model["bytes"]["after"] == size_text(measured["model"]["bytes_after"])
    (calibrated,) = measured["calibrated"]
    stages = rows_of(tab, "Calibrations, oldest first")[0]
    for words, name in (("fitted to the weights", "before"), ("calibrated", "after")):
        assert stages[words] == f"{calibrated[f'hidden_state_error_{name}']:.4f}"
    (given,) = measured["on_inputs"]
    on_inputs = rows_of(tab, "On the inputs given")
    assert on_inputs[0]["measured"] == f"{given['hidden_state_error']:.4f}"
    assert on_inputs[1]["measured"] == f"{given['agreement']['steps']:.1%}"
    figures = tab.locator(".figures dd").all_inner_texts()
    assert figures[0] == ratio_text(measured["model"]["bytes_before"] / measured["model"]["bytes_after"])
    assert figures[2] == f"{given['agreement']['steps']:.1%}"
    for text in measured["advice"]:
        assert tab.get_by_text(text, exact=False).count() >= 1


def test_drawings_say_what_was_measured(opened, measured):
    tab, _ = opened(1280, "light")
    labels = tab.locator("figure svg").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert (
        len(labels) == 1 + 3 * 4 + 2 + 1
    )  # bytes; errors of weights and outputs, singular values; stages and curves; agreement
    for row in measured["matrices"]:
        told = f"as it is {size_text(row['bytes_after'])} at an error of {row['weight_error']:.3f}"
        assert any(row["name"] in label and told in label for label in labels)
    (curve,) = [each for each in measured["calibrated"][0]["learning_curves"] if each["layer"] is None]
    told = (
        f"all layers from {curve['metrics'][0]:.4f} to {curve['metrics'][-1]:.4f} in {len(curve['metrics']) - 1} epochs"
    )
    assert any(told in label for label in labels)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_page_can_be_read_by_all(width, scheme, opened):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    tab, _ = opened(width, scheme)
    found = axe.Axe().run(tab).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in _SERIOUS] == []


def test_keys_alone_reach_the_content_and_what_scrolls(opened):
    tab, _ = opened(360, "light")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the report"
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#content")
    scrolls = tab.locator(".wide, pre")
    assert scrolls.count() > 5
    for each in scrolls.all():
        each.focus()
        assert each.evaluate("each => each === document.activeElement")


def test_colours_follow_the_scheme_and_paper_is_white(opened):
    def colours(scheme, media="screen"):
        tab, _ = opened(1280, scheme)
        tab.emulate_media(media=media, color_scheme=scheme)
        bar = tab.locator("figure svg path[style*='--after']").first
        return tab.evaluate("getComputedStyle(document.body).backgroundColor"), bar.evaluate(
            "each => getComputedStyle(each).fill"
        )

    light, dark, printed = colours("light"), colours("dark"), colours("dark", "print")
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    assert printed == light


def test_page_prints_whole_tables(opened, tmp_path):
    tab, _ = opened(1280, "dark")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.set_viewport_size({"width": 718, "height": 1000})  # A4 between its margins
    assert tab.evaluate("[...document.querySelectorAll('.wide, pre')].every(each => each.scrollWidth <= 718)")
    tab.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
