"""Few labels: which images keep theirs, and that the figures are those of two known classifiers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dino_core.data import open_source
from dino_core.errors import UserError
from dino_core.evaluation import low_shot
from dino_core.evaluation.passes import Passing
from dino_core.gallery import features_of
from dino_core.measures import knn_accuracy
from dino_core.models import Model

HERE = Passing(workers=0)
OVERLAP = 90  # deviation of an image's color, at which the classes are not easily told apart


@pytest.fixture
def train(tmp_path: Path, write_colors: Callable[..., Path]) -> Path:
    return write_colors(tmp_path / "train", {"a": 20, "b": 20, "c": 20, "d": 3}, tint=OVERLAP)


@pytest.fixture(name="test")
def asked(tmp_path: Path, write_colors: Callable[..., Path]) -> Path:
    return write_colors(tmp_path / "test", {"b": 10, "c": 12, "d": 11}, tint=OVERLAP)


def test_each_class_keeps_its_number_or_share() -> None:
    labels = np.repeat([0, 1, 2, -1], [300, 40, 4, 9])
    for amount, share, counts in (
        (0.01, True, [3, 1, 1]),
        (0.1, True, [30, 4, 1]),
        (5, False, [5, 5, 4]),
        (1.0, True, [300, 40, 4]),
    ):
        rows = low_shot.labeled_subset(labels, amount, 0, 0, share=share)
        assert np.bincount(labels[rows]).tolist() == counts
        assert np.array_equal(rows, np.unique(rows))


def test_draws_are_keyed_and_fewer_labels_are_part_of_more() -> None:
    labels = np.repeat([0, 1], 50)

    def draw(amount: int, seed: int = 0, repeat: int = 0) -> set[int]:
        return set(low_shot.labeled_subset(labels, amount, seed, repeat, share=False).tolist())

    assert draw(5) == draw(5) and draw(2) < draw(5)
    assert draw(5) != draw(5, repeat=1) and draw(5) != draw(5, seed=1)
    assert set().union(*(draw(5, repeat=repeat) for repeat in range(200))) == set(range(100))


def test_figures_are_those_of_scikit_learn_and_of_the_vote(
    model: Model, train: Path, test: Path
) -> None:
    learned, wanted = open_source(train), open_source(test)
    result = low_shot.evaluate(
        model, learned, wanted, shares=[0.5], per_class=[2], repeats=3, k=4, strength=10.0,
        random_init=False, passing=HERE,
    )  # fmt: skip
    assert list(result.labels) == ["2 a class", "50 %"]
    seen, asked = features_of(model, learned), features_of(model, wanted)
    truth = wanted.labels + 1  # a is missing from test
    for name, amount, share in (("2 a class", 2, False), ("50 %", 0.5, True)):
        linear, votes = [], []
        for repeat in range(3):
            rows = low_shot.labeled_subset(learned.labels, amount, 0, repeat, share=share)
            theirs = LogisticRegression(C=10, max_iter=5000, tol=1e-7)
            theirs.fit(seen.array[rows], learned.labels[rows])
            linear.append(100 * theirs.score(asked.array, truth))
            vote = knn_accuracy(seen.array[rows], learned.labels[rows], asked.array, truth, [4])
            votes.append(vote[4].top1)
        few = result.labels[name]
        assert few.each == pytest.approx(linear, abs=100 / 33 + 1e-6)  # one image on the boundary
        assert few.knn_each == pytest.approx(votes)
        assert few.top1 == pytest.approx(np.mean(few.each))
        assert few.top1_deviation == pytest.approx(np.std(few.each) * np.sqrt(3 / 2))
        assert (few.knn, few.images) == (pytest.approx(np.mean(votes)), 8 if amount == 2 else 32)
    assert result.labels["50 %"].top1 > 40  # far from chance, 25


def test_small_classes_keep_all_and_are_named(model: Model, train: Path, test: Path) -> None:
    (train / "a" / "00.png").write_bytes(b"nothing")
    result = low_shot.evaluate(
        model, open_source(train), open_source(test), shares=[], per_class=[2, 5], repeats=1,
        passing=HERE,
    )  # fmt: skip
    few, bad = result.notes
    assert few == "5 a class: classes with fewer images (3 at the least) keep them all"
    assert bad.startswith("1 image cannot be read and is left out: a/00.png (")
    assert result.labels["5 a class"].images == 18 and result.train_images == 62
    assert result.labels["5 a class"].top1_deviation == 0
    assert result.random_init is not None and result.random_init.model_hash != model.hash
    saved = json.loads(json.dumps(result.as_dict()))
    assert saved["random_init"]["labels"]["2 a class"]["top1"] == pytest.approx(
        result.random_init.labels["2 a class"].top1
    )
    assert f"{result.labels['2 a class'].knn:.2f} ± 0.00" in result.table()


def test_a_kept_pass_serves_every_number_of_labels(
    model: Model, train: Path, test: Path, tmp_path: Path
) -> None:
    said: list[tuple[int, int, str]] = []
    passing = Passing(
        tmp_path / "keep", workers=0, progress=lambda done, of, what: said.append((done, of, what))
    )
    run = lambda: low_shot.evaluate(  # noqa: E731
        model, open_source(train), open_source(test), repeats=1, random_init=False, passing=passing
    )
    first = run()
    assert len(list((tmp_path / "keep").iterdir())) == 2
    said.clear()
    assert run().as_dict() == first.as_dict()
    assert len(list((tmp_path / "keep").iterdir())) == 2
    assert [one for one in said if "labels" in one[2]] == [
        (done, 1, f"{name}: {few.images} labels on tiny")
        for name, few in first.labels.items()
        for done in (0, 1)
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shares": [0.0]}, "above 0 and up to 1"),
        ({"per_class": [0]}, "at least one label"),
        ({"shares": [], "per_class": []}, "at least one share"),
        ({"repeats": 0}, "above 0, and finite"),
        ({"strength": float("inf")}, "above 0, and finite"),
    ],
)
def test_settings_that_mean_nothing_are_sentences(
    model: Model, train: Path, test: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        low_shot.evaluate(model, open_source(train), open_source(test), **options)
