"""Intersection over union against counting by hand, and its laws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dino_core.measures.overlap import best_head, iou


def test_counted_by_hand():
    target = np.array([[1, 1, 0], [1, 1, 0]], dtype=bool)
    heads = np.array(
        [
            [[1, 0, 0], [0, 0, 0]],  # 1 of 4
            [[1, 1, 1], [1, 0, 0]],  # 3 of 5
            [[0, 0, 1], [0, 0, 1]],  # 0 of 6
        ],
        dtype=bool,
    )
    np.testing.assert_allclose(iou(heads, target), [1 / 4, 3 / 5, 0])
    assert best_head(heads, target) == (1, 3 / 5)


def test_void_pixels_do_not_count():
    target = np.array([[1, 1, 0, 0]], dtype=bool)
    head = np.array([[1, 0, 1, 0]], dtype=bool)
    valid = np.array([[1, 0, 0, 1]], dtype=bool)
    assert iou(head, target, valid) == 1.0
    np.testing.assert_allclose(iou(head, target), 1 / 3)


def test_two_empty_masks_agree():
    assert iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1.0


masks = arrays.arrays(bool, (4, 5))


@given(a=masks, b=masks, valid=masks)
def test_symmetric_and_bounded(a, b, valid):
    overlap = iou(a, b, valid)
    assert 0 <= overlap <= 1
    assert overlap == iou(b, a, valid)
    assert iou(a, a) == 1


@given(heads=arrays.arrays(bool, st.tuples(st.integers(1, 4), st.just(3), st.just(4))), seed=masks)
def test_best_head_is_the_largest(heads, seed):
    target = seed[:3, :4]
    best, value = best_head(heads, target)
    assert value == iou(heads, target).max()
    assert value == iou(heads[best], target)
