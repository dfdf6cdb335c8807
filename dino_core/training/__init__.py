"""Training: the loss, the schedules, the step, the loop, the recipes."""

from dino_core.training.loop import train
from dino_core.training.recipe import (
    BackboneConfig,
    GuardConfig,
    HeadConfig,
    OptimConfig,
    QualityConfig,
    Recipe,
    TeacherConfig,
)
from dino_core.training.recipes import RECIPES

__all__ = [
    "RECIPES",
    "BackboneConfig",
    "GuardConfig",
    "HeadConfig",
    "OptimConfig",
    "QualityConfig",
    "Recipe",
    "TeacherConfig",
    "train",
]
