"""Where things are met: as in photographs, most pictures of a class show it where it belongs.

A fish is mostly in water, a pine mostly in snow, but not always: a model can learn something from
the surroundings alone, and has to see the object to learn the rest.
"""

from collections.abc import Callable

import numpy as np

from dino_core.data.scenes import backgrounds as at
from dino_core.data.scenes.backgrounds import SETTINGS, Setting

AT_HOME = 0.7  # share of pictures taken where the class belongs, the rest anywhere

Place = Callable[[int, np.random.Generator], Setting]

HOMES: dict[str, tuple[Place, Place]] = {
    "ball": (at.beach, at.studio),
    "butterfly": (at.bokeh, at.foliage),
    "cactus": (at.desert, at.bricks),
    "fish": (at.water, at.stones),
    "flower": (at.meadow, at.bokeh),
    "gear": (at.studio, at.bricks),
    "leaf": (at.planks, at.foliage),
    "mug": (at.tabletop, at.cloth),
    "mushroom": (at.meadow, at.planks),
    "pine": (at.snow, at.desert),
    "snail": (at.stones, at.cloth),
    "starfish": (at.beach, at.water),
}


def draw_place(name: str, rng: np.random.Generator) -> Place:
    """A place to picture an object of class `name` in."""
    places: tuple[Place, ...] = HOMES[name] if rng.random() < AT_HOME else SETTINGS
    return places[int(rng.integers(len(places)))]
