"""Linear CKA: cases by hand, the N x N formulas of the papers, and its invariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_core.measures.cka import CkaSums, linear_cka


def by_gram(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al., equations 2 and 4: HSIC of centered N x N Gram matrices."""
    center = np.eye(len(x)) - 1 / len(x)
    k, l = center @ x @ x.T @ center, center @ y @ y.T @ center  # noqa: E741
    return np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))


def unbiased_by_gram(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al., equation 5, as printed."""

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        n, one = len(k), np.ones(len(k))
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + sums - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def pair(seed: int, count: int = 40, dim: int = 5, other: int = 8, shift: float = 0.0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, dim)) + shift
    return x, np.hstack([x[:, :2], random.standard_normal((count, other - 2))])


def test_by_hand():
    """Centered columns (-1, 0, 1) and (1, -2, 1) are orthogonal."""
    line, bend = np.array([[0.0], [1], [2]]), np.array([[1.0], [-2], [1]])
    assert linear_cka(line, bend) == pytest.approx(0, abs=1e-12)
    assert linear_cka(line, 5 - 3 * line) == pytest.approx(1)
    # X'Y = (2, 0), |X'X| = 2, |Y'Y| = |diag(2, 6)| = sqrt(40): 4 / (2 sqrt(40))
    assert linear_cka(line, np.hstack([line, bend])) == pytest.approx(1 / np.sqrt(10))


def test_the_square_correlation_of_single_columns():
    x, y = np.random.default_rng(0).standard_normal((2, 30))
    expected = np.corrcoef(x, y)[0, 1] ** 2
    assert linear_cka(x[:, None], y[:, None]) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(40, 5, 8), (6, 20, 9), (4, 3, 3)])
def test_both_variants_are_the_formulas_with_gram_matrices(seed, shape):
    x, y = pair(seed, *shape)
    assert linear_cka(x, y) == pytest.approx(by_gram(x, y))
    assert linear_cka(x, y, unbiased=True) == pytest.approx(unbiased_by_gram(x, y))


@given(st.integers(0, 99), st.floats(0.1, 10), st.booleans())
def test_rotation_scale_origin_and_order_do_not_matter(seed, scale, unbiased):
    x, y = pair(seed)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))[0]
    order = np.random.default_rng(seed).permutation(40)
    expected = linear_cka(x, y, unbiased=unbiased)
    moved = (scale * x @ turn + 3)[order]
    assert linear_cka(moved, y[order], unbiased=unbiased) == pytest.approx(expected)
    assert linear_cka(y, x, unbiased=unbiased) == pytest.approx(expected)


@pytest.mark.parametrize("unbiased", [False, True])
def test_chunks_add_up_to_the_whole_with_a_large_common_mean_in_float32(unbiased):
    x, y = (one.astype(np.float32) for one in pair(1, 200, shift=50.0))
    sums = CkaSums()
    for start in range(0, 200, 64):
        sums.add(x[start : start + 64], y[start : start + 64])
    sums.add(x[:0], y[:0])
    reference = (unbiased_by_gram if unbiased else by_gram)(
        x.astype(np.float64) - 50, y.astype(np.float64)
    )
    assert sums.count == 200
    assert sums.value(unbiased=unbiased) == pytest.approx(reference, rel=1e-9)


def test_unrelated_features_of_few_images_seem_alike_only_to_the_biased_variant():
    plain, unbiased = [], []
    for seed in range(20):
        x, y = np.random.default_rng(seed).standard_normal((2, 30, 100))
        plain.append(linear_cka(x, y))
        unbiased.append(linear_cka(x, y, unbiased=True))
    assert np.mean(plain) > 0.7
    assert abs(np.mean(unbiased)) < 0.05


def test_where_it_is_not_defined():
    x, _ = pair(0)
    assert np.isnan(linear_cka(x, np.full((40, 3), 0.1)))
    assert np.isnan(linear_cka(x[:1], x[:1]))
    assert np.isnan(linear_cka(x[:3], x[:3], unbiased=True))
    assert np.isnan(CkaSums().value())
    with pytest.raises(ValueError, match="40 and 39"):
        linear_cka(x, x[1:])
