"""What commands tell besides their results, what they take from the environment, and what shells complete."""

import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from btcompress import display
from btcompress.display import progress, verbosity

COMMANDS = ("factorize", "plan", "inspect", "report", "bench", "export", "finetune", "run", "demo")
VARIABLES = ("QUIET", "VERBOSE", "SEED", "DEVICE", "MAX_MEMORY", "STRICT")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(f"BTCOMPRESS_{name}", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, its inputs, and a recipe."""
    folder = tmp_path_factory.mktemp("telling")
    torch.manual_seed(0)
    torch.save({f"rnn.{key}": tensor for key, tensor in nn.LSTM(12, 8).state_dict().items()}, folder / "model.pt")
    np.savez(folder / "data.npz", x=torch.randn(30, 4, 12).numpy())
    step = "{matrices: [input], cp_rank: 1, tucker_rank: 2}"
    recipe = f"version: 1\nmodel: model.pt\noutput: recipe.safetensors\nsteps:\n- factorize: {step}\n"
    (folder / "recipe.yaml").write_text(recipe)
    return folder


#: For each command that is small: its arguments, the files that it writes, and a file that it reads.
WRITING = {
    "factorize": ("factorize model.pt -n 1 -r 2 -o result.safetensors --force", ["result.safetensors"], "model.pt"),
    "plan": ("plan model.pt --max-error 0.9 --save-plan plan.yaml --force", ["plan.yaml"], "model.pt"),
    "export": ("export result.safetensors --to dense -o dense.pt --force", ["dense.pt"], "result.safetensors"),
    "finetune": (
        "finetune result.safetensors --teacher model.pt --data data.npz --epochs 1 --cpu -o tuned.safetensors --force",
        ["tuned.safetensors", "tuned.metrics.jsonl"],
        "data.npz",
    ),
    "run": ("run recipe.yaml --force", ["recipe.safetensors"], "recipe.yaml"),
}
SHOWING = {
    "inspect": ("inspect model.pt", "model.pt"),
    "report": ("report result.safetensors", "result.safetensors"),
    "bench": ("bench result.safetensors --seconds 0.01 --batch 1 --steps 1", "result.safetensors"),
}


@pytest.fixture
def call(folder, run):
    """Run a command line in the folder, in which a result lies."""
    if not (folder / "result.safetensors").exists():
        run(*WRITING["factorize"][0].split(), cwd=folder)

    def called(line, *more, **options):
        return run(*line.split(), *more, cwd=folder, **options)

    return called


@pytest.mark.parametrize("command", WRITING)
def test_a_quiet_command_that_writes_says_what_it_wrote_and_no_more(command, call):
    line, written, _ = WRITING[command]
    out, err = call(line, "--quiet")
    assert out.splitlines() == [f"Wrote {name}" for name in written]
    assert err == ""


@pytest.mark.parametrize("command", SHOWING)
def test_a_quiet_command_that_only_shows_shows(command, call):
    out, err = call(SHOWING[command][0], "-q")
    assert len(out.splitlines()) > 3
    assert err == ""


@pytest.mark.parametrize("command", [*WRITING, *SHOWING])
def test_a_verbose_command_tells_on_stderr_what_it_reads_and_how_long_it_took(command, call):
    line, *_, read = {**WRITING, **SHOWING}[command]
    out, err = call(line, "-v")
    lines = err.splitlines()
    assert f"reading {read}" in lines
    assert re.fullmatch(r"done in \d+\.\d s", lines[-1])
    assert len(lines) == len(set(lines))
    assert "reading" not in out
    if command in WRITING:
        assert f"wrote {WRITING[command][1][0]}" in lines
        assert f"Wrote {WRITING[command][1][0]}" in out.splitlines()


def test_json_is_the_same_however_much_is_told(call):
    line = "report result.safetensors --json"
    assert call(line)[0] == call(line, "--quiet")[0] == call(line, "--verbose")[0]


def test_errors_are_told_to_the_quiet_and_with_their_traceback_to_the_verbose(call):
    out, err = call("inspect nowhere.pt --quiet", code=2)
    assert out == ""
    assert re.fullmatch(r"Error: nowhere\.pt [^\n]+\n", err)
    err_of_verbose = call("inspect nowhere.pt --verbose", code=2)[1]
    assert "Traceback (most recent call last):" in err_of_verbose
    assert err_of_verbose.endswith(err)


def test_demonstrations_that_are_quiet_name_their_folder(call, monkeypatch):
    monkeypatch.setattr("btcompress.demo.run_demo", lambda *_, **__: None)
    assert call("demo -o shown --quiet") == ("Wrote shown\n", "")


def test_parts_of_long_work_are_told_to_the_verbose_alone(monkeypatch, capsys):
    seconds = iter(range(1000))
    monkeypatch.setattr(progress, "_now", lambda: float(next(seconds)))
    told = {}
    for each in ("quiet", "usual", "verbose"):
        with display.telling(each), progress._shown() as update:
            for part in ("a (1 of 2)", "b (2 of 2)"):
                for share in (0.5, 1.0):
                    update("fitting", share, part, "error 0.5")
        told[each] = capsys.readouterr().err.splitlines()
    assert told["quiet"] == []
    assert not any("after" in line for line in told["usual"])
    lines = [line for line in told["verbose"] if line.startswith(("fitting a", "fitting b"))]
    assert lines == ["fitting a (1 of 2), error 0.5, after 2.0 s", "fitting b (2 of 2), error 0.5, after 4.0 s"]
    assert not display.is_quiet()


def test_what_was_told_before_is_not_told_afterwards(capsys):
    with display.telling("verbose"):
        verbosity.tell("one")
    verbosity.tell("two")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "one"
    assert "two" not in lines


@pytest.mark.parametrize(
    ("variables", "arguments", "quiet"),
    [
        ({"QUIET": "1"}, "", True),
        ({"QUIET": "0"}, "", False),
        ({"QUIET": "1"}, "--verbose", False),
        ({"VERBOSE": "1"}, "--quiet", True),
    ],
)
def test_the_command_line_counts_more_than_the_environment(variables, arguments, quiet, call, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(f"BTCOMPRESS_{name}", value)
    out, _ = call(f"factorize model.pt --bits 8 -o few.safetensors -f {arguments}")
    assert (out == "Wrote few.safetensors\n") is quiet


def test_both_options_stand_before_the_command_as_well(call):
    assert call(f"--quiet {WRITING['factorize'][0]}")[0] == "Wrote result.safetensors\n"
    _, err = call(f"--quiet {WRITING['factorize'][0]} --verbose")
    assert "done in" in err
    _, err = call("inspect model.pt -q -v", code=2)
    assert "--quiet and --verbose say the opposite. Give one of them." in err


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SEED", "many", "Error: BTCOMPRESS_SEED: Invalid value for '--seed': "),
        ("SEED", "-1", "Error: BTCOMPRESS_SEED: Invalid value for '--seed': "),
        ("QUIET", "maybe", "Error: BTCOMPRESS_QUIET: Invalid value for '--quiet' / '-q': "),
        ("STRICT", "maybe", "Error: BTCOMPRESS_STRICT: Invalid value for '--strict': "),
        ("DEVICE", "abacus", "Error: BTCOMPRESS_DEVICE: the device 'abacus' cannot be used here"),
        ("MAX_MEMORY", "4x", "BTCOMPRESS_MAX_MEMORY '4x' is not a size such as 8G"),
    ],
)
def test_a_bad_value_in_the_environment_is_an_error_that_names_the_variable(name, value, words, call, monkeypatch):
    monkeypatch.setenv(f"BTCOMPRESS_{name}", value)
    out, err = call("factorize model.pt -o nothing.safetensors", code=2)
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


def test_an_error_of_an_option_that_was_given_names_no_variable(call):
    for arguments in ("--seed many", "--device abacus", "--max-memory 4x"):
        _, err = call(f"factorize model.pt -o nothing.safetensors {arguments}", code=2)
        assert "BTCOMPRESS" not in err
        assert arguments.split()[-1] in err or arguments.split()[0] in err


def test_the_environment_gives_defaults_and_the_command_line_counts_more(call, folder, monkeypatch):
    line = "factorize model.pt -n 2 -r 2 -q -f -o"
    call(line, "by-hand.safetensors", "--seed", "7")
    monkeypatch.setenv("BTCOMPRESS_SEED", "7")
    call(line, "from-variable.safetensors")
    call(line, "other.safetensors", "--seed", "8")
    by_hand, variable, other = (
        (folder / f"{name}.safetensors").read_bytes() for name in ("by-hand", "from-variable", "other")
    )
    assert by_hand == variable != other
    monkeypatch.setenv("BTCOMPRESS_MAX_MEMORY", "1k")
    _, err = call("factorize model.pt -o nothing.safetensors", code=2)
    assert "--max-memory" in err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_ends_with_the_exit_codes_and_names_the_variables(command, run):
    words = " ".join(re.sub("[│\\s]+", " ", run(*command.split(), "--help")[0]).split())
    assert words.endswith(
        "Exit codes: 0: done. 2: an error that one line on stderr names. 130: interrupted (Ctrl-C). 1: a defect of "
        "btcompress, with its traceback."
    )
    for name in ("quiet", "verbose", *(["max_memory"] if command else [])):
        assert f"BTCOMPRESS_{name.upper()}" in words
        assert f"--{name.replace('_', '-')}" in words


def test_the_version_is_one_line_and_more_with_verbose(run):
    (line,) = run("--version")[0].splitlines()
    assert re.fullmatch(r"btcompress \d+\.\d+\.\d+\S*", line)
    first, python, *packages = run("--version", "--verbose")[0].splitlines()
    assert first == line
    assert python.startswith(f"Python {sys.version.split()[0]} on ")
    assert f"torch {torch.__version__}" in packages
    assert run("--verbose", "--version")[0].splitlines()[0] == line


def test_an_option_alone_is_no_command(run):
    assert "Missing command" in run("--verbose", code=2)[1]


@pytest.fixture
def bash(tmp_path):
    """Run bash with ``btcompress`` among its commands, and say which of these modules it loads."""
    command = tmp_path / "bin" / "btcompress"
    command.parent.mkdir()
    script = "import sys; from btcompress.__main__ import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(script)} "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}"}

    def called(text):
        done = subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return called


def test_bash_completes_commands_choices_and_names_without_loading_torch(bash, folder):
    save_file({"front.rnn.weight_ih_l0": torch.zeros(4, 1), "head.weight": torch.zeros(2)}, folder / "m.safetensors")
    lines = {
        "btcompress fa": "factorize",
        "btcompress factorize --gates ": "fused separate",
        "btcompress factorize --matrices input,re": "input,recurrent",
        f"btcompress factorize {folder / 'm.safetensors'} --layer f": "front.rnn front.rnn.weight_ih_l0",
    }
    tries = "\n".join(f"try {' '.join(map(shlex.quote, line.split(' ')))}" for line in lines)
    script = f"""
        eval "$(btcompress --show-completion)"
        complete -p btcompress > /dev/null
        try() {{
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _btcompress_completion btcompress
            echo "${{COMPREPLY[*]}}"
        }}
        {tries}
    """
    assert bash(script).splitlines() == list(lines.values())


def test_completion_installs_itself_for_bash(bash, tmp_path):
    assert "bash completion installed in " in bash("btcompress --install-completion; true")
    assert "_BTCOMPRESS_COMPLETE" in (tmp_path / ".bash_completions" / "btcompress.sh").read_text()
    assert "btcompress.sh" in (tmp_path / ".bashrc").read_text()
