"""Average precision and its company: cases counted by hand, and the published loops once more."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dino_core.measures import ranking


def test_average_precision_counted_by_hand():
    # first place: precision 1 before and with it; third place: 1 of 2 before, 2 of 3 with it
    expected = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    assert ranking.average_precision([0, 2], 2) == pytest.approx(expected)
    assert ranking.average_precision([0, 1, 2], 3) == 1.0
    assert ranking.average_precision([0], 4) == 0.25  # three were never found
    assert ranking.average_precision([], 1) == 0.0
    assert ranking.average_precision([1], 1) == pytest.approx((0 + 1 / 2) / 2)


def test_average_precision_of_nothing_is_refused():
    for ranks, positives in (([], 0), ([0, 1], 1)):
        with pytest.raises(ValueError, match="no precision to average"):
            ranking.average_precision(ranks, positives)


def test_precision_at_stops_at_the_last_right_one():
    assert ranking.precision_at([0, 3], 1) == 1.0
    assert ranking.precision_at([0, 3], 3) == pytest.approx(1 / 3)
    assert ranking.precision_at([0, 3], 10) == pytest.approx(2 / 4)
    assert ranking.precision_at([], 5) == 0.0


def test_junk_leaves_the_ranking_before_it_is_judged():
    order = np.array([7, 3, 9, 1, 0])
    np.testing.assert_array_equal(ranking.ranks_of(order, np.array([9, 0]), np.array([7])), [1, 3])
    np.testing.assert_array_equal(ranking.ranks_of(order, np.array([9]), np.array([7, 9])), [])


def test_difficulties_counted_by_hand():
    """Ranking: hard, junk, easy, wrong, hard."""
    order = np.array([4, 2, 0, 3, 1])
    easy, hard, junk = np.array([0]), np.array([1, 4]), np.array([2])
    found = ranking.by_difficulty(order, easy, hard, junk, ks=(1, 2))
    assert found["easy"].ap == 1.0  # hard and junk are gone: the easy one is first
    # medium: right, right, wrong, right
    assert found["medium"].ap == pytest.approx((1 + 1 + (2 / 3 + 3 / 4) / 2) / 3)
    # hard: right, wrong, right
    assert found["hard"].ap == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert found["hard"].precision == {1: 1.0, 2: 0.5}
    nothing = np.array([], int)
    assert ranking.by_difficulty(order, easy, nothing, junk)["hard"] is None


def published(order, right, junk, ks):
    """The published loops, written from their description: places go up as junk goes before."""
    at = {image: place for place, image in enumerate(order)}
    places = sorted(at[image] for image in right)
    places = [place - sum(at[image] < place for image in junk) for place in places]
    area = 0.0
    for found, place in enumerate(places):
        before = 1.0 if place == 0 else found / place
        area += (before + (found + 1) / (place + 1)) / 2 / len(right)
    precision = {}
    for k in ks:
        k_used = min(max(places) + 1, k)
        precision[k] = sum(place + 1 <= k_used for place in places) / k_used
    return area, precision


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_as_the_published_loops_have_it(seed, count):
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    kinds = random.integers(0, 3, count)  # 0 right, 1 junk, 2 wrong
    right, junk = np.flatnonzero(kinds == 0), np.flatnonzero(kinds == 1)
    found = ranking.judged(order, right, junk, (1, 5, 10))
    if not len(right):
        assert found is None
        return
    area, precision = published(order.tolist(), right.tolist(), junk.tolist(), (1, 5, 10))
    assert found.ap == pytest.approx(area, abs=1e-12)
    assert found.precision == pytest.approx(precision)


def test_means_leave_out_queries_without_an_answer():
    one, two = ranking.Judged(0.5, {1: 1.0}), ranking.Judged(1.0, {1: 0.0})
    mean = ranking.averaged([one, None, two], (1,))
    assert (mean.mean_ap, mean.precision, mean.queries) == (0.75, {1: 0.5}, 2)
    assert ranking.averaged([None], (1,)) == ranking.Precision(None, {1: None}, 0)


def features(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return random / np.linalg.norm(random, axis=1, keepdims=True)


def test_rankings_in_chunks_are_those_of_a_loop():
    queries, database = features(7, 0), features(31, 1)
    found = list(ranking.rankings(queries, database, chunk=3))
    assert len(found) == 7
    for query, order in zip(queries, found, strict=True):
        similar = [math.fsum(a * b for a, b in zip(query, row, strict=True)) for row in database]
        assert order.tolist() == sorted(range(31), key=lambda i: -similar[i])


def test_equal_images_stand_in_their_order():
    database = np.ones((5, 2), np.float32)
    (order,) = ranking.rankings(torch.ones(1, 2), database)
    np.testing.assert_array_equal(order, np.arange(5))


@pytest.mark.parametrize("k", [1, 4, 40])
def test_the_first_ranks_in_parts_are_the_first_of_all(k):
    queries, database = features(7, 2), features(31, 3)
    whole = np.array(list(ranking.rankings(queries, database)))[:, :k]
    similar, numbers = ranking.top_ranks(queries, database, k, queries_at_once=3, images_at_once=5)
    np.testing.assert_array_equal(numbers, whole)
    expected = np.take_along_axis(queries @ database.T, whole, axis=1)
    np.testing.assert_allclose(similar, expected, atol=1e-6)


def test_no_query_and_no_image_are_no_accident():
    similar, numbers = ranking.top_ranks(features(0, 0), features(3, 1), 2)
    assert similar.shape == numbers.shape == (0, 2)
    similar, numbers = ranking.top_ranks(features(2, 0), features(0, 1), 2)
    assert similar.shape == numbers.shape == (2, 0)
