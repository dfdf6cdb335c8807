"""What a browser or another program sends is read with its kind and bounds, or is a sentence."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.catalog import Question
from dino_core.catalog.questions import Job
from dino_core.errors import UserError

LEAST, MOST = -5, 1_000

# What JSON can hold, as Python reads it: NaN and Infinity, too, and numbers of any length.
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def is_number(value: object) -> bool:
    return type(value) in (int, float)  # not bool, which JSON tells apart


def sentence_of(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text and len(text) < 200
    return text


@given(JSON)
def test_a_whole_number_is_one_within_its_bounds(value):
    good = is_number(value) and any(value == n for n in range(LEAST, MOST + 1))
    if good:
        read = Question({"n": value}).whole("n", LEAST, MOST)
        assert type(read) is int and read == value
    else:
        with pytest.raises(UserError) as error:
            Question({"n": value}).whole("n", LEAST, MOST)
        assert sentence_of(error).startswith("n is ")


@given(JSON)
def test_a_number_is_finite_and_within_its_bounds(value):
    if is_number(value) and LEAST <= value <= MOST:
        read = Question({"x": value}).number("x", LEAST, MOST)
        assert type(read) is float and read == value
    else:
        with pytest.raises(UserError) as error:
            Question({"x": value}).number("x", LEAST, MOST)
        assert sentence_of(error).startswith("x is ")


@pytest.mark.parametrize(
    "text", ["Infinity", "-Infinity", "NaN", "1e999", "9" * 400, "-" + "9" * 400]
)
@pytest.mark.parametrize("read", [Question.whole, Question.number])
def test_numbers_that_json_can_hold_and_computers_cannot(text, read):
    with pytest.raises(UserError) as error:
        read(Question(json.loads(f'{{"n": {text}}}')), "n", 0, 10)
    sentence_of(error)


def test_bounds_belong_to_what_is_allowed():
    for value in (0, 7, 7.0):
        assert Question({"n": value}).whole("n", 0, 7) == value
    for value in (-1, 8, 6.5):
        with pytest.raises(UserError):
            Question({"n": value}).whole("n", 0, 7)
    assert Question({"x": 1}).number("x", 0, 1) == 1
    with pytest.raises(UserError, match=r"x is 1\.01; it must lie between 0 and 1"):
        Question({"x": 1.01}).number("x", 0, 1)
    assert not math.isnan(Question({"x": -0.0}).number("x", 0, 1))


@given(JSON)
def test_a_text_is_one_and_not_too_long(value):
    if isinstance(value, str) and len(value) <= 3:
        assert Question({"t": value}).text("t", 3) == value
    else:
        with pytest.raises(UserError, match="t is missing or too long"):
            Question({"t": value}).text("t", 3)


@given(JSON)
def test_only_true_is_a_yes(value):
    assert Question({"yes": value}).flag("yes") is (value is True)


@given(JSON)
def test_any_json_can_be_asked_for_a_field(value):
    """Whatever stands in the place of the question: its fields are there, or are missing."""
    asked = Question(value)
    there = isinstance(value, dict) and value.get("n") is not None
    assert ("n" in asked) is there
    if not there:
        for read in (asked.whole, asked.text, asked.part, lambda name: asked.parts(name, 3)):
            with pytest.raises(UserError) as error:
                read("n")
            assert "n" in sentence_of(error)


def test_questions_inside_a_question():
    asked = Question({"one": {"n": 3}, "more": [{"n": 1}, {"n": 2}], "none": [], "bad": [{}, 7]})
    assert asked.part("one").whole("n") == 3
    assert [one.whole("n") for one in asked.parts("more", 2)] == [1, 2]
    for name, most, told in (
        ("more", 1, "between 1 and 1"),
        ("none", 5, "between 1 and 5"),
        ("bad", 5, "bad is missing"),
        ("one", 5, "between 1 and 5"),
    ):
        with pytest.raises(UserError, match=told):
            asked.parts(name, most)


def test_what_is_sent_is_not_changed_by_whoever_sent_it():
    """A question is what it was when it was asked."""
    sent = {"n": 1}
    asked = Question(sent)
    sent["n"] = 2
    assert asked.whole("n") == 1


def test_a_long_wrong_value_is_told_in_short():
    with pytest.raises(UserError) as error:
        Question({"n": "x" * 10_000}).whole("n")
    assert len(str(error.value)) < 100 and "xxx" in str(error.value)


def test_a_job_tells_how_far_it_is():
    job = Job()
    assert (job.done, job.total, job.cancelled) == (0, 0, False) and job.message
    job.tell(3, 8, "drawing frames")
    assert (job.done, job.total, job.message) == (3, 8, "drawing frames")
