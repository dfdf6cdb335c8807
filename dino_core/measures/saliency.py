"""Soft maps against the foreground: precision and recall over 256 thresholds, F-beta, IoU.

    counts = np.stack([level_counts(soft, target) for ...])       # int64 [n, 2, 256]
    max_f_beta(counts)                                            # (share 0..1, threshold 0..255)

A map is taken in 8 bits, as saliency benchmarks store it: level = round(255 x), and threshold t
finds the pixels of level t and above. What is left of an image is how many of its pixels have each
level, outside and inside of the foreground: all measures here are exact functions of these counts.

F-beta with beta^2 = 0.3 after Achanta et al., "Frequency-tuned Salient Region Detection" (CVPR
2009). Over a data set two maxima are in use, which differ by up to a few points:
    max_f_beta           mean precision and mean recall of each threshold over the images, F of
                         these, the maximum over thresholds (the usual precision-recall curve)
    max_mean_f_beta      F of each image at each threshold, its mean over the images, the maximum
                         over thresholds (so TokenCut's figures, arXiv:2202.11539, whose masks lie
                         strictly above a threshold from 0: level 0 is never found)

Legend: n images, 256 levels; counts are int64 [..., 2, 256], 0 outside and 1 inside.
"""

import numpy as np

LEVELS = 256
HALF = 128  # the first level of which the map is 0.5 or more
BETA2 = 0.3


def codes(soft: np.ndarray) -> np.ndarray:
    """A map of values 0..1 in 8 bits: uint8 of the same shape."""
    return np.floor(np.clip(soft, 0, 1) * (LEVELS - 1) + 0.5).astype(np.uint8)


def level_counts(
    levels: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> np.ndarray:
    """How many pixels of `levels` (uint8 [H, W], see `codes`) have each level: int64 [2, 256].

    Row 0 counts the pixels outside of `target` (bool [H, W]), row 1 those inside; only pixels of
    `valid` (bool [H, W]; None: all) count.
    """
    if valid is None:
        valid = np.ones(target.shape, dtype=bool)
    sides = (valid & ~target, valid & target)
    return np.stack([np.bincount(levels[side], minlength=LEVELS) for side in sides])


def precision_recall(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, both float64 [..., 256], at every threshold.

    Where nothing is found precision is 0: no image gains by an empty mask.
    """
    found = _at_or_above(counts)
    hits = found[..., 1, :]
    predicted, wanted = found.sum(axis=-2), counts[..., 1, :].sum(axis=-1, keepdims=True)
    return hits / np.maximum(predicted, 1), hits / np.maximum(wanted, 1)


def f_beta(precision: np.ndarray, recall: np.ndarray, beta2: float = BETA2) -> np.ndarray:
    """(1 + beta^2) P R / (beta^2 P + R), and 0 where both are 0."""
    below = beta2 * precision + recall
    return (1 + beta2) * precision * recall / np.where(below > 0, below, 1)


def max_f_beta(counts: np.ndarray, beta2: float = BETA2) -> tuple[float, int]:
    """The largest F-beta of mean precision and mean recall, and its threshold.

    `counts`: int64 [n, 2, 256]. Among equals the lowest threshold.
    """
    precision, recall = precision_recall(counts)
    return _highest(f_beta(precision.mean(axis=0), recall.mean(axis=0), beta2))


def max_mean_f_beta(counts: np.ndarray, beta2: float = BETA2) -> tuple[float, int]:
    """The largest mean of the images' own F-beta at one threshold, 1..255, and that threshold.

    At 0 every map finds the whole image, which would lift a map that says less than that.
    """
    value, above = _highest(f_beta(*precision_recall(counts), beta2).mean(axis=0)[1:])
    return value, above + 1


def iou_at(counts: np.ndarray, threshold: int = HALF) -> np.ndarray:
    """Intersection over union of the mask at a threshold, float64 [...]; two empty masks: 1."""
    outside, inside = np.moveaxis(_at_or_above(counts)[..., threshold], -1, 0)
    either = counts[..., 1, :].sum(axis=-1) + outside
    return np.where(either > 0, inside / np.maximum(either, 1), 1.0)


def accuracy_at(counts: np.ndarray, threshold: int = HALF) -> np.ndarray:
    """Share of the pixels that the mask at a threshold puts on the right side, float64 [...]."""
    outside, inside = np.moveaxis(_at_or_above(counts)[..., threshold], -1, 0)
    right = counts[..., 0, :].sum(axis=-1) - outside + inside
    return right / np.maximum(counts.sum(axis=(-2, -1)), 1)


def _at_or_above(counts: np.ndarray) -> np.ndarray:
    """Pixels of each threshold's mask, int64 [..., 2, 256]."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


def _highest(curve: np.ndarray) -> tuple[float, int]:
    best = int(curve.argmax())
    return float(curve[best]), best
