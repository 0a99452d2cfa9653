"""The whole job as one frozen value: what to take, how small, on which inputs, how hard; in YAML too."""

from btcompress.recipe.recipefile import read_recipe, save_recipe
from btcompress.recipe.steps import DenseStep, FactorizeStep, FineTuneStep, Recipe, Step

__all__ = ["DenseStep", "FactorizeStep", "FineTuneStep", "Recipe", "Step", "read_recipe", "save_recipe"]
