"""Overlap of masks: intersection over union, and the head that fits an object best.

Arrays in, numbers out. Published protocol for attention masks (DINO, section 4.2.2): for each
object, of all heads' masks the one with the largest intersection over union counts.
"""

import numpy as np


def iou(masks: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union (Jaccard index) of each mask with `target`.

    `masks`: bool [..., H, W]; `target`: bool [H, W]; `valid`: bool [H, W], pixels that count (None:
    all). Returns float64 [...]; two empty masks agree: 1.
    """
    if valid is not None:
        masks, target = masks & valid, target & valid
    common = (masks & target).sum(axis=(-2, -1), dtype=np.int64)
    either = (masks | target).sum(axis=(-2, -1), dtype=np.int64)
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)


def best_head(
    heads: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> tuple[int, float]:
    """The head whose mask overlaps `target` most, and its intersection over union.

    `heads`: bool [heads, H, W]; the rest as in `iou`. Among equals the first.
    """
    overlaps = iou(heads, target, valid)
    best = int(overlaps.argmax())
    return best, float(overlaps[best])
