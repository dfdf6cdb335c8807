"""Named recipes, one small file each: the command, and the result it reached."""

from dino_core.training.recipe import Recipe
from dino_core.training.recipes import small, starter, vits16

RECIPES: dict[str, Recipe] = {
    "small": small.RECIPE,
    "starter": starter.RECIPE,
    "vits16": vits16.RECIPE,
}

__all__ = ["RECIPES"]
