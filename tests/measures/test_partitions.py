"""Purity, NMI and ARI against scikit-learn and against counting by hand, and their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from dino_core.measures.partitions import ari, nmi, overlap, purity

groups = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n) for _ in range(2)])
)


@given(groups)
def test_as_scikit_learn(pair):
    first, second = map(np.array, pair)
    assert nmi(first, second) == pytest.approx(normalized_mutual_info_score(first, second))
    assert ari(first, second) == pytest.approx(adjusted_rand_score(first, second))
    table = contingency_matrix(first, second)
    assert purity(first, second) == pytest.approx(table.max(axis=1).sum() / len(first))


@given(groups, st.permutations(range(5)))
def test_numbers_of_groups_do_not_matter(pair, names):
    first, second = map(np.array, pair)
    renamed = np.array(names)[second] * 7 - 100
    renamed[renamed == -1] = 1000
    for measure in (purity, nmi, ari):
        assert measure(first, renamed) == pytest.approx(measure(first, second))
    assert nmi(second, first) == pytest.approx(nmi(first, second))
    assert ari(second, first) == pytest.approx(ari(first, second))


def test_counted_by_hand():
    """Manning et al., figure 16.4: 17 images in three clusters of x, o and d."""
    clusters = np.array([0] * 6 + [1] * 6 + [2] * 5)
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 2, 0, 0, 2, 2, 2])
    assert purity(clusters, labels) == pytest.approx(12 / 17)
    assert nmi(clusters, labels) == pytest.approx(0.36, abs=0.01)
    assert ari(clusters, labels) == pytest.approx(0.24, abs=0.01)


def test_images_without_a_group_do_not_count():
    first, second = np.array([0, 0, 1, 1, -1, 1]), np.array([3, 3, 5, 5, 5, -1])
    for measure in (purity, nmi, ari):
        assert measure(first, second) == 1.0
    found = overlap(first, second)
    assert (found.first.tolist(), found.second.tolist()) == ([0, 1], [3, 5])
    assert found.count.tolist() == [2, 2]


def test_nothing_in_common():
    with pytest.raises(ValueError, match="no image"):
        purity(np.array([-1, 0]), np.array([0, -1]))
    with pytest.raises(ValueError, match="groups of"):
        nmi(np.array([0, 1]), np.array([0]))


def test_a_million_images_do_not_overflow():
    first = np.arange(1_000_000) // 1000
    assert ari(first, first) == pytest.approx(1.0)
    assert nmi(first, first) == pytest.approx(1.0)
