"""Masks against true masks, as DAVIS scores videos: region J, boundary F, and their summaries.

Arrays in, numbers out. Definitions: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology
for Video Object Segmentation" (2016), section 5, in the details as the published evaluator
(davis2017-evaluation) computes them; its figures come out to the last digit.

    region(predicted, target)       # J, intersection over union
    boundary(predicted, target)     # F, of precision and recall of the outlines
    summary(values)                 # mean, recall and decay over the frames of one object
"""

import math
from dataclasses import dataclass

import numpy as np

from dino_core.measures.overlap import iou

TOLERANCE = 0.008  # of the image's diagonal: so far apart outlines still match
RECALLED = 0.5  # a frame scored above this is recalled
BINS = 4  # decay compares the first and the last quarter


@dataclass(frozen=True)
class Summary:
    """One object's scores over its frames."""

    mean: float  # 0..1
    recall: float  # share of frames above 0.5
    decay: float  # mean of the first quarter less that of the last; below 0 where it gets better


def region(predicted: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Region similarity J: intersection over union, 0..1; two empty masks agree: 1.

    All bool [H, W]; `valid`: the pixels that count (None: all).
    """
    return float(iou(predicted, target, valid))


def boundary(predicted: np.ndarray, target: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Boundary similarity F, 0..1: the harmonic mean of the outlines' precision and recall.

    All bool [H, W]; what is not `valid` is cut out of both masks first. Precision is the share of
    predicted outline pixels with a true one within `tolerance`, recall the share of true ones with
    a predicted one. Two masks without outline agree (1); of one alone nothing matches (0). A mask
    that covers the whole image has no outline, no more than an empty one.
    """
    if valid is not None:
        predicted, target = predicted & valid, target & valid
    found, true = outline(predicted), outline(target)
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    radius = tolerance(*target.shape)
    precision, recall = _matched(found, true, radius), _matched(true, found, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels, bool [H, W], that differ from their right, lower or lower right neighbor.

    One pixel wide, half a pixel up and left of the true edge; what lies beyond the image is taken
    to be like its last row and column (Martin's `seg2bmap`, 2003).
    """
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != wide[:-1, 1:]) | (mask != wide[1:, :-1]) | (mask != wide[1:, 1:])


def tolerance(height: int, width: int) -> int:
    """How many pixels apart two outlines still match: 0.8 % of the diagonal, rounded up."""
    return int(np.ceil(TOLERANCE * np.hypot(height, width)))


def summary(values: np.ndarray) -> Summary:
    """Mean, recall and decay of scores float [T], T >= 1, in the order of the frames.

    The quarters share the frame at which they meet, as published. (The published bounds are kept in
    8 bits, which wraps above 256 frames; these are not. No video of DAVIS is so long.)
    """
    values = np.asarray(values, np.float64)
    # The published 1e-10 rounds halves up where they are exact, as 2.5 of five bounds is.
    bounds = np.round(np.linspace(1, len(values), BINS + 1) + 1e-10).astype(np.int64) - 1
    first, last = values[: bounds[1] + 1], values[bounds[-2] : bounds[-1] + 1]
    return Summary(
        mean=float(values.mean()),
        recall=float((values > RECALLED).mean()),
        decay=float(first.mean() - last.mean()),
    )


def _matched(these: np.ndarray, those: np.ndarray, radius: int) -> float:
    """The share of set pixels of `these` with one of `those` no further than `radius` away.

    That is the share within `those` dilated by a disk, but only asked where it matters: a disk is a
    run of pixels in each of its rows, and a running count tells whether a run holds any.
    """
    height, width = those.shape
    rows, columns = np.nonzero(these)
    before = np.zeros((height, width + 1), np.int32)  # set pixels left of each column
    np.cumsum(those, axis=1, out=before[:, 1:])
    near = np.zeros(len(rows), dtype=bool)
    for step in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - step**2)
        row = rows + step
        inside = (row >= 0) & (row < height)
        row = np.where(inside, row, 0)
        start, stop = np.maximum(columns - half, 0), np.minimum(columns + half + 1, width)
        near |= inside & (before[row, stop] > before[row, start])
    return float(near.mean())
