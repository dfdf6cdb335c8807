"""Polygons in an address: exactly the same again, short, and nothing where the text is damaged."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.gallery.regions import LETTERS, _check, read_polygons, spelled
from dino_core.gallery.selection import Selection

TRIANGLE = ((0.5, 1.25), (2.0, 0.0), (1.0, -3.0))
finite = st.floats(allow_nan=False, allow_infinity=False)
polygon = st.lists(st.tuples(finite, finite), min_size=3, max_size=6).map(tuple)
rounded = st.integers(-20_000, 20_000).map(lambda value: value / 1000)
drawn = st.lists(st.tuples(rounded, rounded), min_size=3, max_size=120).map(tuple)


@given(st.lists(st.one_of(polygon, drawn), max_size=4).map(tuple))
def test_what_is_written_is_read_again_exactly(polygons):
    text = Selection(polygons).to_text()
    assert Selection.from_text(text) == Selection(polygons)
    assert re.fullmatch(r"[\w-]*", text, re.ASCII), "goes into an address as it is"


def test_it_is_spelled_as_the_docs_say():
    # power -2; 3 corners; (50, 125), then (+150, -125), then (-100, -300); zigzag, five bits each
    numbers = [-2, 3, 50, 125, 150, -125, -100, -300]
    text = ""
    for number in numbers:
        bits = abs(number) * 2 - (number < 0)
        groups = [bits >> shift & 31 for shift in range(0, max(bits.bit_length(), 1), 5)]
        text += "".join(LETTERS[g + 32 * (i + 1 < len(groups))] for i, g in enumerate(groups))
    assert spelled([TRIANGLE]) == text + _check(text)
    assert spelled([]) == ""


def test_a_lasso_of_120_corners_takes_less_than_a_kilobyte():
    corners = tuple((round(i % 60 * 0.031, 3), round(i * 0.019, 3)) for i in range(120))
    assert len(spelled([corners])) < 1000


@given(st.integers(0, 40), st.sampled_from(LETTERS + "%é "))
def test_a_changed_letter_or_a_lost_end_selects_nothing(at, letter):
    text = spelled([TRIANGLE, TRIANGLE])
    at %= len(text)
    if letter != text[at]:
        assert not Selection.from_text(text[:at] + letter + text[at + 1 :])
    assert not Selection.from_text(text[:at])


@pytest.mark.parametrize(
    "numbers",
    [
        [],  # no power
        [0, 2, 0, 0, 1, 1],  # two corners
        [0, 3, 0, 0, 1, 1, 1],  # one number short
        [0, -1],
        [399, 3, 1, 1, 1, 1, 1, 1],  # beyond what a float holds
        [10**9, 3, 1, 1, 1, 1, 1, 1],
    ],
)
def test_text_that_checks_but_means_nothing_selects_nothing(numbers):
    from dino_core.gallery.regions import _written

    text = "".join(map(_written, numbers))
    assert read_polygons(text + _check(text)) == ()


def test_an_endless_text_is_not_read():
    assert read_polygons("A" * 10_000_000) == ()


def test_what_lies_nowhere_is_not_written():
    with pytest.raises(ValueError, match="nowhere"):
        spelled([((0.0, 0.0), (1.0, float("nan")), (1.0, 1.0))])
