"""Training: recipes, the loop, runs that can be stopped at any step."""

from convatlas.train.choice import Budget, choose_network
from convatlas.train.folds import Folds, cross_validate
from convatlas.train.recipe import RECIPES, Recipe
from convatlas.train.run import Run, Settings, fit, resume

__all__ = [
    "RECIPES",
    "Budget",
    "Folds",
    "Recipe",
    "Run",
    "Settings",
    "choose_network",
    "cross_validate",
    "fit",
    "resume",
]
