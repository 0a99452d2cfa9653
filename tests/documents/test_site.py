"""The site of the documents: it builds without a warning, opens without a network, and has what it should have."""

import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import typer.main

import btcompress
from btcompress.cli import app

for package in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(package, reason=f"{package} is not installed")

ROOT = Path(__file__).parents[2]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
COMMANDS = typer.main.get_command(app).commands


def build(docs, site):
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", str(docs), str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=docs.parent)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return path


@pytest.fixture(scope="module")
def entries(site):
    """Of every kind that the reference has, the names: the inventory that other projects would link to."""
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    found = {}
    for line in zlib.decompress(packed).decode().splitlines():
        name, kind = re.match(r"(.+?)\s+(\S+:\S+)\s", line).groups()
        found.setdefault(kind, set()).add(name)
    return found


def pages(site):
    return sorted(site.glob("*.html"))


def test_every_page_is_on_the_site_and_in_its_navigation(site):
    start = (site / "index.html").read_text()
    for source in (ROOT / "docs").glob("*.md"):
        assert (site / f"{source.stem}.html").exists()
        assert source.stem == "index" or f'href="{source.stem}.html"' in start


def test_pages_open_from_files_without_errors_and_ask_for_nothing_outside(site, browser):
    context = browser.new_context(viewport=WIDE)
    page, faults, asked = context.new_page(), [], []
    page.on("console", lambda said: faults.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("request", lambda request: asked.append(request.url))
    for path in pages(site):
        page.goto(path.as_uri())
    context.close()
    assert faults == []
    assert len(asked) > len(pages(site))
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_pages_scroll_wide_tables_and_code_in_their_boxes_only(site, browser, scheme):
    context = browser.new_context(viewport=NARROW, color_scheme=scheme)
    page, too_wide, scrolled = context.new_page(), [], 0
    for path in pages(site):
        page.goto(path.as_uri())
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            too_wide.append(path.name)
        boxes = "[...document.querySelectorAll('.table-wrapper, pre')]"
        scrolled += page.evaluate(f"{boxes}.filter(box => box.scrollWidth > box.clientWidth).length")
    context.close()
    assert too_wide == []
    assert scrolled > 10


def test_the_search_finds_words_of_pages_commands_and_names(site, browser):
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    for word, found in (("deflation", "math.html"), ("--tucker-rank", "commands.html"), ("BTLSTM", "python.html")):
        page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
        page.wait_for_selector("#search-results li a")
        page.wait_for_selector(f"#search-results a[href*='{found}']")
    context.close()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_options_in_the_reference(entries, command):
    parameters = COMMANDS[command].params
    options = {option for each in parameters for option in (*each.opts, *each.secondary_opts) if option[0] == "-"}
    assert "--max-memory" in options
    assert {f"btcompress-{command}.{option}" for option in options} <= entries["std:cmdoption"]


def test_the_reference_has_what_help_says_of_defaults_and_variables(site):
    text = re.sub(r"<[^>]+>", "", (site / "commands.html").read_text())
    assert "[default: input]" in text
    assert "Kinds of matrices: input (weight_ih of an LSTM, GRU or RNN)" in text
    assert "btcompress inspect [OPTIONS]" in text


def test_every_public_name_has_an_entry_in_the_python_reference(entries):
    names = {name for kind, names in entries.items() if kind.startswith("py:") for name in names}
    assert {f"btcompress.{name}" for name in btcompress.__all__} <= names


def test_links_of_the_readme_into_the_documents_lead_somewhere(site):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]+))?\)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    for path, anchor in links:
        assert (ROOT / path).exists(), path
        if anchor:
            assert f'id="{anchor}"' in (site / f"{Path(path).stem}.html").read_text(), f"{path}#{anchor}"


BROKEN = {
    "a link to a page that is not there": "cross-reference target not found: 'nowhere.md'",
    "a link to a heading that is not there": "'no-such-heading'",
    "a page in no list": "unlisted.md: WARNING: document isn't included in any toctree",
    "a public name without a docstring": "btcompress.run has no docstring",
    "a public field that no docstring names": "btcompress.GraphRequest.batch has no docstring",
    "a public name without an entry": "btcompress.pin has no entry in the Python reference",
    "a reference to a name that is not there": "py:func reference target not found: btcompress.nothing",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What the build says of a copy with a fault of every kind in it."""
    copy = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "docs", copy / "docs")
    for each in ROOT.glob("*.md"):
        shutil.copy(each, copy)
    docs = copy / "docs"
    with (docs / "bench.md").open("a") as page:
        page.write("\n[one](nowhere.md) and [another](math.md#no-such-heading)\n")
    (docs / "unlisted.md").write_text("# Unlisted\n")
    names = (docs / "python.md").read_text()
    assert ".. autofunction:: pin\n" in names
    (docs / "python.md").write_text(names.replace(".. autofunction:: pin\n", ""))
    with (docs / "conf.py").open("a") as settings:
        settings.write("btcompress.run.__doc__ = None\n")
        settings.write("btcompress.load.__doc__ += '\\n:func:`btcompress.nothing`'\n")
        settings.write(
            "btcompress.GraphRequest.__doc__ = btcompress.GraphRequest.__doc__.replace('    batch: ', '    other: ')\n"
        )
    done = build(docs, copy / "site")
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("fault", BROKEN)
def test_the_build_fails_on(faults, fault):
    assert BROKEN[fault] in faults
