"""Lenses: what a model sees in ONE image.

attention   `look(model, image)` -> every layer's and head's CLS map, and mass masks
payload     the same maps as a few hundred kB that a browser can blend by itself
colormap    scalar maps to colors
render      heat maps, overlays and outlines as pictures
sheet       one self-contained HTML page for a folder of images
"""

from dino_core.lenses.attention import Attention, Plan, look, mass_mask, plan
from dino_core.lenses.payload import LensPayload

__all__ = ["Attention", "LensPayload", "Plan", "look", "mass_mask", "plan"]
