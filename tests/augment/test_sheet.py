"""The contact sheet: as many pictures as there are views, the same ones for the same seed."""

import numpy as np
import pytest
from PIL import Image

from dino_core.augment import MultiCrop, sheet


@pytest.mark.parametrize("local_count", [0, 1, 8])
def test_rows_show_image_globals_and_locals(drawing: np.ndarray, local_count: int) -> None:
    config = MultiCrop(local_count=local_count)
    page = sheet(drawing, config, rows=2)
    columns = {0: 1, 1: 96, 8: 4 * 96 + 3 * 8}[local_count]
    assert page.size == (3 * (224 + 8) + columns, 2 * 224 + 8)


def test_seed_decides_the_sheet(drawing: np.ndarray) -> None:
    config = MultiCrop(global_size=32, local_size=16, local_count=2)
    first, again, other = (
        np.asarray(sheet(image, config, seed=seed, rows=1))
        for image, seed in [(drawing, 0), (Image.fromarray(drawing), 0), (drawing, 1)]
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
