"""F-beta, IoU and accuracy of soft maps: by hand, against scikit-learn, and by plain loops."""

import numpy as np
import pytest
from sklearn.metrics import fbeta_score, jaccard_score, precision_recall_curve

from dino_core.measures.saliency import (
    accuracy_at,
    codes,
    f_beta,
    iou_at,
    level_counts,
    max_f_beta,
    max_mean_f_beta,
    precision_recall,
)


def drawn(seed: int, shape: tuple[int, int] = (9, 14)) -> tuple[np.ndarray, np.ndarray]:
    """A map and a foreground that it knows something of."""
    random = np.random.default_rng(seed)
    target = random.random(shape) < 0.35
    soft = np.clip(0.3 * target + random.random(shape) * 0.8 - 0.05, 0, 1)
    return soft, target


def test_eight_bits_round_to_the_nearest_level():
    soft = np.array([0, 0.4999, 0.5, 1 / 255, 1.4 / 255, 1.6 / 255, 1])
    np.testing.assert_array_equal(codes(soft), [0, 127, 128, 1, 1, 2, 255])


def test_counted_by_hand():
    """Four pixels inside, of levels 255, 200, 200 and 10; four outside, of 200, 100, 0 and 0."""
    levels = np.array([[255, 200, 200, 10], [200, 100, 0, 0]], np.uint8)
    target = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
    counts = level_counts(levels, target)
    assert (counts[1, 255], counts[1, 200], counts[1, 10]) == (1, 2, 1)
    assert (counts[0, 200], counts[0, 100], counts[0, 0]) == (1, 1, 2)
    precision, recall = precision_recall(counts)
    np.testing.assert_allclose(precision[[0, 10, 100, 200, 255]], [4 / 8, 4 / 6, 3 / 5, 3 / 4, 1])
    np.testing.assert_allclose(recall[[0, 10, 100, 200, 255]], [1, 1, 3 / 4, 3 / 4, 1 / 4])
    value, threshold = max_f_beta(counts[None])
    # 1.3 * 0.75 * 0.75 / (0.3 * 0.75 + 0.75) = 0.75, first reached when level 100 falls out
    assert (value, threshold) == (pytest.approx(0.75), 101)
    assert iou_at(counts) == pytest.approx(3 / 5)
    assert accuracy_at(counts) == pytest.approx(6 / 8)


def test_void_pixels_do_not_count():
    soft, target = drawn(1)
    valid = np.random.default_rng(2).random(target.shape) < 0.6
    counts = level_counts(codes(soft), target, valid)
    flat = level_counts(codes(soft)[valid][None], target[valid][None])
    np.testing.assert_array_equal(counts, flat)
    assert counts.sum() == valid.sum()


@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_are_scikit_learns(seed):
    soft, target = drawn(seed)
    levels = codes(soft)
    precision, recall = precision_recall(level_counts(levels, target))
    theirs = precision_recall_curve(target.ravel(), levels.ravel())
    for p, r, threshold in zip(*theirs, strict=False):
        assert precision[threshold] == pytest.approx(p)
        assert recall[threshold] == pytest.approx(r)


@pytest.mark.parametrize("threshold", [1, 77, 128, 230])
def test_f_iou_and_accuracy_of_one_mask_are_scikit_learns(threshold):
    soft, target = drawn(11)
    mask = codes(soft) >= threshold
    counts = level_counts(codes(soft), target)
    ours = f_beta(*precision_recall(counts))[threshold]
    theirs = fbeta_score(target.ravel(), mask.ravel(), beta=np.sqrt(0.3))
    assert ours == pytest.approx(theirs)
    assert iou_at(counts, threshold) == pytest.approx(jaccard_score(target.ravel(), mask.ravel()))
    assert accuracy_at(counts, threshold) == pytest.approx((mask == target).mean())


def test_half_is_where_the_map_is_a_half():
    soft, target = drawn(12)
    mask = soft >= 0.5
    counts = level_counts(codes(soft), target)
    assert iou_at(counts) == pytest.approx((mask & target).sum() / (mask | target).sum())


def plain_curves(images: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Precision and recall [n, 256, 2], pixel by pixel."""
    rows = []
    for soft, target in images:
        levels = codes(soft)
        for threshold in range(256):
            hits = predicted = 0
            for level, inside in zip(levels.flat, target.flat, strict=True):
                predicted += level >= threshold
                hits += level >= threshold and inside
            rows.append((hits / predicted if predicted else 0.0, hits / target.sum()))
    return np.array(rows).reshape(len(images), 256, 2)


def test_both_maxima_by_plain_loops():
    images = [drawn(seed, (4, 6)) for seed in range(3)]
    images.append((images[0][0] * 0.4, images[0][1]))  # of which nothing is found above level 102
    counts = np.stack([level_counts(codes(soft), target) for soft, target in images])
    curves = plain_curves(images)

    def f(p: float, r: float) -> float:
        return 1.3 * p * r / (0.3 * p + r) if p or r else 0.0

    of_means = [f(*curves[:, t].mean(axis=0)) for t in range(256)]
    mean_of = [np.mean([f(*curves[n, t]) for n in range(len(images))]) for t in range(256)]
    assert max_f_beta(counts) == (pytest.approx(max(of_means)), int(np.argmax(of_means)))
    best = 1 + int(np.argmax(mean_of[1:]))
    assert max_mean_f_beta(counts) == (pytest.approx(mean_of[best]), best)


def test_the_truth_scores_1_and_nothing_scores_0():
    target = drawn(3)[1]
    perfect = level_counts(codes(target.astype(float)), target)[None]
    assert max_f_beta(perfect) == (1.0, 1) and max_mean_f_beta(perfect) == (1.0, 1)
    assert iou_at(perfect) == 1 and accuracy_at(perfect) == 1
    flat = level_counts(np.zeros(target.shape, np.uint8), target)
    share = target.mean()  # of a map without a peak the whole image is all that can be found
    assert max_f_beta(flat[None]) == (pytest.approx(1.3 * share / (0.3 * share + 1)), 0)
    assert max_mean_f_beta(flat[None]) == (0, 1)  # in TokenCut's figures that is no mask
    assert iou_at(flat) == 0 and accuracy_at(flat) == pytest.approx(1 - share)
