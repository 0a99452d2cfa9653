"""The blocks of a page, done in order in one folder: run where all is here, else looked through."""

import ast
import importlib
import json
import re
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from btcompress.errors import BTCompressError
from btcompress.recipe import read_recipe
from codeblocks.blocks import ROOT, Block, PageError
from codeblocks.programs import Programs
from codeblocks.shell import Shell
from codeblocks.standins import Shelf

_RECORDED = re.compile(r'recording\([^")]*"(?P<name>[^"]+)"')


class Runner:
    """Does the blocks of one page.

    Args:
        blocks: all of them.
        shelf: what the page may find in its folder.
        of: the name of the page there.
        capsys: takes what is printed.
        monkeypatch: says where the process is.
        scratch: for the folders.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        shelf: Shelf,
        of: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        scratch: Path,
    ) -> None:
        self._blocks, self._shelf, self._of = blocks, shelf, of
        self._capsys, self._monkeypatch, self._scratch = capsys, monkeypatch, scratch
        self._begin(of)

    def _begin(self, of: str) -> None:
        self.folder, scratch = (Path(tempfile.mkdtemp(dir=self._scratch)) for _ in range(2))
        self._names = {"__name__": "__main__"} | self._shelf.fill(self.folder, of)
        self._given = {path.name for path in self.folder.iterdir()}
        running, reading = (Programs(self._capsys, invoked=invoked).by_name for invoked in (True, False))
        self._shell = Shell(running, reading, self.folder, scratch)
        self._monkeypatch.chdir(self.folder)

    def do(self, block: Block) -> None:
        """Run it, or look through it where it needs what is not here.

        Raises:
            PageError: something in it is wrong.
        """
        if block.afresh is not None:
            self._begin(": ".join(filter(None, (self._of, block.afresh))))
        self._check_paths(block)
        doing = {"sh": self._sh, "python": self._python, "yaml": self._yaml, "json": self._json}
        if block.language in doing:
            doing[block.language](block)

    def _check_paths(self, block: Block) -> None:
        if block.language == "sh":
            for path in re.findall(r"(?<![\w./])(?:tests|docs|examples|btcompress)/[\w./-]*\w", block.code):
                if not (ROOT / path).exists():
                    raise PageError(f"{block.place}: there is no {path}")

    def _sh(self, block: Block) -> None:
        if block.needs is None:
            self._shell.run(block)
        else:
            self._shell.check(block)

    def _python(self, block: Block) -> None:
        # As many lines before it as there are in the page, so that a traceback shows the page's.
        text = "\n" * (block.line - 1) + block.code
        try:
            tree = ast.parse(text, str(block.page))
        except SyntaxError as error:
            raise PageError(f"{block.page.name}:{error.lineno}: {error.msg}") from None
        if block.needs is not None:
            _check_names(tree, block)
            return
        for found in _RECORDED.finditer(block.code):
            if (name := found["name"]) in self._given:
                (self.folder / name).unlink()
                self._given.discard(name)
        try:
            exec(compile(tree, str(block.page), "exec", dont_inherit=True), self._names)
        except Exception as error:
            lines = [
                each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == str(block.page)
            ]
            raise PageError(f"{block.page.name}:{lines[-1]}: {type(error).__name__}: {error}") from error

    def _yaml(self, block: Block) -> None:
        try:
            value = yaml.safe_load(block.code)
        except yaml.YAMLError as error:
            raise PageError(f"{block.place}: {error}") from None
        if not isinstance(value, dict) or "steps" not in value:
            return
        recipe = self.folder / "recipe.yaml"
        recipe.write_text(block.code, encoding="utf-8")
        try:
            read_recipe(recipe, allow_code=True)
        except BTCompressError as error:
            raise PageError(f"{block.place}: {error}") from None
        later = self._blocks[self._blocks.index(block) + 1 :]
        if block.needs is None and not any("btcompress run" in each.code for each in later if each.language == "sh"):
            self._shell.run(Block(block.page, block.line, "sh", "btcompress run recipe.yaml\n"))

    def _json(self, block: Block) -> None:
        try:
            json.loads(block.code)
        except ValueError as error:
            raise PageError(f"{block.place}: {type(error).__name__}: {error}") from None


def _check_names(tree: ast.Module, block: Block) -> None:
    """Compare what the code takes of this package with what there is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "btcompress":
            taken = [(importlib.import_module(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "btcompress":
            taken = [(importlib.import_module("btcompress"), node.attr)]
        else:
            continue
        for module, name in taken:
            if not hasattr(module, name):
                raise PageError(f"{block.page.name}:{node.lineno}: {module.__name__} has no {name}")
