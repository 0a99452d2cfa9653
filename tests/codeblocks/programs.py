"""What answers the commands in blocks of pages: the command line itself, and judges of all that is not run here."""

import argparse
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
from packaging.requirements import InvalidRequirement, Requirement

from btcompress import cli
from codeblocks.blocks import ROOT
from codeblocks.shell import Answer, Call, Program

#: Environment that is the business of bash alone.
_SHELLS = ("PAGE_LINE", "PATH", "PWD", "OLDPWD", "SHLVL", "_", "LC_ALL")


class _ArgumentsTaken(BaseException):
    """A script took its arguments, and would begin."""


class Programs:
    """Programs by name, as a shell has them.

    Args:
        capsys: takes what commands print.
        invoked: whether commands of ``btcompress`` do what they are for, or have their options read alone.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str], *, invoked: bool) -> None:
        self._capsys, self._invoked = capsys, invoked
        python = self.python
        self.by_name: dict[str, Program] = {
            "accelerate": self.launcher,
            "btcompress": self.btcompress,
            "make": make,
            "pip": self.pip,
            "pytest": pytest_arguments,
            "python": python,
            "python3": python,
            "torchrun": self.launcher,
        }

    def btcompress(self, call: Call) -> Answer:
        commands = _get_command(cli.app).commands.values()
        known = {parameter.envvar for command in commands for parameter in command.params}
        for name in call.environ:
            if name.startswith("BTCOMPRESS_") and name not in known:
                return Answer(2, err=f"{name}: no option has that variable\n")
        with _as_process(call), patch.object(typer.main, "get_command", self._command):
            return self._ended(cli.main)

    def launcher(self, call: Call) -> Answer:
        """Of several processes, which are not begun here: what one of them is to do."""
        if self._invoked:
            return Answer(2, err=f"{call}: say what the block needs\n")
        begins = next((n for n, word in enumerate(call.words) if word == "-m" or word.endswith(".py")), None)
        return Answer() if begins is None else self.python(_as(call, "python", *call.words[begins:]))

    def python(self, call: Call) -> Answer:
        """``-m MODULE`` of what pages name, a script of the folder at hand, or one of the repository.

        Scripts of the repository have tests of their own; here they are to take their arguments.
        """
        match call.words[1:]:
            case ["-m", "btcompress", *rest]:
                return self.btcompress(_as(call, "btcompress", *rest))
            case ["-m", "pip", *rest]:
                return self.pip(_as(call, "pip", *rest))
            case ["-m", "pytest", *rest]:
                return pytest_arguments(_as(call, "pytest", *rest))
            case ["-m", "venv", name]:
                # Activated or not, the programs are these.
                if self._invoked:
                    (Path(call.folder) / name / "bin").mkdir(parents=True)
                    (Path(call.folder) / name / "bin" / "activate").touch()
                return Answer()
            case ["-c", code, *rest]:
                ran = compile(code, "-c", "exec", dont_inherit=True)
                with _as_process(_as(call, "-c", *rest)):
                    return self._ended(lambda: exec(ran, {"__name__": "__main__"}) if self._invoked else None)
            case [script, *rest] if script.endswith(".py"):
                if self._invoked and (own := Path(call.folder) / script).exists():
                    return self._script(_as(call, str(own), *rest))
                if (ROOT / script).exists():
                    return self._arguments(_as(call, str(ROOT / script), *rest))
                if not self._invoked:
                    return Answer()
        return Answer(2, err=f"{call}: python is not known to take that on a page\n")

    def pip(self, call: Call) -> Answer:
        """``pip install`` of this project, with extras that it has."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        try:
            given, unknown = _pip_arguments().parse_known_args(call.words[1:])
        except argparse.ArgumentError as error:
            return Answer(2, err=f"{call}: {error}\n")
        if unknown:
            return Answer(2, err=f"{call}: pip is not known to take {unknown[0]} on a page\n")
        for word in (*given.packages, *given.editable):
            local = re.fullmatch(r"\.(?P<extras>\[.*\])?", word)
            try:
                wanted = Requirement(f"{project['name']}{local['extras'] or ''}" if local else word)
            except InvalidRequirement as error:
                return Answer(2, err=f"{word}: {error}\n")
            if wanted.name != project["name"]:
                if self._invoked:
                    return Answer(2, err=f"{word} is of another project: say what the block needs\n")
                continue
            if missing := wanted.extras - project["optional-dependencies"].keys():
                return Answer(2, err=f"{word}: there is no extra {', '.join(sorted(missing))}\n")
        return Answer()

    def _script(self, call: Call) -> Answer:
        with _as_process(call):
            return self._ended(lambda: runpy.run_path(call.words[0], run_name="__main__"))

    def _arguments(self, call: Call) -> Answer:
        parse = argparse.ArgumentParser.parse_args

        def parse_alone(parser: argparse.ArgumentParser, *given: object) -> None:
            parse(parser, *given)
            raise _ArgumentsTaken

        def until_arguments() -> None:
            with patch.object(argparse.ArgumentParser, "parse_args", parse_alone):
                try:
                    runpy.run_path(call.words[0], run_name="__main__")
                except _ArgumentsTaken:
                    return
                except ModuleNotFoundError as error:
                    if self._invoked:
                        raise SystemExit(f"{error}: say what the block needs") from None
                    return
            raise AssertionError(f"{call.words[0]} took no arguments")

        with _as_process(call), patch.object(sys, "path", [str(Path(call.words[0]).parent), *sys.path]):
            return self._ended(until_arguments)

    def _command(self, app: typer.Typer) -> object:
        command = _get_command(app)
        if not self._invoked:
            for each in (command, *command.commands.values()):
                each.callback = lambda **_: None
            for each in command.params:
                if each.name in ("install_completion", "show_completion"):
                    each.callback = None
        return command

    def _ended(self, body: Callable[[], object]) -> Answer:
        self._capsys.readouterr()
        code: object = 0
        try:
            body()
        except SystemExit as stop:
            code = stop.code
        out, err = self._capsys.readouterr()
        if isinstance(code, str):
            return Answer(1, out, f"{err}{code}\n")
        return Answer(int(code or 0), out, err)


def _pip_arguments() -> argparse.ArgumentParser:
    """What pages give to pip."""
    parser = argparse.ArgumentParser("pip", exit_on_error=False)
    install = parser.add_subparsers(required=True, dest="command").add_parser("install", exit_on_error=False)
    for switch in (("--no-deps",), ("--quiet", "-q"), ("--upgrade", "-U")):
        install.add_argument(*switch, action="store_true")
    for option in (("--constraint", "-c"), ("--index-url", "-i"), ("--target", "-t")):
        install.add_argument(*option)
    install.add_argument("--editable", "-e", action="append", default=[])
    install.add_argument("packages", nargs="*")
    return parser


_get_command = typer.main.get_command


def make(call: Call) -> Answer:
    """Targets and variables are those of the Makefile; what they do is shown."""
    told = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in call.words[1:]:
        if "=" in word and not re.search(rf"^{re.escape(word.split('=')[0])}\s*\??:?=", told, re.MULTILINE):
            return Answer(2, err=f"{word}: the Makefile has no such variable\n")
    done = subprocess.run(["make", "-n", *call.words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def pytest_arguments(call: Call) -> Answer:
    """Paths that are there, and tests in them."""
    for word in call.words[1:]:
        path, _, name = word.partition("::")
        if word.startswith("-"):
            continue
        if not (ROOT / path).exists():
            return Answer(2, err=f"{path} is not there\n")
        if name and f"def {name.split('[')[0]}(" not in (ROOT / path).read_text(encoding="utf-8"):
            return Answer(2, err=f"{path} has no {name}\n")
    return Answer()


def _as(call: Call, *words: str) -> Call:
    return Call(list(words), call.folder, call.environ, call.piped)


@contextmanager
def _as_process(call: Call) -> Iterator[None]:
    """This process with the words, the folder and the environment of the call."""
    environ = {name: value for name, value in call.environ.items() if name not in _SHELLS}
    before = Path.cwd()
    with patch.object(sys, "argv", call.words), patch.dict(os.environ, environ):
        os.chdir(call.folder)
        try:
            yield
        finally:
            os.chdir(before)
