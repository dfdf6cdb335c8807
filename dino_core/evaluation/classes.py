"""What protocols with classes share: labels matched by name, and what was taken for what.

Shapes: M test images, C classes.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.results import SHOWN, Result, named
from dino_core.measures.knn import UNLABELED, ranking_accuracy

MOST_CONFUSIONS = 20
MOST_IMAGES = 4  # of a confusion, for pictures


class Confusion(NamedTuple):
    """One class taken for another."""

    label: str
    taken_for: str
    images: int
    examples: list[str]  # ids of the first few


@dataclass(frozen=True, kw_only=True)
class ClassesResult(Result):
    """Shares of test images in percent."""

    top1: float
    top5: float
    per_class: dict[str, float]  # top-1 in percent of each class that test has
    confusions: list[Confusion]  # the most frequent first
    train: str
    train_hash: str
    test: str
    test_hash: str
    train_images: int
    test_images: int

    def confused(self) -> list[str]:
        """`church taken for castle: 12`, a line each, for a table."""
        return [f"{a} taken for {b}: {images:,}" for a, b, images, _ in self.confusions[:SHOWN]]


def labels_as_in(
    train: Source, test: Source, protocol: str = "k-NN"
) -> tuple[np.ndarray, list[str]]:
    """The test labels as numbers of the training classes, matched by name; and what is odd.

    A test class that training does not have gets a number of its own, so its images count as wrong.
    Raises `UserError` when a source has no labels, they share no class, or are the same images.
    """
    for source in (train, test):
        _require_labels(source, protocol)
    shared = _in_both(train, test)
    if shared and shared == len(test):
        whole = len(train) == len(test)
        same = f"{train.spec}: is both train and test"
        part = f"{test.spec}: all test images are also in train ({train.spec})"
        raise UserError(
            f"{same if whole else part}, so it would be judged on what it learned from; name other "
            "images to test on"
        )
    labels, notes = numbered(test, train.classes, train.spec, "in train")
    if shared:
        notes.append(f"{shared:,} test images are also in train: the figures flatter")
    return labels, notes


def numbered(
    test: Source, classes: Sequence[str], of: str, where: str
) -> tuple[np.ndarray, list[str]]:
    """The test labels as numbers of `classes`, matched by name; and what is odd.

    `of`: what has these classes, `where`: where others are missing, for sentences. Other classes
    of test are numbered behind them, see `names_in`. Raises `UserError` as `labels_as_in`.
    """
    _require_labels(test, "a comparison")
    assert test.labels is not None
    others = _others(classes, test)
    if len(others) == len(test.classes):
        raise UserError(
            f"{of} and {test.spec}: have no class in common "
            f"({named(classes)} against {named(test.classes)})"
        )
    number = {name: index for index, name in enumerate(names_in(classes, test))}
    of_class = np.array([*(number[name] for name in test.classes), UNLABELED], np.int64)
    notes = []
    if others:
        notes = [
            f"{len(others)} test classes are not {where} ({named(others)}): they count as wrong"
        ]
    return of_class[test.labels], notes


def _require_labels(source: Source, protocol: str) -> None:
    if source.labels is None or not source.classes:
        raise UserError(
            f"{source.spec}: has no labels, and {protocol} needs them; "
            "use class folders, two or more, or a table with a column `label`"
        )


def _in_both(train: Source, test: Source) -> int:
    """Test images that train has too: the same files, or the same of one collection."""
    known = set(_places(train))
    return sum(place in known for place in _places(test))


def _places(source: Source) -> list[str]:
    collection = "scenes" if source.generated else source.spec
    paths = (source.path(i) for i in range(len(source)))
    return [
        f"{collection}: {source.ids[i]}" if path is None else str(path.resolve())
        for i, path in enumerate(paths)
    ]


def names_of(train: Source, test: Source) -> list[str]:
    """Names of the numbers that `labels_as_in` gives: train's classes, then test's others."""
    return names_in(train.classes, test)


def names_in(classes: Sequence[str], test: Source) -> list[str]:
    """Names of the numbers that `numbered` gives."""
    return [*classes, *_others(classes, test)]


def _others(classes: Sequence[str], test: Source) -> list[str]:
    """The classes of test that are none of these."""
    known = set(classes)
    return [name for name in test.classes if name not in known]


def per_class_accuracy(
    taken_M: np.ndarray, labels_M: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Top-1 in percent of the images of each class that has any.

    `taken_M`: int64 [M], the class each image was taken for; `labels_M`: int64 [M], the right one,
    -1 for what does not count.
    """
    found = np.unique(labels_M[labels_M != UNLABELED]).tolist()
    return {
        names[label]: 100 * float((taken_M[labels_M == label] == label).mean()) for label in found
    }


def most_confused(
    taken_M: np.ndarray,
    labels_M: np.ndarray,
    names: Sequence[str],
    ids: Sequence[str],
    most: int = MOST_CONFUSIONS,
) -> list[Confusion]:
    """The most frequent mistakes; equally frequent by number. `ids` [M] name the images."""
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for label, taken, name in zip(labels_M.tolist(), taken_M.tolist(), ids, strict=True):
        if label not in (taken, UNLABELED):
            found[label, taken].append(name)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        Confusion(names[label], names[taken], len(images), images[:MOST_IMAGES])
        for (label, taken), images in ordered[:most]
    ]


def classes_fields(
    ranked_MC: Tensor, labels_M: np.ndarray, names: Sequence[str], test: Source, rows_M: np.ndarray
) -> dict[str, Any]:
    """The fields of a `ClassesResult` that are read off the ranked classes of the test images.

    `ranked_MC`: int64, the likeliest classes of each image, the likeliest first; `rows_M`: the
    images' places in `test`. Raises `UserError` when none of them is labeled.
    """
    require_labeled(test, labels_M)
    accuracy = ranking_accuracy(ranked_MC, labels_M)
    taken_M = ranked_MC[:, 0].numpy()
    return {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "per_class": per_class_accuracy(taken_M, labels_M, names),
        "confusions": most_confused(taken_M, labels_M, names, [test.ids[i] for i in rows_M]),
        "test_images": int((labels_M != UNLABELED).sum()),
    }


def require_labeled(source: Source, labels_M: np.ndarray) -> None:
    """`UserError` when none of the readable images, which these labels are of, has a label."""
    if not (labels_M != UNLABELED).any():
        raise UserError(f"{source.spec}: has no image that is labeled and readable")


def require_two_classes(train: Source, labels_M: np.ndarray) -> None:
    """`UserError` when the readable images, which these labels are of, are of one class."""
    if len(np.unique(labels_M[labels_M != UNLABELED])) < 2:
        raise UserError(
            f"{train.spec}: has fewer than two classes with readable images, so there is nothing "
            "to tell apart; add images of another class"
        )
