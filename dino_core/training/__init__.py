"""Training: the loss, the schedules, the step, the loop, the recipes.

Names are imported on first use, so that watching and stopping runs (`launch`) needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_core.training.durations import seconds_of
    from dino_core.training.loop import train
    from dino_core.training.plan import planned
    from dino_core.training.recipe import (
        BackboneConfig,
        FeedConfig,
        GuardConfig,
        HeadConfig,
        OptimConfig,
        QualityConfig,
        Recipe,
        TeacherConfig,
    )
    from dino_core.training.recipes import RECIPES

_HOME = {
    "RECIPES": "recipes",
    "BackboneConfig": "recipe",
    "FeedConfig": "recipe",
    "GuardConfig": "recipe",
    "HeadConfig": "recipe",
    "OptimConfig": "recipe",
    "QualityConfig": "recipe",
    "Recipe": "recipe",
    "TeacherConfig": "recipe",
    "planned": "plan",
    "seconds_of": "durations",
    "train": "loop",
}

__all__ = [
    "RECIPES",
    "BackboneConfig",
    "FeedConfig",
    "GuardConfig",
    "HeadConfig",
    "OptimConfig",
    "QualityConfig",
    "Recipe",
    "TeacherConfig",
    "planned",
    "seconds_of",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
