"""Outliers, doubtful labels, and the fences that tell what is unusual."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dino_core.gallery.agreement import count_votes
from dino_core.gallery.neighbors import plain_graph
from dino_core.gallery.suspects import Suspects, disagreements, mean_similarity, outliers
from dino_core.measures.fences import fences, scale
from dino_core.measures.knn import knn_vote


def gallery(features: np.ndarray, k: int, gone: list[int] | None = None) -> Any:
    graph = plain_graph(features.astype(np.float32), k)
    images = pd.DataFrame({"gone": np.isin(np.arange(len(features)), gone or [])})
    return SimpleNamespace(images=images, neighbors=lambda: graph)


def around_a_center(count: int, dim: int = 16, spread: float = 0.3) -> np.ndarray:
    random = np.random.default_rng(3)
    features = np.eye(dim)[0] + spread * random.standard_normal((count, dim)) / np.sqrt(dim)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


# -- fences -----------------------------------------------------------------------------------


def test_fences_of_a_log_normal_lie_at_three_sigma() -> None:
    distances = np.exp(np.random.default_rng(0).normal(-2.0, 0.5, 200_001))
    low, high = fences(distances)
    assert np.log(low) == pytest.approx(-3.5, abs=0.02)
    assert np.log(high) == pytest.approx(-0.5, abs=0.02)


def test_fences_scale_with_the_distances_and_half_of_them_cannot_move_far() -> None:
    distances = np.random.default_rng(0).uniform(0.1, 0.2, 101)
    np.testing.assert_allclose(fences(distances * 1e-3), np.multiply(fences(distances), 1e-3))
    spoiled = distances.copy()
    spoiled[:40] = 1e6
    assert fences(spoiled)[1] < 10
    assert fences(np.array([np.nan, np.inf])) == (0.0, np.inf)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.0, 1.0, 0.5), (0.0, 1.0, 0.5, 0.01)),
        ((0.613, 1.0, 0.944), (0.612, 1.0, 0.944, 0.002)),
        ((0.995351, 1.0, 0.999768), (0.99534, 1.0, 0.99976, 0.00002)),
        ((-0.3, 0.7, 2.0), (-0.3, 0.7, 0.7, 0.01)),
        ((0.9, 0.9, 0.9), (0.9, 0.9, 0.9, 0.01)),
    ],
)
def test_a_scale_holds_its_range_in_round_steps(ends, expected) -> None:
    assert scale(*ends) == pytest.approx(expected, abs=1e-9)


# -- outliers ---------------------------------------------------------------------------------


def test_an_image_far_from_all_others_comes_first() -> None:
    features = around_a_center(120)
    features[17] = -features[17]
    alone = outliers(gallery(features, 30))
    similarity = features @ features.T
    np.fill_diagonal(similarity, -np.inf)
    expected = np.sort(similarity, axis=1)[:, -10:].mean(axis=1)
    np.testing.assert_array_equal(np.sort(alone.rows), np.arange(120))
    np.testing.assert_allclose(alone.values, expected[alone.rows], atol=1e-6)
    assert alone.rows[0] == 17 and 17 in alone.beyond(alone.usual)
    assert len(alone.beyond(alone.usual)) <= 3
    assert (alone.low, alone.high) == pytest.approx((expected.min(), np.median(expected)), abs=1e-6)


def test_those_gone_are_no_outliers_and_few_neighbors_do() -> None:
    features = around_a_center(20)
    features[4] = -features[4]
    mine = gallery(features, 3, gone=[4])
    alone = outliers(mine)
    assert 4 not in alone.rows and len(alone) == 19
    np.testing.assert_allclose(
        mean_similarity(mine.neighbors()[1]), mine.neighbors()[1].mean(1), atol=1e-6
    )
    for count in (0, 1):
        assert len(outliers(gallery(np.eye(2)[:count], 0))) == 0


def test_beyond_is_below_for_cosines_and_at_or_above_for_doubt() -> None:
    rows, values = np.arange(4), np.array([0.1, 0.2, 0.2, 0.4], np.float32)
    rising = Suspects(rows, values, True, 0, 1, 0)
    assert [rising.count(t) for t in (0.1, 0.15, 0.2, 0.3, 1.0)] == [0, 1, 1, 3, 4]
    falling = Suspects(rows, values[::-1], False, 0, 1, 0)
    assert [falling.count(t) for t in (0.1, 0.15, 0.2, 0.3, 1.0)] == [4, 3, 3, 1, 0]
    inside, outside = rising.around(0.3, each=2)
    assert (inside.tolist(), outside.tolist()) == ([2, 1], [3])
    inside, outside = rising.around(0.0, each=2)
    assert (inside.tolist(), outside.tolist()) == ([], [0, 1])


# -- labels -----------------------------------------------------------------------------------


def test_doubt_is_the_other_label_s_share_minus_the_own_by_the_published_vote() -> None:
    random = np.random.default_rng(7)
    names = np.array(["ant", "bee", "cat"])
    codes = random.integers(0, 3, 90)
    features = np.eye(8)[codes] + 0.8 * random.standard_normal((90, 8)) / np.sqrt(8)
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    codes[:6] = (codes[:6] + 1) % 3  # wrong labels
    votes = count_votes(*plain_graph(features, 20), pd.Series(names[codes]))
    doubtful = disagreements(votes)
    expected = {}
    for row in range(90):  # by the module that has a search of its own
        others = np.delete(np.arange(90), row)
        ranked = knn_vote(features[others], codes[others], features[row : row + 1], [20])[20][0]
        similarity = features[others] @ features[row]
        nearest = np.argsort(-similarity)[:20]
        weights = np.exp(similarity[nearest] / 0.07)
        shares = np.bincount(codes[others][nearest], weights, 3) / weights.sum()
        if int(ranked[0]) != codes[row]:
            expected[row] = shares[int(ranked[0])] - shares[codes[row]]
    assert set(doubtful.rows.tolist()) == set(expected) and set(range(6)) <= set(expected)
    np.testing.assert_allclose(
        doubtful.values, [expected[row] for row in doubtful.rows.tolist()], atol=1e-4
    )
    assert (np.diff(doubtful.values) <= 0).all()
    gone = np.arange(90) == doubtful.rows[0]
    assert disagreements(votes, gone).rows.tolist() == doubtful.rows[1:].tolist()


def test_without_labels_nobody_disagrees() -> None:
    features = around_a_center(12).astype(np.float32)
    votes = count_votes(*plain_graph(features, 5), pd.Series([None] * 12, dtype=object))
    assert len(disagreements(votes)) == 0
    one = pd.Series(["a"] + [None] * 11, dtype=object)
    assert len(disagreements(count_votes(*plain_graph(features, 5), one))) == 0
