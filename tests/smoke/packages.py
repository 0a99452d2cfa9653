"""Wheel and sdist: built from a clean copy, and what must be in them and nothing else."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from packaging.specifiers import SpecifierSet

from smoke.commands import run

#: What belongs to git alone.
_NOT_PACKED = frozenset({".gitignore"})


@dataclass(frozen=True)
class Built:
    """What was built of which files of the repository."""

    wheel: Path
    sdist: Path
    files: frozenset[str]


def requires_python(root):
    """The versions of Python that the metadata allow."""
    return SpecifierSet(tomllib.loads((root / "pyproject.toml").read_text())["project"]["requires-python"])


def oldest_python(root):
    """The oldest of these, such as ``3.11``."""
    (least,) = [each.version for each in requires_python(root) if each.operator == ">="]
    return least


def build(root, folder, *, constraints):
    """Build both of what git knows or would take, so that nothing that lies about gets in; the wheel from the sdist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    # A file that was removed is listed until that is committed.
    files = frozenset(name for name in listed.stdout.split("\0") if name and (root / name).is_file())
    copy = folder / "source"
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        copyfile(root / name, copy / name)
    out = folder / "dist"
    run(sys.executable, "-m", "build", "--outdir", out, copy, PIP_CONSTRAINT=str(constraints))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(wheel, sdist, files)


def check(built):
    """Compare the contents with the repository's files, and let twine look at the metadata."""
    _compare(built.wheel, _in_wheel(built), {name for name in built.files if name.startswith("btcompress/")})
    _compare(built.sdist, _in_sdist(built), built.files - _NOT_PACKED)
    run(sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist)


def _in_wheel(built):
    """Files of the package; those that describe it must be just these."""
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
    about = "-".join(built.wheel.name.split("-")[:2]) + ".dist-info/"
    described = {name.removeprefix(about) for name in names if name.startswith(about)}
    _compare(
        built.wheel,
        described,
        {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"},
    )
    return {name for name in names if not name.startswith(about)}


def _in_sdist(built):
    """Files of the repository: what setuptools adds is left out."""
    top = built.sdist.name.removesuffix(".tar.gz") + "/"
    with tarfile.open(built.sdist) as archive:
        names = {member.name.removeprefix(top) for member in archive.getmembers() if member.isfile()}
    return {
        name for name in names if name not in ("PKG-INFO", "setup.cfg") and not name.startswith("btcompress.egg-info/")
    }


def _compare(package, held, expected):
    missing, stray = sorted(expected - held), sorted(held - expected)
    if missing or stray:
        raise SystemExit(f"{package.name} lacks {missing} and holds {stray}, which should not be in it.")
