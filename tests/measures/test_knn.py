"""The k-NN vote: the golden file, and the laws that the published script breaks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_core.measures.knn import knn_accuracy, knn_vote, ranking_accuracy
from dino_core.rng import generator

GOLDEN = Path(__file__).parents[1] / "golden" / "knn.npz"


def normalized(n: int, dim: int, *key: str) -> np.ndarray:
    features = generator(0, *key).standard_normal((n, dim)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 20, 100])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_golden(k: int, chunk: int) -> None:
    golden = np.load(GOLDEN)
    ranked = knn_vote(
        golden["train"],
        golden["train_labels"],
        golden["test"],
        [k],
        temperature=float(golden["temperature"]),
        num_classes=int(golden["num_classes"]),
        chunk=chunk,
    )[k]
    accuracy = ranking_accuracy(ranked, golden["test_labels"])
    np.testing.assert_array_equal(ranked[:, 0], golden[f"pred_k{k}"])
    assert accuracy.top1 == pytest.approx(float(golden[f"top1_k{k}"]), abs=1e-4)
    assert accuracy.top5 == pytest.approx(float(golden[f"top5_k{k}"]), abs=1e-4)


def test_a_small_temperature_does_not_overflow() -> None:
    train = normalized(40, 8, "train")
    labels = np.arange(40)
    sharp = knn_vote(train, labels, train, [5], temperature=0.01)[5]
    np.testing.assert_array_equal(sharp[:, 0], labels)  # as infinities, all votes would be equal
    usual = knn_vote(train, labels, train, [5], temperature=0.07)[5]
    np.testing.assert_array_equal(sharp[:, :2], usual[:, :2])


def test_several_k_at_once_are_each_alone() -> None:
    train, test = normalized(60, 8, "train"), normalized(9, 8, "test")
    labels = np.arange(60) % 4
    together = knn_vote(train, labels, test, [1, 7, 50])
    for k, ranked in together.items():
        assert torch.equal(ranked, knn_vote(train, labels, test, [k])[k])


def test_k_above_the_number_of_training_images_counts_as_that_number() -> None:
    train, test = normalized(5, 8, "train"), normalized(3, 8, "test")
    ranked = knn_vote(train, np.array([0, 1, 2, 0, 1]), test, [5, 200])
    assert torch.equal(ranked[200], ranked[5])


def test_thousands_of_classes() -> None:
    train = normalized(30, 8, "train")
    labels = np.arange(30) + 5000
    accuracy = knn_accuracy(train, labels, train, labels, [1])
    assert accuracy[1].top1 == 100


def test_unlabeled_images_neither_vote_nor_count() -> None:
    train = normalized(20, 8, "train")
    labels = np.arange(20) % 2
    mixed_train = np.concatenate([train, train])
    mixed_labels = np.concatenate([labels, np.full(20, -1)])
    expected = knn_accuracy(train, labels, train, labels, [3])
    assert knn_accuracy(mixed_train, mixed_labels, mixed_train, mixed_labels, [3]) == expected


def test_no_labels_at_all() -> None:
    train = normalized(4, 8, "train")
    nothing = np.full(4, -1)
    with pytest.raises(ValueError, match="no training image has a label"):
        knn_vote(train, nothing, train, [1])
    with pytest.raises(ValueError, match="no test image has a label"):
        knn_accuracy(train, np.zeros(4, int), train, nothing, [1])


def test_the_nearest_weighs_more_than_two_far_ones() -> None:
    train = np.array([[1, 0], [0.6, 0.8], [0.6, -0.8]], np.float32)
    ranked = knn_vote(train, np.array([1, 0, 0]), np.array([[1, 0]], np.float32), [3])[3]
    assert ranked[0, 0] == 1  # exp(1 / 0.07) against 2 exp(0.6 / 0.07)
