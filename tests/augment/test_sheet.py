"""The contact sheet: as many pictures as there are views, the same ones for the same seed."""

import numpy as np
import pytest
from PIL import Image

from dino_core.augment import MultiCrop, sheet
from dino_core.augment.sheet import stacked


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


def test_the_views_are_those_of_training(drawing: np.ndarray) -> None:
    """Image 5 of a source gets other views than image 0, and the same ones each time."""
    config = MultiCrop(global_size=32, local_size=16, local_count=2)
    fifth, again, first = (
        np.asarray(sheet(drawing, config, rows=1, index=index)) for index in (5, 5, 0)
    )
    assert np.array_equal(fifth, again) and not np.array_equal(fifth, first)


def test_pages_are_stacked() -> None:
    page = stacked([Image.new("RGB", (30, 20)), Image.new("RGB", (10, 40))])
    assert page.size == (30, 20 + 8 + 40)
