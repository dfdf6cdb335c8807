"""PCA whitening: two dimensions by hand, scikit-learn's, NumPy's covariance, what was published."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from dino_core.measures import whitening
from dino_core.measures.whitening import learn_whitening


@pytest.fixture(scope="module")
def spread() -> np.ndarray:
    """Features that lie askew and away from 0."""
    random = np.random.default_rng(0)
    return (random.normal(size=(200, 6)) @ random.normal(size=(6, 6)) + 3).astype(np.float32)


def test_two_dimensions_by_hand():
    points = np.array([[5, 1], [5, -1], [1, 0], [9, 0]], np.float32)  # variances 8 and 1/2
    learned = learn_whitening(points)
    np.testing.assert_allclose(learned.mean_D, [5, 0])
    expected = [[0, 1 / np.sqrt(0.5)], [4 / np.sqrt(8), 0]]
    np.testing.assert_allclose(np.abs(learned.apply(points[[0, 3]])), expected, rtol=1e-6)
    assert learned.energy == 1.0


@pytest.mark.parametrize("dim", [None, 2])
def test_full_whitening_is_that_of_scikit_learn(spread, dim):
    expected = PCA(n_components=dim, whiten=True).fit_transform(spread.astype(np.float64))
    expected *= np.sqrt(len(spread) / (len(spread) - 1))  # which divides by n - 1
    found = learn_whitening(spread, dim=dim).apply(spread)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_variances_after_whitening(spread, power):
    """Of variance v remains v^(1 - 2 power), and no axis goes with another."""
    before = np.sort(np.linalg.eigvalsh(np.cov(spread.T, bias=True)))[::-1]
    found = learn_whitening(spread, power=power).apply(spread)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    expected = np.diag(before ** (1 - 2 * power))
    np.testing.assert_allclose(np.cov(found.T, bias=True), expected, rtol=1e-3, atol=2e-3)


def test_as_published_the_covariance_is_not_centered(spread):
    """The published steps in float64: mean of x x^T, eigenvectors over roots, centered data."""
    wide = spread.astype(np.float64)
    second = sum(np.outer(row, row) for row in wide) / len(wide)
    values, vectors = np.linalg.eig(second)
    order = np.argsort(values)[::-1]
    expected = (wide - wide.mean(axis=0)) @ vectors[:, order] / np.sqrt(values[order])
    found = learn_whitening(spread, as_published=True).apply(spread)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)
    # what is wrong with it: the first axis is the mean's, and hardly varies
    assert found.var(axis=0)[0] < 0.5
    np.testing.assert_allclose(learn_whitening(spread).apply(spread).var(axis=0), 1, rtol=1e-3)


def test_fewer_images_than_dimensions(spread):
    few = spread[:4]
    learned = learn_whitening(few)
    assert learned.axes_KD.shape == (3, 6)
    np.testing.assert_allclose(learned.apply(few).var(axis=0), 1, rtol=1e-3)
    published = learn_whitening(few, as_published=True)
    assert published.axes_KD.shape == (6, 6)
    norms = np.linalg.norm(published.axes_KD, axis=1)
    assert norms.max() / norms.min() == pytest.approx(1e-5**-0.5, rel=1e-3)  # floored


def test_parts_make_no_difference(spread, monkeypatch):
    whole = learn_whitening(spread)
    monkeypatch.setattr(whitening, "ROWS_AT_ONCE", 7)
    parts = learn_whitening(spread)
    np.testing.assert_allclose(parts.axes_KD, whole.axes_KD, atol=1e-9)
    np.testing.assert_allclose(parts.apply(spread), whole.apply(spread), atol=1e-5)


def test_what_cannot_be_learned_from(spread):
    for rows, options, says in (
        (spread[:1], {}, "1 images cannot tell"),
        (spread, {"dim": 7}, "7 axes"),
        (spread, {"dim": 0}, "0 axes"),
        (np.ones((3, 2), np.float32), {}, "all equal"),
    ):
        with pytest.raises(ValueError, match=says):
            learn_whitening(rows, **options)
