"""What is said of the package in several places says the same; ``make smoke`` builds and tries it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import btcompress

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: Extras that users install, and whose lowest versions are tried too.
EXTRAS = ("demo", "keras", "onnx", "page", "rivals", "tensorboard", "video")


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return {canonicalize_name(pin): version for pin, _, version in (line.partition("==") for line in lines) if version}


def requirements():
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_the_oldest_versions_that_are_tried_are_those_that_the_metadata_allow(requirement):
    (least,) = [each.version for each in requirement.specifier if each.operator == ">="]
    tried = pins("constraints-oldest.txt")[canonicalize_name(requirement.name)]
    assert tried == least or tried.startswith(f"{least}.")
    assert pins("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_oldest_python_that_is_named_is_the_oldest_that_is_allowed():
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert named == sorted(named, key=lambda version: int(version[2:]))


def test_the_typed_program_uses_every_public_name():
    program = (ROOT / "tests" / "smoke" / "typed_program.py").read_text()
    assert [name for name in btcompress.__all__ if not re.search(rf"btcompress\.{name}\b", program)] == []
