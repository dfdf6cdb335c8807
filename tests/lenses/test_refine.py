"""The guided filter window by window, and what a refined mask keeps and mends."""

import tracemalloc

import numpy as np
import pytest

from dino_core.lenses.refine import LONG_SIDE, enlarged, guided, refined
from dino_core.lenses.render import nearest
from dino_core.measures.overlap import iou

RANDOM = np.random.default_rng(0)


def plain_guided(soft, image, radius, smoothness):
    """The paper window by window: a least squares fit in each, then the mean of all that cover."""
    height, width = soft.shape
    color = image.astype(np.float64) / 255
    total, count = np.zeros_like(soft, dtype=np.float64), np.zeros_like(soft, dtype=np.float64)
    for row in range(height):
        for column in range(width):
            window = (
                slice(max(row - radius, 0), row + radius + 1),
                slice(max(column - radius, 0), column + radius + 1),
            )
            colors, wanted = color[window].reshape(-1, 3), soft[window].ravel().astype(np.float64)
            n = len(wanted)
            # minimizes the sum of (a . color + b - wanted)^2 + smoothness |a|^2
            rows = np.concatenate(
                [colors - colors.mean(axis=0), np.eye(3) * (n * smoothness) ** 0.5]
            )
            slope = np.linalg.lstsq(rows, np.append(wanted - wanted.mean(), np.zeros(3)))[0]
            offset = wanted.mean() - slope @ colors.mean(axis=0)
            total[window] += color[window] @ slope + offset
            count[window] += 1
    # Windows cut off at the frame cover as many pixels as cover theirs: the counts are the same.
    return total / count


def disc(side: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    return np.hypot(x, y) < radius


def shares(mask: np.ndarray, patch: int) -> np.ndarray:
    """How much of each patch lies in the mask, float32 [h, w]."""
    h, w = mask.shape[0] // patch, mask.shape[1] // patch
    return mask.reshape(h, patch, w, patch).mean(axis=(1, 3)).astype(np.float32)


@pytest.mark.parametrize("radius", [1, 3, 30])
@pytest.mark.parametrize("smoothness", [1e-4, 1e-2])
def test_agrees_with_the_plain_twin(radius, smoothness):
    image = RANDOM.integers(0, 256, (17, 23, 3), dtype=np.uint8)
    soft = RANDOM.random((17, 23), dtype=np.float32)
    np.testing.assert_allclose(
        guided(soft, image, radius=radius, smoothness=smoothness),
        plain_guided(soft, image, radius, smoothness),
        atol=1e-4,
    )


def test_agrees_where_the_photo_is_gray():
    """Three equal channels: their covariance has rank 1, which float32 must survive."""
    gray = RANDOM.integers(0, 256, (20, 18, 1), dtype=np.uint8).repeat(3, axis=2)
    soft = RANDOM.random((20, 18), dtype=np.float32)
    np.testing.assert_allclose(
        guided(soft, gray, radius=4), plain_guided(soft, gray, 4, 1e-4), atol=1e-3
    )


def test_a_flat_photo_says_nothing_and_leaves_a_straight_border_where_it_was():
    grid = np.zeros((6, 8), dtype=bool)
    grid[:, 3:] = True
    image = np.full((48, 64, 3), 90, dtype=np.uint8)
    np.testing.assert_array_equal(refined(grid, image), nearest(grid, 48, 64))


def test_what_is_one_patch_wide_is_not_wiped_out():
    grid = np.zeros((9, 9), dtype=bool)
    grid[4] = True
    assert refined(grid, np.full((144, 144, 3), 90, dtype=np.uint8)).any(axis=0).all()


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7)])
def test_nothing_stays_nothing_and_everything_everything(value, shape):
    image = RANDOM.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    mask = refined(np.full(shape, value), image)
    assert mask.shape == (50, 70)
    assert mask.dtype == bool
    assert (mask == value).all()


@pytest.mark.parametrize("soft", [False, True])
def test_the_outline_goes_to_the_edge_in_the_photo(soft):
    """A disc on a patch grid is a staircase; its edge in the photo is 1 px sharp."""
    object_ = disc(128, 45)
    noise = RANDOM.integers(0, 20, (128, 128, 3))
    image = (np.where(object_[..., None], (200, 90, 60), (60, 80, 150)) + noise).astype(np.uint8)
    share = shares(object_, 16)
    grid = share > 0.5
    before = iou(nearest(grid, 128, 128), object_)
    after = iou(refined(share if soft else grid, image), object_)
    assert before < 0.92
    assert after > 0.98


def test_what_is_far_from_the_mask_stays_out_however_alike():
    """Local, unlike a bilateral solver: a second disc of the same color is not reached."""
    object_ = disc(128, 20)
    both = object_ | np.roll(object_, 64, axis=(0, 1))
    image = np.where(both[..., None], 220, 30).astype(np.uint8) * np.ones(3, dtype=np.uint8)
    mask = refined(shares(object_, 8) > 0.5, image)
    assert iou(mask, object_) > 0.95
    assert not (mask & both & ~object_).any()


def test_mirrored_and_turned_alike():
    image = RANDOM.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    grid = RANDOM.random((5, 7)) > 0.5
    mask = refined(grid, image)
    mirrored = refined(grid[:, ::-1], np.ascontiguousarray(image[:, ::-1]))
    turned = refined(grid.T, np.ascontiguousarray(image.transpose(1, 0, 2)))
    # Pixels on the very border may fall to either side by rounding.
    assert (mirrored[:, ::-1] != mask).mean() < 0.002
    assert (mask != turned.T).mean() < 0.002


def test_enlarging_passes_through_the_patch_centers():
    grid = RANDOM.random((4, 5), dtype=np.float32)
    large = enlarged(grid, 4 * 9, 5 * 9)
    np.testing.assert_allclose(large[4::9, 4::9], grid, atol=1e-6)


def test_a_large_photo_is_filtered_small_and_its_mask_has_its_size():
    """Twice the long side: the mask is that of the photo at half the size, but for the border."""
    height, width = 120, 2 * LONG_SIDE
    grid = np.zeros((6, 140), dtype=bool)
    grid[2:5, 30:101] = True
    inside = nearest(grid, height, width)
    image = np.where(inside[..., None], (230, 40, 40), (30, 60, 200)).astype(np.uint8)
    mask = refined(grid, image)
    assert mask.shape == (height, width)
    assert iou(mask, inside) > 0.97


def test_memory_is_bounded():
    image = np.zeros((LONG_SIDE, LONG_SIDE, 3), dtype=np.uint8)
    grid = np.eye(40, dtype=bool)
    tracemalloc.start()
    refined(grid, image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * LONG_SIDE**2
