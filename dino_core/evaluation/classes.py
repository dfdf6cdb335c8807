"""What protocols with classes share: labels matched by name, and what was taken for what.

Shapes: M test images.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.measures.knn import UNLABELED

MOST_CONFUSIONS = 20


def labels_as_in(
    train: Source, test: Source, protocol: str = "k-NN"
) -> tuple[np.ndarray, list[str]]:
    """The test labels as numbers of the training classes, matched by name; and what is odd.

    A test class that training does not have gets a number of its own, so its images count as wrong.
    Raises `UserError` when a source has no labels, they share no class, or are the same images.
    """
    for source in (train, test):
        if source.labels is None or not source.classes:
            raise UserError(
                f"{source.spec}: has no labels, and {protocol} needs them; "
                "use class folders, two or more, or a table with a column `label`"
            )
    shared = _in_both(train, test)
    if shared and shared == len(test):
        raise UserError(f"{train.spec}: is both train and test, so every image would find itself")
    number = {name: index for index, name in enumerate(train.classes)}
    unknown = [name for name in test.classes if name not in number]
    if len(unknown) == len(test.classes):
        raise UserError(
            f"{train.spec} and {test.spec}: have no class in common "
            f"({train.classes[0]!r} and others against {test.classes[0]!r} and others)"
        )
    number |= {name: len(number) + index for index, name in enumerate(unknown)}
    of_class = np.array([*(number[name] for name in test.classes), UNLABELED], np.int64)
    assert test.labels is not None
    names = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
    notes = []
    if unknown:
        notes = [f"{len(unknown)} test classes are not in train ({names}): they count as wrong"]
    if shared:
        notes.append(f"{shared:,} test images are also in train, where they find themselves")
    return of_class[test.labels], notes


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
    known = set(train.classes)
    return [*train.classes, *(name for name in test.classes if name not in known)]


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
    taken_M: np.ndarray, labels_M: np.ndarray, names: Sequence[str], most: int = MOST_CONFUSIONS
) -> list[tuple[str, str, int]]:
    """(class, taken for, images) of the most frequent mistakes; equally frequent by number."""
    pairs = zip(labels_M.tolist(), taken_M.tolist(), strict=True)
    counts = Counter((label, taken) for label, taken in pairs if label not in (taken, UNLABELED))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(names[label], names[taken], count) for (label, taken), count in ordered[:most]]
