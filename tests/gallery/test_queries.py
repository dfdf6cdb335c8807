"""Regions and filters: what they find, and what they refuse."""

import numpy as np
import pandas as pd
import pytest

from dino_core.errors import UserError
from dino_core.gallery import Gallery, embed, filtered, region_features
from dino_core.models import Model


def test_a_region_is_an_image_of_its_own(model: Model, scenes_gallery: Gallery) -> None:
    image = scenes_gallery.image(3)
    height, width = image.shape[:2]
    for box in ((10, 20, 60, 45), (10.9, 20.1, 59.2, 44.5)):  # parts of pixels count whole
        np.testing.assert_array_equal(
            region_features(model, image, box).array, embed(model, [image[20:45, 10:60]]).array
        )
    hits = scenes_gallery.search(region_features(model, image, (0, 0, width, height)), k=1)
    assert hits.rows[0] == 3
    assert region_features(model, image, (0, 0, 9, 9), "cls+gem").array.shape == (1, 96)


@pytest.mark.parametrize(
    ("box", "sentence"),
    [
        ((10, 10, 10, 30), "region 10, 10 to 10, 30: is empty"),
        ((30, 10, 10, 30), "is empty"),
        ((-1, 0, 30, 30), "reaches out of the image of 80 x 60 pixels"),
        ((0, 0, 81, 30), "reaches out"),
        ((0, 0, 30, 61), "reaches out"),
        ((10, 10, 17, 50), "is 7 x 40 pixels, too small .* at least 8 x 8"),
        ((0, 0, float("nan"), 9), "left, top, right and bottom"),
        ((0, 0, 9), "left, top, right and bottom"),
    ],
)
def test_regions_that_cannot_be_cut_out(model: Model, box: tuple, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        region_features(model, np.zeros((60, 80, 3), np.uint8), box)


TABLE = pd.DataFrame(
    {
        "label": ["dog", "cat", None, "dog", "Dog"],
        "site": [1, 2, 1, 3, 10],
        "depth": [0.5, np.nan, 1.0, 2.0, np.nan],
        "sure": [True, False, True, False, True],
        "mixed": pd.Series([1, "1", None, True, 1.0], dtype=object),
        "boxes": [[1], [2], [3], [4], [5]],
    }
)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("label", "dog", "10010"),
        ("label", ["dog", "Dog"], "10011"),
        ("label", None, "00100"),
        ("label", ("cat", None), "01100"),
        ("label", "dog' or 1 == 1", "00000"),
        ("label", [], "00000"),
        ("site", 1, "10100"),
        ("site", "1", "00000"),
        ("site", np.array([1, 10]), "10101"),
        ("site", 1.0, "10100"),
        ("depth", [float("nan"), 2], "01011"),
        ("sure", True, "10101"),
        ("sure", 1, "00000"),
        ("mixed", 1, "10001"),
        ("mixed", "1", "01000"),
        ("mixed", True, "00010"),
    ],
)
def test_exactly_the_values(column: str, values: object, expected: str) -> None:
    found = filtered(TABLE, column, values)
    assert found.dtype == bool and "".join(map(str, found.astype(int))) == expected


@pytest.mark.parametrize("kind", ["string", "category", "object"])
def test_whatever_the_column_is_stored_as(kind: str) -> None:
    table = TABLE.astype({"label": kind})
    assert filtered(table, "label", ["dog", None]).tolist() == [True, False, True, True, False]


def test_a_filter_is_a_where(scenes_gallery: Gallery) -> None:
    images = scenes_gallery.images
    hits = scenes_gallery.search("scenes/000000", 60, filtered(images, "label", "mug"))
    assert set(hits.rows) == set(np.flatnonzero(images["label"] == "mug")) - {0}


def test_columns_that_cannot_be_filtered_by() -> None:
    with pytest.raises(UserError, match="no column 'breed'; there are label, site, "):
        filtered(TABLE, "breed", "pug")
    with pytest.raises(UserError, match="'boxes' holds lists"):
        filtered(TABLE, "boxes", 1)
