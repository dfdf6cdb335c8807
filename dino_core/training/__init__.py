"""Training: the loss, the schedules, the step, the loop, the recipes."""

from dino_core.training.loop import train
from dino_core.training.recipe import (
    BackboneConfig,
    HeadConfig,
    OptimConfig,
    Recipe,
    TeacherConfig,
)
from dino_core.training.recipes import RECIPES

__all__ = [
    "RECIPES",
    "BackboneConfig",
    "HeadConfig",
    "OptimConfig",
    "Recipe",
    "TeacherConfig",
    "train",
]
