"""J and F of DAVIS: counted by hand, against scipy's morphology and distances, and their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from dino_core.measures.segmentation import boundary, outline, region, summary, tolerance


def box(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


def published_outline(mask: np.ndarray) -> np.ndarray:
    """`seg2bmap` once more: pixel by pixel, a border pixel with the neighbors it has."""
    height, width = mask.shape
    found = np.zeros(mask.shape, dtype=bool)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                if y + dy < height and x + dx < width:
                    found[y, x] |= mask[y, x] != mask[y + dy, x + dx]
    return found


def by_distance(predicted: np.ndarray, target: np.ndarray) -> float:
    """F once more: how far each outline pixel is from the other outline."""
    found, true = published_outline(predicted), published_outline(target)
    radius = np.ceil(0.008 * np.sqrt(predicted.shape[0] ** 2 + predicted.shape[1] ** 2))
    if not found.any() and not true.any():
        return 1.0
    if not found.any() or not true.any():
        return 0.0
    precision = (ndimage.distance_transform_edt(~true)[found] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~found)[true] <= radius).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def by_dilation(predicted: np.ndarray, target: np.ndarray) -> float:
    """F once more, as it was published: each outline within the other dilated by a disk."""
    found, true = published_outline(predicted), published_outline(target)
    radius = int(np.ceil(0.008 * np.sqrt(predicted.shape[0] ** 2 + predicted.shape[1] ** 2)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    precision = ndimage.binary_dilation(true, disk)[found].mean()
    recall = ndimage.binary_dilation(found, disk)[true].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_outline_by_hand():
    mask = np.array(
        [
            [0, 0, 0, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0],
        ],
        dtype=bool,
    )
    expected = np.array(
        [
            [0, 1, 1, 1, 0],
            [0, 1, 0, 1, 0],
            [0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0],
        ],
        dtype=bool,
    )
    np.testing.assert_array_equal(outline(mask), expected)


def test_the_last_row_and_column_have_no_edge_of_their_own():
    np.testing.assert_array_equal(
        outline(np.array([[0, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=bool)),
        np.array([[0, 1, 0], [1, 1, 0], [1, 0, 0]], dtype=bool),
    )
    assert not outline(np.ones((3, 4), dtype=bool)).any()


def test_tolerance_of_480p_is_eight_pixels():
    assert tolerance(480, 854) == 8
    assert tolerance(60, 80) == 1  # 0.8 exactly, rounded up
    assert tolerance(75, 100) == 1  # 1.0 exactly, not rounded up
    assert tolerance(76, 100) == 2


def test_a_shifted_box_by_hand():
    """60 x 80 px, so one pixel of tolerance; a 10 x 10 box has an outline of 40 pixels.

    The box spans rows and columns 20 to 29, its outline is the ring from 19 to 29. Shifted three
    columns to the right, the upright sides are too far apart, the level ones overlap.
    """
    target = box(60, 80, slice(20, 30), slice(20, 30))
    moved = box(60, 80, slice(20, 30), slice(23, 33))
    assert outline(target).sum() == outline(moved).sum() == 40
    # The moved ring spans columns 22 to 32. In rows 19 and 29 its columns 22 to 30 match (9 each);
    # of its left side rows 20 and 28 do, being next to the true rows 19 and 29; of its right none.
    matched = 2 * 9 + 2
    # The target's ring seen from the moved one is the mirror image.
    assert boundary(moved, target) == pytest.approx(matched / 40)
    assert region(moved, target) == 70 / 130
    # One pixel aside every outline pixel is within reach, two aside the sides are not.
    assert boundary(np.roll(target, 1, axis=1), target) == 1
    assert boundary(np.roll(target, 2, axis=1), target) < 1


def test_precision_and_recall_are_told_apart():
    """One of two true boxes found, and found exactly: precision 1, recall 1/2."""
    one, other = (box(60, 80, slice(top, top + 10), slice(20, 30)) for top in (5, 35))
    assert boundary(one, one | other) == pytest.approx(2 / 3)
    assert boundary(one | other, one) == pytest.approx(2 / 3)
    assert boundary(one, other) == 0


def test_empty_masks():
    nothing, something = np.zeros((20, 20), bool), box(20, 20, slice(5, 9), slice(5, 9))
    everything = ~nothing
    assert boundary(nothing, nothing) == region(nothing, nothing) == 1
    assert boundary(nothing, something) == region(nothing, something) == 0
    assert boundary(something, nothing) == region(something, nothing) == 0
    assert (boundary(everything, nothing), region(everything, nothing)) == (1, 0)


def test_void_is_cut_out_of_both():
    target = box(60, 80, slice(20, 30), slice(20, 30))
    spilled = box(60, 80, slice(20, 30), slice(20, 60))
    valid = ~box(60, 80, slice(0, 60), slice(30, 80))
    assert boundary(spilled, target, valid) == region(spilled, target, valid) == 1
    assert boundary(spilled, target) < 1 and region(spilled, target) == 1 / 4


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks of the same kind of object, 120 x 213 px (tolerance 2)."""
    noise = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(2, 120, 213)), (0, 9, 9)
    )
    noise /= noise.std()
    return noise[0] > 0.3, noise[0] + 0.15 * noise[1] > 0.3


@pytest.mark.parametrize("seed", range(6))
def test_against_scipys_distances_and_dilation(seed):
    predicted, target = blobs(seed)
    value = boundary(predicted, target)
    assert 0.2 < value < 0.999
    assert value == pytest.approx(by_distance(predicted, target), abs=1e-12)
    assert value == pytest.approx(by_dilation(predicted, target), abs=1e-12)


shapes = st.tuples(st.integers(1, 14), st.integers(1, 14))
pairs = shapes.flatmap(lambda s: st.tuples(arrays.arrays(bool, s), arrays.arrays(bool, s)))


@given(pairs)
def test_bounded_symmetric_and_as_by_distances(pair):
    a, b = pair
    np.testing.assert_array_equal(outline(a), published_outline(a))
    value = boundary(a, b)
    assert 0 <= value <= 1
    assert value == pytest.approx(boundary(b, a), abs=1e-12)
    assert value == pytest.approx(by_distance(a, b), abs=1e-12)
    assert boundary(a, a) == region(a, a) == 1
    assert value == boundary(~a, ~b)  # an outline does not know which side is inside


def test_summary_by_hand():
    # Nine frames: bounds 1, 3, 5, 7, 9, so the first quarter is frames 1 to 3, the last 7 to 9.
    values = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    found = summary(values)
    assert found.mean == pytest.approx(0.5)
    assert found.recall == pytest.approx(4 / 9)  # 0.5 itself is not above 0.5
    assert found.decay == pytest.approx(0.8 - 0.2)
    # Three frames: bounds 1, 1.5, 2, 2.5, 3 round to 1, 2, 2, 3, 3 (halves up: 1e-10 tips them).
    assert summary(np.array([1.0, 0.5, 0.0])).decay == pytest.approx(0.75 - 0.0)
    assert summary(np.array([0.7])).decay == 0


def test_a_long_video_decays_too():
    """1,000 frames, of which the first half is perfect; bounds in 8 bits would wrap."""
    values = np.repeat([1.0, 0.0], 500)
    assert summary(values).decay == 1
    assert summary(values[::-1]).decay == -1
