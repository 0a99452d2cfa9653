"""The command in processes of its own, with standard streams that are closed, full, unread or short of characters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "mödel.pt"
    torch.save({f"größe.{key}": value for key, value in nn.LSTM(16, 8).state_dict().items()}, path)
    return path


def in_shell(folder, command, **environment):
    """Run ``command`` in a shell, where ``$BT`` is the command; returns its exit code, stdout and stderr."""
    # An empty one counts as none: what is buffered must be able to fail as late as when Python ends.
    environment = {"BT": f"{sys.executable} -m btcompress", "PYTHONUNBUFFERED": "", **environment}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("$BT --version >/dev/full", 2, "No space left on device"),
        ("$BT --version >&-", 2, "it is closed"),
        ("$BT --version | true", 0, ""),
        ("$BT --help >/dev/full", 2, "No space left on device"),
        ("$BT --help | head -c 1 >/dev/null", 0, ""),
        ("$BT --version >/dev/full 2>/dev/full", 2, ""),
        ("$BT --version >&- 2>&-", 2, ""),
        ("$BT inspect 2>&-", 2, ""),
        ("$BT inspect 2>/dev/full", 2, ""),
        ("$BT inspect mödel.pt >/dev/full", 2, "No space left on device"),
        ("$BT inspect --json mödel.pt | head -c 1 >/dev/null", 0, ""),
    ],
)
def test_what_only_shows_ends_quietly_without_a_reader_and_says_why_it_cannot_show(command, code, words, model):
    returned, _, err = in_shell(model.parent, command)
    assert returned == code, err
    assert err.startswith("Error: standard output did not take") if words else err == ""
    assert words in err
    assert err.count("\n") == bool(words)
    assert sorted(path.name for path in model.parent.iterdir()) == [model.name]


@pytest.mark.parametrize(("output", "words"), [(">/dev/full", "No space left on device"), (">&- 2>&-", "")])
def test_what_is_written_counts_even_where_it_cannot_be_told(output, words, model):
    returned, _, err = in_shell(model.parent, f"$BT factorize mödel.pt {output}")
    result = model.with_name("mödel.bt.safetensors")
    assert returned == 0, err
    if words:
        assert err == (
            f"Wrote {result.name}, but standard output did not take what there is to tell of it ({words}).\n"
        )
    assert sorted(path.name for path in model.parent.iterdir()) == sorted([model.name, result.name])
    with safe_open(result, "pt") as file:
        assert "größe.bias_ih_l0" in file.keys()  # noqa: SIM118


def test_plans_are_saved_even_where_they_cannot_be_shown(model):
    returned, _, err = in_shell(model.parent, "$BT plan mödel.pt --max-error 0.9 --save-plan p.yaml >/dev/full")
    assert returned == 0
    assert err.startswith("Wrote p.yaml, but ")
    assert "größe" in (model.parent / "p.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C locale"],
)
def test_characters_that_an_encoding_lacks_are_escaped(environment, model):
    plain = model.rename(model.with_name("model.pt"))
    returned, out, err = in_shell(plain.parent, "$BT factorize model.pt -o mödel", **environment)
    assert (returned, err) == (0, "")
    assert rb"gr\xf6\xdfe.weight_ih_l0" in out
    assert out.endswith(b"Wrote m\\xf6del\n")
    assert model.with_name("mödel").exists()


def test_no_file_takes_the_place_of_a_closed_standard_stream(tmp_path):
    script = (
        "import os; from btcompress.display import guarded_streams\n"
        "with guarded_streams(): raise SystemExit(os.open(os.devnull, os.O_RDONLY) <= 2)"
    )
    returned, _, _ = in_shell(tmp_path, f"{sys.executable} -c '{script}' <&- >&- 2>&-")
    assert returned == 0
