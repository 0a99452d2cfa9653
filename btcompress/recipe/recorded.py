"""The recipe of a result, as far as its record says it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from btcompress.errors import BTCompressError
from btcompress.recipe.recipefile import step_of
from btcompress.recipe.steps import FactorizeStep, Recipe


def recorded_recipe(history: Iterable[Mapping[str, Any]], model: str, output: str) -> Recipe | None:
    """What makes a result again, up to the first step whose data are not on record, such as a training with labels.

    Calibrations belong to the step that they followed.

    Args:
        history: of the result; not trusted, and no file that it names is opened.
        model: name of the dense checkpoint.
        output: name of the result.

    Returns:
        None where even the first step cannot be told: it was made in memory, by a plan that is in no file, or by an
        older version.
    """
    steps: list[FactorizeStep] = []
    for number, step in enumerate(history, 1):
        if step.get("step") == FactorizeStep.kind:
            try:
                made = step_of({FactorizeStep.kind: step.get("recipe")}, f"step {number}")
            except BTCompressError:
                break
            if "recipe" not in step or not isinstance(made, FactorizeStep):
                break
            steps.append(made)
        elif step.get("step") not in ("calibrate", "refit") or not steps:
            break
    try:
        return Recipe(Path(model), Path(output), steps) if steps else None
    except ValueError:  # names that no file can have
        return None
