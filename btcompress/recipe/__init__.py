"""The whole job as one frozen value: what to take, how small, on which inputs, how hard; in YAML too."""

from typing import TYPE_CHECKING

from btcompress.lazy import on_first_use

if TYPE_CHECKING:
    from btcompress.recipe.recipefile import read_recipe, recipe_text, save_recipe
    from btcompress.recipe.recorded import recorded_recipe
    from btcompress.recipe.steps import DenseStep, FactorizeStep, FineTuneStep, Recipe, Step

__all__ = [
    "DenseStep",
    "FactorizeStep",
    "FineTuneStep",
    "Recipe",
    "Step",
    "read_recipe",
    "recipe_text",
    "recorded_recipe",
    "save_recipe",
]

_load = on_first_use(
    __name__,
    {
        "DenseStep": "steps",
        "FactorizeStep": "steps",
        "FineTuneStep": "steps",
        "Recipe": "steps",
        "Step": "steps",
        "read_recipe": "recipefile",
        "recipe_text": "recipefile",
        "recorded_recipe": "recorded",
        "save_recipe": "recipefile",
    },
)

if not TYPE_CHECKING:  # to a type checker, any name at all would be there
    __getattr__ = _load
