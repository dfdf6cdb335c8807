"""Unsupervised saliency: soft maps of what a model finds against the foreground of each image.

Published measures (Achanta et al., CVPR 2009; for DINO's features Wang et al., arXiv:2202.11539,
section 4.2): the largest F-beta with beta^2 = 0.3 over 256 thresholds, and intersection over union
and accuracy of the mask at 0.5. A map is stretched to 0..1 and enlarged to nearest neighbors; all
objects together are the foreground, scored at the mask file's own size.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

Three maps can be scored: "cut", the side of TokenCut's cut that holds the object (0 or 1), which
the published figures without a bilateral solver are of; "eigenvector", the soft solution behind it;
and "attention", the mean of the last layer's heads.

`as_published` does as the published script: each image is resized to the nearest multiples of the
patch size (Lanczos), keys are never centered, and "cut" is only what of the side hangs together
with its strongest patch.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.masks import (
    Masks,
    MasksResult,
    Scored,
    Truth,
    common,
    each_masked,
    find_masks,
)
from dino_core.evaluation.objects import Cutting, counted, cuts, packed, unpacked, with_cut_notes
from dino_core.evaluation.passes import Passing
from dino_core.lenses.attention import look
from dino_core.lenses.objects import TAU
from dino_core.lenses.render import nearest, relative
from dino_core.measures.saliency import accuracy_at, codes, iou_at, max_f_beta, max_mean_f_beta
from dino_core.models import Model, untrained

Map = Literal["cut", "eigenvector", "attention"]
MAPS: tuple[Map, ...] = get_args(Map)


@dataclass(frozen=True, kw_only=True)
class SaliencyResult(MasksResult):
    """How well soft maps separate foreground from background; all figures are shares, 0..1.

    `images_scored` have the IoU at 0.5.
    """

    max_f: float  # F-beta of mean precision and mean recall, its maximum over thresholds
    threshold: int  # 0..255, where that is
    max_mean_f: float  # mean of the images' F-beta, its maximum over thresholds: TokenCut's variant
    iou: float  # at 0.5, mean over images
    accuracy: float  # share of pixels on the right side, at 0.5, mean over images
    images: int
    map: Map
    tau: float | None  # None for attention
    as_published: bool

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(map(len, [*rows, "model"]))
        lines = [f"{'model':{width}}  max F-beta  (mean of images)  IoU at 0.5  accuracy at 0.5"]
        for name, row in rows.items():
            figures = f"{row.max_f:>10.1%}  {row.max_mean_f:>16.1%}"
            lines.append(f"{name:{width}}  {figures}  {row.iou:>10.1%}  {row.accuracy:>15.1%}")
        lines.append(f"map: {self.map}; mean over {self.images:,} images, {self.fed_at}")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    masks: Path | None = None,
    *,
    map: Map = "cut",
    size: int | None = None,
    tau: float = TAU,
    as_published: bool = False,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> SaliencyResult:
    """Score `model`'s soft maps on every image of `source` that has a mask.

    `masks`: a folder (None: the source's own masks, as `scenes` have); `map`: which of `MAPS`;
    `size`: short side in pixels (None: the lens's default, 28 patches or what the model was trained
    at; long images get less); `tau`: the cosine that joins two patches of a cut; `as_published`:
    see the top of this file; `random_init`: score the untrained backbone as well. Raises
    `UserError` if nothing can be scored, or masks do not belong to the images.
    """
    if map not in MAPS:
        raise UserError(f"map {map!r}: use one of {', '.join(MAPS)}")
    found = find_masks(source, masks)
    how = Cutting(tau, size, "rounded" if as_published else "lens")
    result = _score(model, source, found, map, how, passing)
    if not random_init:
        return result
    return replace(result, random_init=_score(untrained(model), source, found, map, how, passing))


def _score(
    model: Model,
    source: Source,
    masks: Masks,
    map: Map,
    how: Cutting,
    passing: Passing,
) -> SaliencyResult:
    """The protocol for one model."""
    if map == "attention":
        scored = _attention(model, source, masks, how, passing)
    else:  # the pass that object masks are scored by: kept, it serves both
        scored = with_cut_notes(cuts(model, source, masks, how, passing))
    cut = "side" if how.fit == "lens" else "part"
    counts = np.stack([unpacked(one[cut if map == "cut" else "map"]) for one in scored.values])
    overlaps = iou_at(counts)
    max_f, threshold = max_f_beta(counts)
    return SaliencyResult(
        max_f=max_f,
        threshold=threshold,
        max_mean_f=max_mean_f_beta(counts)[0],
        iou=float(overlaps.mean()),
        accuracy=float(accuracy_at(counts).mean()),
        images=len(counts),
        map=map,
        tau=None if map == "attention" else how.tau,
        as_published=how.fit != "lens",
        **common(
            model, source, masks, scored, overlaps.tolist(), [one["fed"] for one in scored.values]
        ),
    )


def _attention(
    model: Model, source: Source, masks: Masks, how: Cutting, passing: Passing
) -> Scored:
    """Level counts ("map") of the mean over the last layer's heads, and the size it was fed at."""
    own = how.fit != "lens"

    def one(image: np.ndarray, truth: Truth) -> dict[str, Any]:
        attention = look(model, image, size=min(image.shape[:2]) if own else how.size)
        levels = nearest(codes(relative(attention.head_mean())), *truth.labels.shape)
        fed = None if own else min(attention.image_size)
        return {"map": packed(counted(levels, truth)), "fed": fed}

    return each_masked(
        "saliency of attention",
        {"size": how.size, "fit": how.fit},
        model, source, masks, one, passing, f"Attention of {model.spec}",
    )  # fmt: skip
