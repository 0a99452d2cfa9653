"""Recipe files: YAML that people read, edit, keep and run."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from btcompress.calibration import SampleInputs
from btcompress.checkpoint import replacing
from btcompress.errors import BTCompressError
from btcompress.finetune import FineTuneRequest, TrainConfig
from btcompress.plan import PricedPlan
from btcompress.plan.plainyaml import load
from btcompress.recipe.plain import fields_from, scale_of
from btcompress.recipe.steps import DenseStep, FactorizeStep, FineTuneStep, Recipe, Step, sample_inputs

_VERSION = 1
_HEADER = """\
# What btcompress is to do. Edit and keep it, then:
#     btcompress run THIS_FILE
# Paths are as on the command line: from the folder in which it is run.
"""
_ADVICE = "Give a file that --save-recipe wrote, or mend it."
_TOP = ("version", "model", "output", "steps")
#: What options are called, for each kind of step, where the values that they make have other names.
_OPTIONS = {
    FactorizeStep.kind: {"layer": "layers"},
    FineTuneStep.kind: {"lr": "learning_rate", "val": "held", "val_fraction": "held_fraction", "path": "folder"},
    DenseStep.kind: {},
}


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe whole or not at all; a file that exists is replaced.

    Raises:
        OutputError: the file cannot be written.
        BTCompressError: it holds a plan that is in no file.
    """
    text = recipe_text(recipe)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def recipe_text(recipe: Recipe) -> str:
    """What a recipe file says.

    Raises:
        BTCompressError: the recipe holds a plan that is in no file.
    """
    for step in recipe.steps:
        if isinstance(step, FactorizeStep) and isinstance(step.plan, PricedPlan):
            raise BTCompressError(
                "the recipe holds a plan that is in memory alone. Save it as a plan file, and give that."
            )
    value = {"version": _VERSION, **recipe.to_dict()}
    for step in value["steps"]:
        for kind, settings in step.items():
            names = {name: option for option, name in _OPTIONS[kind].items()}
            step[kind] = {names.get(name, name): each for name, each in settings.items()}
    return _HEADER + yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def read_recipe(path: Path, *, allow_code: bool = False) -> Recipe:
    """Read a recipe file; nothing in it is trusted, and no file that it names is opened.

    Args:
        path: the file.
        allow_code: it may name modules, which are imported and run when the recipe is.

    Raises:
        BTCompressError: it cannot be read, is no recipe, or names code that it may not.
    """
    value = load(path, _ADVICE)
    # In Python true and 1.0 are 1 as well.
    if not isinstance(value, dict) or value.get("version") != _VERSION or type(value["version"]) is not int:
        raise BTCompressError(f"{path} is no recipe of version {_VERSION}. {_ADVICE}")
    unknown = [name for name in value if name not in _TOP]
    if unknown:
        raise BTCompressError(f"{path}: there is no {reprlib.repr(unknown[0])}. There are {', '.join(_TOP)}.")
    steps = value.get("steps")
    if not isinstance(steps, list):
        raise BTCompressError(f"{path}: steps must be a list, but {reprlib.repr(steps)} was given. {_ADVICE}")
    paths = {}
    for name in ("model", "output"):
        given = value.get(name)
        if not isinstance(given, str) or not given or "\0" in given:
            raise BTCompressError(f"{path}: {name} must be the path of a file, but {reprlib.repr(given)} was given.")
        paths[name] = Path(given)
    made = tuple(step_of(each, f"{path}: step {number}") for number, each in enumerate(steps, 1))
    code = [name for step in made for name in step.code]
    if code and not allow_code:
        raise BTCompressError(
            f"{path} names code that running it would run: {', '.join(code)}. Read that first, and if you trust it, "
            "say --allow-code (allow_code=True)."
        )
    return Recipe(**paths, steps=made)


def step_of(value: object, where: str) -> Step:
    """A step as a recipe file has it: its kind, and its settings.

    Args:
        value: a mapping of the one to the others; not trusted.
        where: it stands, for messages.

    Raises:
        BTCompressError: it is no step.
    """
    kinds = {kind.kind: kind for kind in (FactorizeStep, FineTuneStep, DenseStep)}
    if not isinstance(value, dict) or len(value) != 1 or (kind := next(iter(value))) not in kinds:
        raise BTCompressError(
            f"{where} must be one of {', '.join(kinds)}, followed by a colon and its settings, but "
            f"{reprlib.repr(value)} was given."
        )
    settings = value[kind] or {}
    where = f"{where} ({kind})"
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise BTCompressError(f"{where}: settings must be names with values, but {reprlib.repr(settings)} was given.")
    settings = {_OPTIONS[kind].get(name, name): value for name, value in settings.items()}
    try:
        if kind == FactorizeStep.kind:
            own = {"plan": _path, "calibration": _calibration}
            return FactorizeStep(**fields_from(FactorizeStep, settings, where, own))
        if kind == FineTuneStep.kind:
            return _finetune(settings, where)
        return DenseStep(**fields_from(DenseStep, settings, where))
    except BTCompressError as error:
        raise error if str(error).startswith(where) else BTCompressError(f"{where}: {error}") from error


def _finetune(settings: Mapping[str, Any], where: str) -> FineTuneStep:
    of_config = {each.name for each in fields(TrainConfig)}
    config = {name: value for name, value in settings.items() if name in of_config}
    inputs = {name: value for name, value in settings.items() if name not in of_config}
    return FineTuneStep(
        fields_from(FineTuneRequest, inputs, where, {"scale": scale_of}),
        TrainConfig(**fields_from(TrainConfig, config, where)),
    )


def _path(value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BTCompressError("it must be the path of a file")
    return Path(value)


def _calibration(value: object) -> tuple[SampleInputs, ...]:
    """Sample inputs, each as on the command line or with its fields."""
    made = []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            made.append(sample_inputs(each))
        elif isinstance(each, dict):
            made.append(SampleInputs(**fields_from(SampleInputs, each, "its entry", {"scale": scale_of})))
        else:
            raise BTCompressError("it must be a list of files, each as [LAYER=]FILE")
    return tuple(made)
