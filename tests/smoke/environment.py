"""A fresh environment with the wheel and nothing that it does not ask for."""

import shutil
import tempfile
from pathlib import Path

from smoke import standins
from smoke.commands import run

HERE = Path(__file__).parent


class Environment:
    """One with the wheel installed, in a folder that is removed in the end.

    Args:
        python: which to make it of.
        folder: where to make it; programs run in another folder within, outside of the source tree.
        wheel: the file to install.
        constraints: the versions to install of what it needs.
    """

    def __init__(self, python, folder, wheel, constraints):
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.python = self.folder / "venv" / "bin" / "python"
        self.work = self.folder / "work"
        self.work.mkdir()
        run(python.path, "-m", "venv", self.folder / "venv")
        wheels, libraries = standins.needed(self.pip, constraints, self.folder)
        # Most of torch's files are never imported, and compiling them all takes longer than all else.
        self.pip("install", "--no-compile", "--constraint", constraints, "--find-links", wheels, wheel)
        self.stood_in = standins.put(self.folder / "venv") if libraries else []
        self.pip("check")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def pip(self, *arguments):
        """Standard output of pip, which asks nothing and says little."""
        quietly = ("--quiet", "--disable-pip-version-check", "--no-input")
        return run(self.python, "-m", "pip", arguments[0], *quietly, *arguments[1:])

    def about(self):
        """The versions that matter."""
        told = run(
            self.python,
            "-I",
            "-c",
            "import torch, numpy; print(f'torch {torch.__version__}, numpy {numpy.__version__}')",
            cwd=self.work,
        ).strip()
        return told + (" without CUDA's libraries" if self.stood_in else "")

    def run(self, program):
        """Run a program of this folder from a copy, so that nothing of the source tree lies beside it."""
        copied = shutil.copy(HERE / program, self.work)
        run(self.python, "-I", copied, cwd=self.work)
