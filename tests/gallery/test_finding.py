"""Finding images by part of their id and by columns: cases by hand, and the plain twin."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.gallery.finding import MOST_VALUES, about, between, having, suggestions
from dino_core.gallery.queries import filtered

IDS = pd.Series(["dog/11.jpg", "cat/1.jpg", "dog/1.jpg", "dog/1", "1/bird.jpg", "dog/Über.png"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dog/1", ["dog/1", "dog/11.jpg", "dog/1.jpg"]),
        ("1", ["dog/11.jpg", "cat/1.jpg", "dog/1.jpg", "dog/1", "1/bird.jpg"]),
        ("bird", ["1/bird.jpg"]),
        (" ÜBER ", ["dog/Über.png"]),
        ("dog/1.jpg", ["dog/1.jpg"]),
        (".", ["dog/11.jpg", "cat/1.jpg", "dog/1.jpg", "1/bird.jpg", "dog/Über.png"]),
        ("wolf", []),
        ("(", []),
        (" ", []),
    ],
)
def test_suggestions(text, found):
    assert suggestions(IDS, text) == found
    assert suggestions(IDS, text, count=1) == found[:1]


def test_the_very_id_comes_first_however_late_it_stands():
    ids = pd.Series([f"a/{i}" for i in range(5000)] + ["a/", "A/"])
    assert suggestions(ids, "a/")[0] == "a/"
    assert suggestions(ids, "A/", 3)[0] == "A/"
    assert len(suggestions(ids, "a/")) == 12


def test_a_column_of_text_is_asked_by_value():
    asked = about(pd.Series(["b", "a", None, "b", "c", "a", "b"]))
    assert (asked.values, asked.counts) == (["b", "a", "c", None], [3, 2, 1, 1])
    assert not asked.is_range


def test_a_column_of_many_numbers_is_asked_by_range():
    asked = about(pd.Series([*range(50), np.nan, np.inf], dtype=float))
    assert (asked.is_range, asked.low, asked.high) == (True, 0, 49)
    few = about(pd.Series([1, 1, 2], dtype="Int64"))
    assert (few.is_range, few.values) == (False, [1, 2])
    flags = about(pd.Series([True, False] * 30))
    assert flags.values == [False, True]


def test_categories_that_no_image_has_are_not_offered():
    column = pd.Series(pd.Categorical(["a", "a"], categories=["a", "b"]))
    assert about(column).values == ["a"]


def test_the_rarest_of_very_many_values_are_left_out():
    asked = about(pd.Series([f"v{i}" for i in range(MOST_VALUES + 5)] + ["v3"]))
    assert (len(asked.values), asked.left_out, asked.values[0]) == (MOST_VALUES, 5, "v3")


VALUES = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from(["a", "b", "1", ""]))


@given(st.lists(VALUES, min_size=1, max_size=20), st.lists(VALUES, max_size=4))
def test_having_is_filtered(column, wanted):
    images = pd.DataFrame({"x": pd.Series(column, dtype=object)})
    expected = filtered(images, "x", wanted)
    np.testing.assert_array_equal(having(images["x"], wanted), expected)


@given(st.lists(st.sampled_from(["a", "b", "1", "", None])), st.lists(VALUES, max_size=4))
def test_having_of_text_is_filtered(column, wanted):
    images = pd.DataFrame({"x": pd.Series(column, dtype="str")})
    np.testing.assert_array_equal(having(images["x"], wanted), filtered(images, "x", wanted))


@pytest.mark.parametrize("dtype", ["Int64", "float64", "category", "string"])
def test_having_takes_every_kind_of_column(dtype):
    values = pd.Series([1, 2, None, 2]).astype(dtype)
    wanted = [values.iloc[1]]
    assert having(values, wanted).tolist() == [False, True, False, True]
    assert having(values, [None]).tolist() == [False, False, True, False]
    assert having(values, []).tolist() == [False] * 4


def test_between_has_both_ends_and_nothing_that_is_missing():
    values = pd.Series([1, 2, None, 4], dtype="Int64")
    assert between(values, 2, 4).tolist() == [False, True, False, True]
