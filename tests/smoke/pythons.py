"""The versions of Python on this machine."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

#: Whether a Python can make an environment, and its version.
_ASK = "import ensurepip, platform, venv; print(platform.python_version())"


@dataclass(frozen=True)
class Python:
    """One that can make environments."""

    path: str
    full_version: str

    @property
    def version(self):
        return ".".join(self.full_version.split(".")[:2])

    def __str__(self):
        return self.full_version


def found(supported, only=None):
    """One of each version, the oldest first: the one that runs this, what is on PATH, or what pyenv has.

    Args:
        supported: the versions that the package supports, a specifier set.
        only: versions such as ``3.12``; all when left out.
    """
    candidates = [sys.executable, *map(shutil.which, (f"python3.{minor}" for minor in range(30))), *_of_pyenv()]
    by_version = {}
    for path in filter(None, candidates):
        full = _version(path)
        if full is not None and full in supported:
            by_version.setdefault(Version(full).release[:2], Python(path, full))
    chosen = [by_version[version] for version in sorted(by_version)]
    return [python for python in chosen if not only or python.version in only]


def _of_pyenv():
    """Where pyenv is installed; the newest first, since of each version the first is taken."""
    if shutil.which("pyenv") is None:
        return []
    root, names = (_output("pyenv", *asked) for asked in (["root"], ["versions", "--bare"]))
    paths = [Path(root or "") / "versions" / name / "bin" / "python" for name in (names or "").split()]
    return [str(path) for path in reversed(paths)]


def _version(path):
    return _output(path, "-I", "-c", _ASK)


def _output(*command):
    """What a command prints; None where it cannot be run or fails, as pyenv's stand-ins for other versions do."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
