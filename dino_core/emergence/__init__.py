"""How a model comes to see: a run's history, told by what its quality checks kept.

history   `History.read(run)`: attention, patch colors, neighbors and maps at every check
held_out  the pictures of the images that the checks look at
film      `film(history, Scene(picture=0))`: the same as an animated GIF

Nothing here loads a model, and importing this loads no torch (`film` does).
"""

from dino_core.emergence.held_out import HeldOut
from dino_core.emergence.history import Check, History, Maps, Neighbors

__all__ = ["Check", "HeldOut", "History", "Maps", "Neighbors"]
