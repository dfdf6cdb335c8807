"""The plans of many views at once, as arrays: bit for bit those that `plan.py` makes one by one.

A generator for each view costs more than all that is decided with it. Here the random numbers of
all views are computed together (`rng.uniforms`), and each decision is made for all views in one
go. `plan.py` is the plain twin; `Plans.unpacked` gives its `ViewPlan`s, to compare and to look at.

    plans = plan_batch(config, seed, epoch, indices, heights, widths, views=range(2, 10))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from dino_core.augment.config import MultiCrop, Range
from dino_core.augment.plan import (
    BLURRED,
    BOX,
    FACTORS,
    FLIP,
    GRAYSCALE,
    JITTER,
    JITTERED,
    ORDER,
    RATIO,
    SIGMA,
    SOLARIZED,
    TRIES,
    Box,
    ViewPlan,
    central_box,
    limits,
)
from dino_core.rng import BLOCK, digests, uniforms

# Of the key's stream: the first try of a box, and all that is not a box. Later tries are rare.
FIRST, REST = BOX // BLOCK, range((BOX + 4 * TRIES) // BLOCK, -(-(SOLARIZED + 1) // BLOCK))


@dataclass(frozen=True)
class Plans:
    """What is done to n views of one size; `plan.ViewPlan` says what each field means."""

    views: np.ndarray
    """int64 [n]."""
    boxes: np.ndarray
    """int64 [n, 4]: top, left, height, width."""
    size: int
    flip: np.ndarray
    """bool [n]."""
    jittered: np.ndarray
    """bool [n]."""
    order: np.ndarray
    """int64 [n, 4]: which operation of `plan.JITTER` comes when, those of strength 0 last."""
    factors: np.ndarray
    """float64 [n, 4], by operation."""
    strengths: tuple[float, ...]
    """Of each operation; one of strength 0 is left out."""
    grayscale: np.ndarray
    """bool [n]."""
    blur_sigma: np.ndarray
    """float64 [n], 0 where nothing is blurred."""
    solarize: np.ndarray
    """bool [n]."""

    def __len__(self) -> int:
        return len(self.views)

    @staticmethod
    def joined(parts: Sequence["Plans"]) -> "Plans":
        """Plans of several groups of images as of one; all of them view-major, as the result."""
        views = len(np.unique(parts[0].views))
        together: dict[str, Any] = {}
        for name in ARRAYS:
            found = [getattr(part, name) for part in parts]
            by_view = [part.reshape(views, -1, *part.shape[1:]) for part in found]
            joined = np.concatenate(by_view, axis=1)
            together[name] = joined.reshape(-1, *joined.shape[2:])
        return replace(parts[0], **together)

    def unpacked(self) -> list[ViewPlan]:
        """The same plans one by one."""
        return [self._one(row) for row in range(len(self))]

    def _one(self, row: int) -> ViewPlan:
        steps = [
            (JITTER[operation], float(self.factors[row, operation]))
            for operation in self.order[row].tolist()
            if self.strengths[operation] > 0
        ]
        return ViewPlan(
            view=int(self.views[row]),
            box=Box(*self.boxes[row].tolist()),
            size=self.size,
            flip=bool(self.flip[row]),
            jitter=tuple(steps) if self.jittered[row] else (),
            grayscale=bool(self.grayscale[row]),
            blur_sigma=float(self.blur_sigma[row]),
            solarize=bool(self.solarize[row]),
        )


ARRAYS = tuple(field.name for field in fields(Plans) if field.name not in ("size", "strengths"))


def plan_batch(
    config: MultiCrop,
    seed: int,
    epoch: int,
    indices: Sequence[int],
    heights: np.ndarray,
    widths: np.ndarray,
    views: Sequence[int],
) -> Plans:
    """Plan some views of one size of B images, view-major: row v * B + b.

    `indices` are the images' numbers, `heights` and `widths` int64 [B] their sizes.
    """
    keys = digests((seed, "augment", epoch), [(int(i), v) for v in views for i in indices])
    draws = uniforms(keys, [FIRST, *REST])
    skipped = 4 * (TRIES - 1)  # between the first try and the rest

    def drawn(place: int, count: int = 1) -> np.ndarray:
        start = place - skipped
        return draws[:, start] if count == 1 else draws[:, start : start + count]

    views_N = np.repeat(np.asarray(views, np.int64), len(indices))
    kinds = np.minimum(views_N, 2)
    return Plans(
        views=views_N,
        boxes=_boxes(
            draws[:, :4],
            keys,
            config.scale(views[0]),
            np.tile(heights, len(views)),
            np.tile(widths, len(views)),
        ),
        size=config.size(views[0]),
        flip=drawn(FLIP) < config.flip,
        jittered=drawn(JITTERED) < config.jitter,
        order=_order(config, drawn(ORDER, len(JITTER))),
        factors=_factors(config, drawn(FACTORS, len(JITTER))),
        strengths=tuple(getattr(config, name) for name in JITTER),
        grayscale=drawn(GRAYSCALE) < config.grayscale,
        blur_sigma=np.where(
            drawn(BLURRED) < np.asarray(config.blur)[kinds],
            _between(config.blur_sigma, drawn(SIGMA)),
            0.0,
        ),
        solarize=drawn(SOLARIZED) < np.asarray(config.solarize)[kinds],
    )


def _boxes(
    first: np.ndarray, keys: np.ndarray, scale: Range, heights: np.ndarray, widths: np.ndarray
) -> np.ndarray:
    """`plan._box` for all views: those whose first try is too large try again together."""
    boxes, fits = _tried(first, scale, heights, widths)
    for attempt in range(1, TRIES):
        rows = np.flatnonzero(~fits)
        if not len(rows):
            return boxes
        draws = uniforms(keys[rows], [FIRST + attempt])
        boxes[rows], fits[rows] = _tried(draws, scale, heights[rows], widths[rows])
    for row in np.flatnonzero(~fits):
        box = central_box(int(heights[row]), int(widths[row]))
        boxes[row] = box.top, box.left, box.height, box.width
    return boxes


def _tried(
    draws: np.ndarray, scale: Range, heights: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One try: boxes int64 [n, 4], and which of them fit into their images, bool [n]."""
    share, shape, down, right = draws.T
    area = heights * widths * _between(scale, share)
    turned = _between((math.log(RATIO[0]), math.log(RATIO[1])), shape)
    # Not np.exp: its last bit may differ.
    ratio = np.array([math.exp(value) for value in turned.tolist()])
    box_widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    box_heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (box_widths > 0) & (box_widths <= widths) & (box_heights > 0) & (box_heights <= heights)
    tops = (down * (heights - box_heights + 1)).astype(np.int64)
    lefts = (right * (widths - box_widths + 1)).astype(np.int64)
    return np.stack([tops, lefts, box_heights, box_widths], axis=1), fits


def _order(config: MultiCrop, draws: np.ndarray) -> np.ndarray:
    """Operations in the order of their draws, int64 [n, 4]; those of strength 0 last."""
    left_out = [getattr(config, name) == 0 for name in JITTER]
    return np.argsort(draws + np.asarray(left_out, float), axis=1, kind="stable")


def _factors(config: MultiCrop, draws: np.ndarray) -> np.ndarray:
    """How much each operation of the jitter does, float64 [n, 4], whether or not it is done."""
    factors = np.empty_like(draws)
    for operation, name in enumerate(JITTER):
        factors[:, operation] = _between(limits(name, getattr(config, name)), draws[:, operation])
    return factors


def _between(ends: Range, draws: np.ndarray) -> np.ndarray:
    """Stretch numbers of [0, 1) to `ends`."""
    return ends[0] + (ends[1] - ends[0]) * draws
