"""Alignment and uniformity against configurations known by hand, and the plain double loop."""

import math

import numpy as np
import pytest
import torch

from dino_core.measures.uniformity import (
    CHUNK,
    alignment,
    mean_squared_distance,
    sampled_uniformity,
    uniformity,
)


def on_sphere(count: int, dim: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def simplex(corners: int) -> np.ndarray:
    """Unit vectors, each two of them at the same distance: squared, 2 n / (n - 1)."""
    centered = np.eye(corners) - 1 / corners
    return centered / np.linalg.norm(centered, axis=1, keepdims=True)


@pytest.mark.parametrize("corners", [2, 3, 10])
@pytest.mark.parametrize("t", [0.5, 2.0, 1000.0])
def test_simplex_by_hand(corners: int, t: float) -> None:
    squared = 2 * corners / (corners - 1)
    assert uniformity(simplex(corners), t) == pytest.approx(-t * squared)
    assert mean_squared_distance(simplex(corners)) == pytest.approx(squared)


def test_square_by_hand() -> None:
    """Of six pairs four are sides, at a squared distance of 2, and two diagonals, of 4."""
    square = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], float)
    expected = math.log((4 * math.exp(-2 * 2) + 2 * math.exp(-2 * 4)) / 6)
    assert uniformity(square) == pytest.approx(expected)
    assert mean_squared_distance(square) == pytest.approx((4 * 2 + 2 * 4) / 6)


def test_equal_points() -> None:
    equal = np.repeat(on_sphere(1, 50), 30, axis=0)
    assert uniformity(equal) == pytest.approx(0, abs=1e-12)
    assert mean_squared_distance(equal) == pytest.approx(0, abs=1e-12)
    estimate = sampled_uniformity(equal, 100, np.random.default_rng(0))
    assert (estimate.value, estimate.error) == (0, 0)


@pytest.mark.parametrize("count", [2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunks_are_the_published_formula(count: int) -> None:
    points = torch.as_tensor(on_sphere(count, 5)).double()
    squared = torch.pdist(points).square()
    assert uniformity(points, 3.0) == pytest.approx(float((-3 * squared).exp().mean().log()))
    assert mean_squared_distance(points) == pytest.approx(float(squared.mean()))


def test_many_dimensions_are_at_right_angles() -> None:
    assert uniformity(on_sphere(300, 2000)) == pytest.approx(-4, abs=0.05)


def test_the_sample_is_off_by_what_it_says() -> None:
    points = on_sphere(400, 3)
    exact = uniformity(points)
    estimates = [
        sampled_uniformity(points, 2000, np.random.default_rng(seed)) for seed in range(60)
    ]
    off = np.array([(one.value - exact) / one.error for one in estimates])
    assert abs(off.mean()) < 4 / math.sqrt(60)
    assert 0.7 < off.std() < 1.3


def test_a_row_is_never_paired_with_itself() -> None:
    """Of two opposite points the only pair is 4 apart, squared; with itself it would be 0."""
    estimate = sampled_uniformity(simplex(2), 3000, np.random.default_rng(0))
    assert estimate.value == pytest.approx(-8)
    assert estimate.error == pytest.approx(0, abs=1e-12)


def test_alignment_by_hand() -> None:
    first = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    second = np.array([[1, 0], [1, 0], [-1, 0]], np.float32)
    assert alignment(first, second) == pytest.approx((0 + 2 + 4) / 3)
    assert alignment(first, second, alpha=1) == pytest.approx((math.sqrt(2) + 2) / 3)


def test_alignment_of_equal_views_is_0() -> None:
    points = on_sphere(CHUNK + 5, 7)
    assert alignment(points, points.copy()) == 0


def test_alignment_in_chunks_is_the_loop() -> None:
    first, second = on_sphere(CHUNK + 5, 4), on_sphere(CHUNK + 5, 4, seed=1)
    expected = np.mean([np.linalg.norm(x - y) ** 3 for x, y in zip(first, second, strict=True)])
    assert alignment(first, second, alpha=3) == pytest.approx(expected, rel=1e-5)


def test_what_makes_no_pair_is_refused() -> None:
    points = on_sphere(3, 4)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(2, 4\) are no pairs"):
        alignment(points, points[:2])
    with pytest.raises(ValueError, match="no pairs"):
        alignment(points[:0], points[:0])
    with pytest.raises(ValueError, match="1 rows"):
        uniformity(points[:1])
    with pytest.raises(ValueError, match="1 rows"):
        mean_squared_distance(points[:1])
    with pytest.raises(ValueError, match="10 pairs among 1 rows"):
        sampled_uniformity(points[:1], 10, np.random.default_rng(0))
