"""Images to augment: a photo that scikit-learn ships, and a picture with hard edges and noise."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_core.rng import generator


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A photograph, uint8 [427, 640, 3] (scikit-learn's china.jpg)."""
    spec = find_spec("sklearn")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "datasets" / "images" / "china.jpg"
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="session")
def drawing() -> np.ndarray:
    """Saturated disks on a gradient with noise, uint8 [150, 200, 3]."""
    draw = generator(0, "tests", "drawing")
    y, x = np.mgrid[:150, :200]
    pixels = np.stack([x * 1.2, y * 1.6, 255 - x], axis=-1)
    for _ in range(8):
        row, column, radius = draw.uniform((0, 0, 8), (150, 200, 40))
        pixels[np.hypot(y - row, x - column) < radius] = draw.choice([0.0, 255.0], size=3)
    return np.clip(pixels + draw.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
