"""Named recipes, one small file each: the command, where its settings are from, what it reached."""

import difflib

from dino_core.errors import UserError
from dino_core.training.recipe import Recipe
from dino_core.training.recipes import (
    cifar,
    continue_,
    imagenette,
    no_multicrop,
    photos,
    resnet50,
    small,
    starter,
    tiny64,
    vitb8,
    vitb16,
    vits8,
    vits16,
    vits16_boosted,
    vits16_released,
    xcit_small,
)

RECIPES: dict[str, Recipe] = {
    "small": small.RECIPE,
    "starter": starter.RECIPE,
    "continue": continue_.RECIPE,
    "photos": photos.RECIPE,
    "cifar": cifar.RECIPE,
    "tiny64": tiny64.RECIPE,
    "imagenette": imagenette.RECIPE,
    "vits16": vits16.RECIPE,
    "vits16_boosted": vits16_boosted.RECIPE,
    "vits16_released": vits16_released.RECIPE,
    "vits8": vits8.RECIPE,
    "vitb16": vitb16.RECIPE,
    "vitb8": vitb8.RECIPE,
    "resnet50": resnet50.RECIPE,
    "no_multicrop": no_multicrop.RECIPE,
    "xcit_small": xcit_small.RECIPE,
}

__all__ = ["RECIPES", "named"]


def named(name: str) -> Recipe:
    """The recipe of a name, hyphens or underscores. Raises `UserError` for an unknown one."""
    known = name.lower().replace("-", "_")
    if known in RECIPES:
        return RECIPES[known]
    near = difflib.get_close_matches(known, RECIPES, n=3)
    hint = f"near: {', '.join(near)}" if near else f"there are: auto, {', '.join(RECIPES)}"
    raise UserError(f"--recipe {name}: no such recipe ({hint})")
