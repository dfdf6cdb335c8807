"""The neighbors' vote on labels, against the search of its own in `measures` and cases by hand."""

import numpy as np
import pandas as pd
import pytest

from dino_core.gallery import agreement as agreement_module
from dino_core.gallery.agreement import (
    Votes,
    agreement,
    count_votes,
    hardest,
    label_codes,
    precision_per_class,
    vote,
)
from dino_core.gallery.neighbors import plain_graph
from dino_core.measures import knn_accuracy
from dino_core.measures.knn import TEMPERATURE


@pytest.fixture(scope="module")
def cloud():
    """300 labeled points in overlapping groups: features, labels, graph."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    features = random.standard_normal((4, 8))[labels] + 0.9 * random.standard_normal((300, 8))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    names = pd.Series([f"class {label}" for label in labels])
    return features, labels, names, plain_graph(features, 30)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(agreement_module, "BLOCK", 37)


def shares_by_hand(features, labels, row, k):
    """{label: share} of the vote on one image, from the formula in float64."""
    cosines = features.astype(np.float64) @ features[row].astype(np.float64)
    cosines[row] = -np.inf
    near = np.argsort(-cosines)[:k]
    weights = np.exp(cosines[near] / 0.07)
    return {c: weights[labels[near] == c].sum() / weights.sum() for c in range(4)}


def test_the_temperature_is_the_published_one():
    assert agreement_module.TEMPERATURE == TEMPERATURE == 0.07


def test_shares_are_those_of_the_formula(cloud):
    features, labels, names, graph = cloud
    votes = count_votes(*graph, names, k=20)
    for row in range(0, 300, 7):
        shares = shares_by_hand(features, labels, row, 20)
        winner = max(shares, key=shares.get)
        assert votes.own[row] == pytest.approx(shares[labels[row]], abs=2e-5)
        assert votes.names[votes.winner[row]] == f"class {winner}"
        assert votes.winner_share[row] == pytest.approx(shares[winner], abs=2e-5)


def test_accuracy_is_that_of_the_vote_with_its_own_search(cloud):
    features, labels, names, graph = cloud
    others = [np.delete(np.arange(300), row) for row in range(300)]
    right = [
        knn_accuracy(features[o], labels[o], features[[row]], labels[[row]], [20])[20].top1 == 100
        for row, o in enumerate(others)
    ]
    votes = count_votes(*graph, names, k=20)
    assert votes.right.tolist() == right
    table = precision_per_class(graph[0], votes).set_index("class")
    for c in range(4):
        expected = np.mean(np.array(right)[labels == c])
        assert table.at[f"class {c}", "k-NN accuracy"] == pytest.approx(expected)


def test_precision_is_the_share_of_neighbors_with_the_same_label(cloud):
    features, labels, names, graph = cloud
    cosines = features @ features.T
    np.fill_diagonal(cosines, -9)
    order = np.argsort(-cosines, axis=1)
    table = precision_per_class(graph[0], count_votes(*graph, names), ks=(1, 5, 20, 400))
    assert list(table.columns) == [
        "class", "images", "precision@1", "precision@5", "precision@20", "precision@30",
        "agreement", "k-NN accuracy", "taken for",
    ]  # fmt: skip
    assert table["precision@30"].is_monotonic_increasing
    for c in range(4):
        line = table[table["class"] == f"class {c}"].iloc[0]
        assert line["images"] == (labels == c).sum()
        for k in (1, 5, 20):
            same = [np.mean(labels[order[row, :k]] == c) for row in np.flatnonzero(labels == c)]
            assert line[f"precision@{k}"] == pytest.approx(np.mean(same))


# Six images by hand: 0-2 are a and c by label, 5 has none; all cosines 0.5, so votes count alike.
ROWS = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]], np.int32)
SCORES = np.full((6, 2), 0.5, np.float32)
LABELS = pd.Series(["a", "a", "c", "b", None, None])


def test_images_without_a_label_neither_vote_nor_are_judged():
    votes = count_votes(ROWS, SCORES, LABELS)
    np.testing.assert_allclose(votes.own, [0.5, 0.5, 0, np.nan, np.nan, np.nan])
    assert "".join(votes.names[code] for code in votes.winner[[0, 1, 2, 4, 5]]) == "aaabb"
    assert (votes.winner[3], votes.winner_share[3]) == (-1, 0)
    np.testing.assert_allclose(votes.winner_share, [0.5, 0.5, 1, 0, 1, 1])
    table = precision_per_class(ROWS, votes, ks=(1, 2)).set_index("class")
    np.testing.assert_allclose(table.loc[["a", "c"], "precision@2"], [0.5, 0])
    assert table.loc["b"].isna().tolist() == [False, True, True, True, True, True]
    assert table["taken for"].dropna().to_dict() == {"c": "a"}
    assert table["images"].to_dict() == {"a": 2, "b": 1, "c": 1}


def test_nearer_neighbors_have_more_to_say():
    rows, scores = np.array([[1, 2]] * 3, np.int32), np.array([[0.9, 0.83]] * 3, np.float32)
    votes = count_votes(rows, scores, pd.Series(["a", "a", "b"]))
    assert votes.own[0] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)  # (0.9 - 0.83) / 0.07 = 1


def test_one_search_votes_as_the_graph_does(cloud):
    _, _, names, (rows, scores) = cloud
    votes = count_votes(rows, scores, names)
    for row in range(0, 300, 31):
        elected = vote(list(names.iloc[rows[row, :20]]), scores[row, :20])
        label, share = elected[0]
        assert (label, share) == (
            votes.names[votes.winner[row]],
            pytest.approx(votes.winner_share[row]),
        )
        assert sum(share for _, share in elected) == pytest.approx(1)
        assert dict(elected).get(names[row], 0) == pytest.approx(votes.own[row], abs=1e-6)
    assert vote([None, "b", "a"], np.array([0.9, 0.5, 0.5], np.float32)) == [("a", 0.5), ("b", 0.5)]
    assert vote([None], np.ones(1, np.float32)) == vote([], np.empty(0, np.float32)) == []


def test_of_equal_votes_the_first_name_wins():
    labels = pd.Series(["z", "m", "k", "z", "z", "z"])
    votes = count_votes(ROWS, SCORES, labels)
    assert votes.names[votes.winner[0]] == "k"


def test_the_hardest_have_the_least_vote_and_the_surest_other():
    votes = Votes(
        names=["a", "b"],
        codes=np.array([0, 0, 0, 1, 1, -1], np.int32),
        own=np.array([0.5, 0, 0, 0.25, 0, np.nan], np.float32),
        winner=np.array([0, 1, 1, 0, 0, 0], np.int32),
        winner_share=np.array([0.5, 0.6, 0.9, 0.7, 0.6, 1], np.float32),
        k=20,
    )
    assert hardest(votes, 9).tolist() == [2, 1, 4, 3, 0]
    assert hardest(votes, 2).tolist() == [2, 1]
    assert hardest(votes, 9, "b").tolist() == [4, 3]
    assert hardest(votes, 9, "not there").tolist() == []


def test_the_hardest_few_are_the_first_of_all(cloud):
    votes = count_votes(*cloud[3], cloud[2])
    assert hardest(votes, 25).tolist() == hardest(votes, 300).tolist()[:25]


def test_a_gallery_s_agreement_is_the_vote_for_the_own_label(scenes_gallery):
    votes = count_votes(*scenes_gallery.neighbors(), scenes_gallery.images["label"])
    np.testing.assert_array_equal(agreement(scenes_gallery), votes.own)
    assert votes.k == 20
    ten = count_votes(*scenes_gallery.neighbors(), scenes_gallery.images["label"], k=10)
    np.testing.assert_array_equal(agreement(scenes_gallery, 10), ten.own)


@pytest.mark.parametrize("count", [0, 1])
def test_without_neighbors_nobody_votes(count):
    rows, scores = np.empty((count, 0), np.int32), np.empty((count, 0), np.float32)
    votes = count_votes(rows, scores, pd.Series(["a"] * count, dtype=object))
    assert np.isnan(votes.own).all()
    assert (votes.winner == -1).all()
    assert len(precision_per_class(rows, votes)) == count
    assert len(hardest(votes, 5)) == 0


def test_without_labels_there_are_no_classes(cloud):
    labels = pd.Series([None] * 300, dtype=object)
    votes = count_votes(*cloud[3], labels)
    assert len(precision_per_class(cloud[3][0], votes)) == 0
    assert label_codes(labels)[1] == []
    assert len(hardest(votes, 5)) == 0


def test_progress_is_told(cloud):
    told = []
    count_votes(*cloud[3], cloud[2], progress=lambda *what: told.append(what))
    assert told[0] == (0, 300, "Counting votes")
    assert told[-1][0] < 300
