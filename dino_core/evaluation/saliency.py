"""Unsupervised saliency: soft maps of what a model finds against the foreground of each image.

Published measures (Achanta et al., CVPR 2009; for DINO's features Wang et al., arXiv:2202.11539,
section 4.2): the largest F-beta with beta^2 = 0.3 over 256 thresholds, and intersection over union
and accuracy of the mask at 0.5. A map is stretched to 0..1 and enlarged to nearest neighbors; all
objects together are the foreground, scored at the mask file's own size.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

Three maps can be scored: "cut", the side of TokenCut's cut that holds the object (0 or 1: what the
TokenCut paper reports), "eigenvector", the soft solution behind it, and "attention", the mean of
the last layer's heads.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.masks import (
    Masks,
    Scored,
    Truth,
    best_and_worst,
    each_masked,
    find_masks,
)
from dino_core.evaluation.objects import check_cut, counted, cut_notes, cuts, packed, unpacked
from dino_core.evaluation.passes import Passing
from dino_core.gallery.images import source_hash
from dino_core.lenses.attention import look
from dino_core.lenses.objects import TAU
from dino_core.lenses.render import relative
from dino_core.measures.saliency import accuracy_at, iou_at, max_f_beta, max_mean_f_beta
from dino_core.models import Model, untrained

Map = Literal["cut", "eigenvector", "attention"]
MAPS: tuple[Map, ...] = get_args(Map)


@dataclass(frozen=True)
class SaliencyResult:
    """How well soft maps separate foreground from background; all figures are shares, 0..1."""

    max_f: float  # F-beta of mean precision and mean recall, its maximum over thresholds
    threshold: int  # 0..255, where that is
    max_mean_f: float  # mean of the images' F-beta, its maximum over thresholds: TokenCut's variant
    iou: float  # at 0.5, mean over images
    accuracy: float  # share of pixels on the right side, at 0.5, mean over images
    images: int
    map: Map
    model: str
    model_hash: str
    data: str
    data_hash: str
    masks: str
    masks_hash: str
    tau: float | None  # None for attention
    size: int | None
    as_published: bool
    images_scored: list[tuple[str, float]] = field(repr=False)  # id, IoU at 0.5
    notes: list[str]  # sentences: what was left out and why
    random_init: "SaliencyResult | None" = None  # the same for the untrained backbone

    def best_and_worst(self, n: int = 6) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(id, IoU) of the `n` images whose foreground is found best, and of the `n` worst."""
        return best_and_worst(self.images_scored, n)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = [self] + ([self.random_init] if self.random_init else [])
        names = [self.model, "untrained"]
        width = max(len(name) for name in [*names, "model"])
        lines = [f"{'model':{width}}  max F-beta  (mean of images)  IoU at 0.5  accuracy at 0.5"]
        for name, row in zip(names, rows, strict=False):
            figures = f"{row.max_f:>10.1%}  {row.max_mean_f:>16.1%}"
            lines.append(f"{name:{width}}  {figures}  {row.iou:>10.1%}  {row.accuracy:>15.1%}")
        lines.append(f"map: {self.map}; mean over {self.images:,} images")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    masks: Path | None = None,
    *,
    map: Map = "eigenvector",
    size: int | None = None,
    tau: float = TAU,
    as_published: bool = False,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> SaliencyResult:
    """Score `model`'s soft maps on every image of `source` that has a mask.

    `masks`: a folder (None: the source's own masks, as `scenes` have); `map`: which of `MAPS`;
    `size`: short side in pixels (None: the lens's default); `tau`: the cosine that joins two
    patches of a cut; `as_published`: every image at its own size, keys never centered;
    `random_init`: score the untrained backbone as well. Raises `UserError` if nothing can be
    scored, or masks do not belong to the images.
    """
    if map not in MAPS:
        raise UserError(f"map {map!r}: use one of {', '.join(MAPS)}")
    found = find_masks(source, masks)
    check_cut(size, tau, as_published)
    result = _score(model, source, found, map, size, tau, as_published, passing)
    if not random_init:
        return result
    baseline = _score(untrained(model), source, found, map, size, tau, as_published, passing)
    return replace(result, random_init=baseline)


def _score(
    model: Model,
    source: Source,
    masks: Masks,
    map: Map,
    size: int | None,
    tau: float,
    as_published: bool,
    passing: Passing,
) -> SaliencyResult:
    """The protocol for one model."""
    if map == "attention":
        scored = _attention(model, source, masks, size, as_published, passing)
        levels, notes = scored.values, scored.notes
    else:  # the pass that object masks are scored by: kept, it serves both
        scored = cuts(model, source, masks, size, tau, as_published, passing)
        levels = [one["side" if map == "cut" else "map"] for one in scored.values]
        notes = scored.notes + cut_notes(scored.values)
    counts = np.stack([unpacked(one) for one in levels])
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
        model=model.spec,
        model_hash=model.hash,
        data=source.spec,
        data_hash=source_hash(source),
        masks=masks.spec,
        masks_hash=masks.hash,
        tau=None if map == "attention" else tau,
        size=size,
        as_published=as_published,
        images_scored=list(zip(scored.ids, overlaps.tolist(), strict=True)),
        notes=notes,
    )


def _attention(
    model: Model,
    source: Source,
    masks: Masks,
    size: int | None,
    as_published: bool,
    passing: Passing,
) -> Scored:
    """Level counts of the mean over the last layer's heads."""

    def one(image: np.ndarray, truth: Truth) -> list[list[int]]:
        fed = min(image.shape[:2]) if as_published else size
        return packed(counted(relative(look(model, image, size=fed).head_mean()), truth))

    return each_masked(
        "saliency of attention",
        {"size": size, "as_published": as_published},
        model, source, masks, one, passing, f"Attention of {model.spec}",
    )  # fmt: skip
