"""Training: recipes, the loop, runs that can be stopped at any step."""

from convatlas.train.recipe import RECIPES, Recipe
from convatlas.train.run import Run, Settings, fit, resume

__all__ = ["RECIPES", "Recipe", "Run", "Settings", "fit", "resume"]
