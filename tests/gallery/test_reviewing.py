"""The queue of a review: one entry an image, suggestions that fit together, decisions undone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dino_core.errors import UserError
from dino_core.gallery.agreement import Votes
from dino_core.gallery.duplicates import Groups
from dino_core.gallery.notes import Notes, Review
from dino_core.gallery.reviewing import Queue, decide, decide_all, follow_suggestions, suggested


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    (tmp_path / "gallery.json").touch()
    return Notes(tmp_path)


def images() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "split": ["train", "val", "train", "train", None, "train", "train", "train"],
            "width": [90, 10, 10, 10, 10, 10, 10, 10],
            "height": 10,
            "size": pd.array([1, 1, 1, 2, 1, 1, 1, 1], dtype="Int64"),
            "label": ["a", "a", "b", "b", "a", "a", "b", None],
        }
    )


VOTED = ("codes", "own", "winner", "winner_share")


def groups(*several: list[int]) -> Groups:
    starts = np.cumsum([0, *map(len, several)])
    count = len(several)
    rows = np.array([row for group in several for row in group], np.int64)
    return Groups(rows, starts, np.ones(count, np.float32), np.zeros(count, bool))


def votes() -> Votes:
    winner = np.array([0, 0, 1, 1, 1, 1, 1, -1], np.int32)
    codes = np.array([0, 0, 1, 1, 0, 0, 1, -1], np.int32)
    share = np.ones(8, np.float32)
    return Votes(["a", "b"], codes, share, winner, share, 5)


def queue() -> Queue:
    return Queue.of(
        images(),
        leaks=groups([0, 1]),
        alike=groups([2, 3], [0, 1]),
        doubtful=np.array([5, 4, 2]),
        alone=np.array([7, 6, 5]),
        votes=votes(),
    )


def test_an_image_stands_once_for_its_weightiest_reason() -> None:
    mine = queue()
    assert mine.rows.tolist() == [0, 1, 2, 3, 5, 4, 7, 6]
    assert (
        mine.reasons.tolist() == ["leak"] * 2 + ["duplicate"] * 2 + ["label"] * 2 + ["outlier"] * 2
    )
    assert mine.groups.tolist() == [0, 0, 0, 0, -1, -1, -1, -1]
    assert mine.counts() == {"leak": 2, "duplicate": 2, "label": 2, "outlier": 2}


def test_suggestions_follow_the_rules() -> None:
    mine = queue()
    assert mine.suggestions.tolist() == [
        "remove", "keep",  # what is measured on stays, though it is smaller
        "remove", "keep",  # the larger file stays
        "relabel", "relabel",
        "remove", "keep",  # nobody says what 7 is; the neighbors of 6 agree with its label
    ]  # fmt: skip
    assert mine.labels.tolist() == [None] * 4 + ["b", "b"] + [None] * 2
    assert suggested(votes(), np.array([7, 0])).tolist() == [None, "a"]


def test_an_empty_queue() -> None:
    nothing = np.empty(0, np.int64)
    empty = Queue.of(
        images(), leaks=groups(), alike=groups(), doubtful=nothing, alone=nothing, votes=votes()
    )
    assert len(empty) == 0 and sum(empty.counts().values()) == 0


def test_a_decision_can_be_taken_back_to_what_was_before(notes: Notes) -> None:
    notes.review(["a"], "relabel", "dog")
    notes.review(["b"], "keep")
    before = notes.reviews()
    undo = decide(notes, ["a", "b", "c"], "remove")
    assert {review.decision for review in notes.reviews().values()} == {"remove"}
    undo.apply(notes)
    after = notes.reviews()
    assert {id: (one.decision, one.label) for id, one in after.items()} == {
        id: (one.decision, one.label) for id, one in before.items()
    }


ODD = ["cafe\u0301", "two  words", "a" * 200, " margin", "tab\there"]


@pytest.mark.parametrize("label", ODD)
def test_a_label_of_the_gallery_is_kept_to_the_letter(notes: Notes, label: str) -> None:
    """Else one class became two that look alike, or following suggestions ended halfway."""
    named = Votes(["a", label], *(getattr(votes(), name) for name in VOTED), 5)
    mine = Queue.of(
        images(), leaks=groups(), alike=groups(), doubtful=np.array([5, 4]),
        alone=np.array([7]), votes=named,
    )  # fmt: skip
    follow_suggestions(notes, ["5", "4", "7"], mine)
    assert {id: one.label for id, one in notes.reviews().items()} == {
        "5": label, "4": label, "7": None
    }  # fmt: skip
    undo = decide(notes, ["5"], "relabel", label, known={label})
    decide(notes, ["5"], "remove")
    undo.apply(notes)
    assert notes.reviews()["5"].label == label


def test_where_one_decision_cannot_be_none_is_taken(notes: Notes) -> None:
    with pytest.raises(UserError, match="200 characters"):
        decide_all(notes, [(["a"], "remove", None), (["b"], "relabel", "x" * 200)])
    assert notes.reviews() == {}
    undo = decide_all(notes, [(["a"], "remove", None), (["b"], "relabel", " x ")])
    assert [(one.decision, one.label) for one in notes.reviews().values()] == [
        ("remove", None), ("relabel", "x"),
    ]  # fmt: skip
    assert undo.before == {"a": None, "b": None}


def test_suggestions_are_followed_where_nobody_decided(notes: Notes) -> None:
    mine = queue()
    ids = [f"{row}.jpg" for row in mine.rows]
    notes.review(["2.jpg"], "keep")
    undo = follow_suggestions(notes, ids, mine)
    reviews = notes.reviews()
    assert reviews["2.jpg"].decision == "keep"
    expected = dict(zip(ids, zip(mine.suggestions, mine.labels, strict=True), strict=True))
    del expected["2.jpg"]
    assert {id: (one.decision, one.label) for id, one in reviews.items() if id in expected} == (
        expected
    )
    undo.apply(notes)
    assert list(notes.reviews()) == ["2.jpg"]
    assert isinstance(notes.reviews()["2.jpg"], Review)
