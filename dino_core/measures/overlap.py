"""Overlap of masks and boxes: intersection over union, the head that fits best, localization.

Arrays in, numbers out. Published protocol for attention masks (DINO, section 4.2.2): for each
object, of all heads' masks the one with the largest intersection over union counts.
"""

from collections.abc import Iterable

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


def iou_by_label(masks: Iterable[np.ndarray], labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Intersection over union of each mask with each object: float64 [masks, objects].

    `masks`: bool [H, W] each; `labels`: int [H, W], 0 is background, every other number that is
    there an object, in ascending order; `valid`: bool [H, W], pixels that count. The same as `iou`
    with each object, in one count a mask however many objects there are.
    """
    numbers, places = np.unique(labels[valid], return_inverse=True)
    sizes = np.bincount(places, minlength=len(numbers))
    rows = []
    for mask in masks:
        inside = mask[valid]
        common = np.bincount(places[inside], minlength=len(numbers))
        rows.append((common / (inside.sum() + sizes - common))[numbers != 0])
    return np.array(rows)


def best_head(
    heads: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None
) -> tuple[int, float]:
    """The head whose mask overlaps `target` most, and its intersection over union.

    `heads`: bool [heads, H, W]; the rest as in `iou`. Among equals the first.
    """
    overlaps = iou(heads, target, valid)
    best = int(overlaps.argmax())
    return best, float(overlaps[best])


def bounds(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of what is True in `mask` [H, W], right and bottom exclusive.

    None for an empty mask.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of `box` [4] with each of `boxes` [N, 4]: float64 [N].

    A box is (left, top, right, bottom), right and bottom exclusive, and not empty.
    """
    box, boxes = np.asarray(box, np.float64), np.asarray(boxes, np.float64)
    least, most = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = np.prod(np.clip(most - least, 0, None), axis=1)
    either = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - common
    return common / either


def corloc(overlaps: np.ndarray, at: float = 0.5) -> float:
    """Correct localization: the share of images whose box fits one of their objects.

    `overlaps`: float [n], per image the largest `box_iou` of the predicted box with an object's
    box (0 where there is none). `at`: PASCAL's criterion, met from 0.5 on as in Siméoni et al.
    (LOST, arXiv:2109.14279) and TokenCut.
    """
    return float((np.asarray(overlaps) >= at).mean())
