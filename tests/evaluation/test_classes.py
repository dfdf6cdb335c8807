"""What protocols with classes share: labels by name, figures by hand, confusions with examples."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import classes
from dino_core.evaluation.results import UNTRAINED, left_out, unreadable

NAMES = ["a", "b", "c"]


def test_confusions_and_class_accuracies_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, -1])
    taken = np.array([0, 1, 1, 1, 0, 0, 0])
    ids = list("tuvwxyz")
    assert classes.per_class_accuracy(taken, labels, NAMES) == pytest.approx(
        {"a": 100 / 3, "b": 50, "c": 0}
    )
    expected = [("a", "b", 2, ["u", "v"]), ("b", "a", 1, ["x"]), ("c", "a", 1, ["y"])]
    assert classes.most_confused(taken, labels, NAMES, ids) == expected
    assert classes.most_confused(taken, labels, NAMES, ids, most=1) == expected[:1]


def test_a_confusion_names_its_first_images_only() -> None:
    labels, taken = np.zeros(9, int), np.ones(9, int)
    (one,) = classes.most_confused(taken, labels, NAMES, [f"{i}.jpg" for i in range(9)])
    assert one == ("a", "b", 9, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"])
    assert json.loads(json.dumps([one])) == [["a", "b", 9, one.examples]]


def test_figures_are_of_the_rows_that_were_read(test: Path) -> None:
    source = open_source(test)  # six images each of b and c
    rows = np.array([0, 2, 5, 6, 11])  # the others could not be read
    labels = np.array([1, 1, -1, 2, 2])  # one is not labeled
    ranked = torch.tensor([[1, 0, 2], [2, 1, 0], [1, 2, 0], [0, 1, 2], [2, 1, 0]])
    told = classes.classes_fields(ranked, labels, NAMES, source, rows)
    assert (told["top1"], told["top5"], told["test_images"]) == (50, 100, 4)
    assert told["per_class"] == {"b": 50, "c": 50}
    assert told["confusions"] == [
        ("b", "c", 1, [source.ids[2]]),
        ("c", "a", 1, [source.ids[6]]),
    ]
    with pytest.raises(UserError, match="no image that is labeled and readable"):
        classes.classes_fields(ranked, np.full(5, -1), NAMES, source, rows)


def test_labels_are_matched_by_name(train: Path, tmp_path: Path, write_colors: Callable) -> None:
    asked = open_source(write_colors(tmp_path / "asked", {"c": 1, "zebra": 2, "b": 1, "0": 1}))
    learned = open_source(train)
    labels, notes = classes.labels_as_in(learned, asked)
    names = classes.names_of(learned, asked)
    assert names[:3] == NAMES and sorted(names[3:]) == ["0", "zebra"]
    assert [names[label] for label in labels] == [name.split("/")[0] for name in asked.ids]
    assert notes == ["2 test classes are not in train (0, zebra): they count as wrong"]


def test_images_that_are_in_both_are_told(train: Path, tmp_path: Path) -> None:
    rows = ["path,label", *(f"train/{name}/{i:02}.png,{name}" for name in "ab" for i in (0, 1))]
    rows[-1] = rows[-1].removesuffix("b")  # not labeled, and so no class of the other side
    (tmp_path / "some.csv").write_text("\n".join([*rows, "other.png,a"]))
    (tmp_path / "other.png").write_bytes((train / "a" / "00.png").read_bytes())
    some = open_source(tmp_path / "some.csv")
    labels, notes = classes.labels_as_in(open_source(train), some)
    assert labels.tolist() == [0, 0, 1, -1, 0]
    assert notes == ["4 test images are also in train: the figures flatter"]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            "scenes:6",
            r"^scenes:6: is both train and test, so it would be judged on what it learned",
        ),
        (
            "scenes:2-5",
            r"^scenes:2-5: all test images are also in train \(scenes:6\), so it would be",
        ),
    ],
)
def test_what_was_learned_from_is_no_test(asked: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        classes.labels_as_in(open_source("scenes:6"), open_source(asked), "a linear classifier")


def test_labels_are_numbers_of_any_list_of_classes(test: Path) -> None:
    source = open_source(test)  # b and c
    labels, notes = classes.numbered(source, ["x", "c", "y"], "head.pth", "the head's")
    names = classes.names_in(["x", "c", "y"], source)
    assert names == ["x", "c", "y", "b"] and labels.tolist() == [3] * 6 + [1] * 6
    assert notes == ["1 test classes are not the head's (b): they count as wrong"]
    with pytest.raises(
        UserError, match=r"head\.pth and .*: have no class in common \(x against b, c"
    ):
        classes.numbered(source, ["x"], "head.pth", "the head's")


@pytest.mark.parametrize(("labels", "enough"), [([0, 1], True), ([0, 0], False), ([1, -1], False)])
def test_one_class_is_nothing_to_tell_apart(train: Path, labels: list[int], enough: bool) -> None:
    source = open_source(train)
    if enough:
        classes.require_two_classes(source, np.array(labels))
    else:
        with pytest.raises(UserError, match="fewer than two classes"):
            classes.require_two_classes(source, np.array(labels))


def result(top1: float, **others: object) -> classes.ClassesResult:
    return classes.ClassesResult(
        top1=top1, top5=top1, per_class={}, model="m", model_hash="1", train="x", train_hash="2",
        test="y", test_hash="3", train_images=4, test_images=5,
        confusions=[classes.Confusion("a", "b", 1, ["y/0.jpg"])], **others,
    )  # fmt: skip


def test_a_result_shows_its_twin_and_saves_it_after_its_own_figures() -> None:
    both = result(70.0, random_init=result(20.0), notes=["n"])
    assert {name: row.top1 for name, row in both.rows().items()} == {"m": 70, UNTRAINED: 20}
    saved = json.loads(json.dumps(both.as_dict()))
    assert next(iter(saved)) == "top1" and list(saved)[-3:] == [
        "model_hash",
        "notes",
        "random_init",
    ]
    assert saved["random_init"]["top1"] == 20 and next(iter(saved["random_init"])) == "top1"
    assert saved["confusions"] == [["a", "b", 1, ["y/0.jpg"]]]
    assert result(20.0).rows().keys() == {"m"}


def test_what_is_left_out_is_named() -> None:
    assert left_out([], "is", "are") == unreadable([]) == []
    assert unreadable([("a", "empty")]) == ["1 image cannot be read and is left out: a (empty)"]
    assert left_out(list("abcde"), "is red", "are red") == [
        "5 images are red and are left out: a, b, c, ..."
    ]
