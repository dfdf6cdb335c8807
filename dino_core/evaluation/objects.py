"""TokenCut masks as segmentation and detection: does a cut of the patches find the object?

Published protocol (Wang et al., arXiv:2202.11539, sections 4.1 and 4.3): the patches of an image
are cut in two by the keys of the last layer (`dino_core.lenses.objects`). The side with the object
is scored as a mask, by intersection over union with all objects together; the box around what of it
hangs together with the strongest patch is scored by CorLoc, the share of images in which it
overlaps one of the objects' boxes by half (PASCAL's criterion). Both at the mask file's own size.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

Objects' boxes are the bounds of their masks. Unlike in the paper an image is fed at the lens's
size, and keys that are nearly all alike are centered first; `as_published` does neither.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

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
from dino_core.evaluation.passes import Passing
from dino_core.gallery.images import source_hash
from dino_core.lenses.attention import plan
from dino_core.lenses.objects import MAX_TOKENS, TAU, ObjectMask, object_mask
from dino_core.lenses.render import nearest, relative
from dino_core.lenses.tokens import read_tokens
from dino_core.measures.overlap import bounds, box_iou, corloc, iou, iou_by_label
from dino_core.measures.saliency import LEVELS, codes, level_counts
from dino_core.models import Model, untrained


@dataclass(frozen=True)
class ObjectsResult:
    """Shares (0..1) of what TokenCut finds; an image with nothing to cut counts as 0."""

    jaccard: float  # IoU of the cut's side with all objects together, mean over images
    object_jaccard: float  # IoU of the found part with the object it fits best, mean over images
    corloc: float  # share of images whose box overlaps an object's box by half
    images: int
    objects: int
    centered: int  # images whose keys were centered, for they were nearly all alike
    uncut: int  # images without anything to cut
    model: str
    model_hash: str
    data: str
    data_hash: str
    masks: str
    masks_hash: str
    tau: float
    size: int | None
    as_published: bool
    images_scored: list[tuple[str, float]] = field(repr=False)  # id, IoU of the cut's side
    notes: list[str]  # sentences: what was left out and why
    random_init: "ObjectsResult | None" = None  # the same for the untrained backbone

    def best_and_worst(self, n: int = 6) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(id, IoU) of the `n` images whose objects are found best, and of the `n` worst."""
        return best_and_worst(self.images_scored, n)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = [self] + ([self.random_init] if self.random_init else [])
        names = [self.model, "untrained"]
        width = max(len(name) for name in [*names, "model"])
        lines = [f"{'model':{width}}  IoU, all objects  IoU, best object  CorLoc"]
        for name, row in zip(names, rows, strict=False):
            figures = f"{row.jaccard:>16.1%}  {row.object_jaccard:>16.1%}  {row.corloc:>6.1%}"
            lines.append(f"{name:{width}}  {figures}")
        lines.append(f"mean over {self.images:,} images, {self.objects:,} objects")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    masks: Path | None = None,
    *,
    size: int | None = None,
    tau: float = TAU,
    as_published: bool = False,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> ObjectsResult:
    """Score what TokenCut makes of `model`'s keys on every image of `source` that has a mask.

    `masks`: a folder (None: the source's own masks, as `scenes` have); `size`: short side in pixels
    (None: the lens's default); `tau`: the cosine that joins two patches; `as_published`: every
    image at its own size, keys never centered; `random_init`: score the untrained backbone as
    well. Raises `UserError` if nothing can be scored, or masks do not belong to the images.
    """
    found = find_masks(source, masks)
    check_cut(size, tau, as_published)
    result = _score(model, source, found, size, tau, as_published, passing)
    if not random_init:
        return result
    baseline = _score(untrained(model), source, found, size, tau, as_published, passing)
    return replace(result, random_init=baseline)


def check_cut(size: int | None, tau: float, as_published: bool) -> None:
    """`UserError` for settings that no cut can have."""
    if not -1 < tau <= 1:
        raise UserError(f"tau {tau}: is a cosine; use more than -1, at most 1 (the paper has 0.2)")
    if as_published and size is not None:
        raise UserError(f"size {size}: as published every image has its own; leave one of them out")


def cuts(
    model: Model,
    source: Source,
    masks: Masks,
    size: int | None,
    tau: float,
    as_published: bool,
    passing: Passing,
) -> Scored:
    """One pass of TokenCut; all that masks, boxes and saliency are scored by, of each image.

    Values: "union", "object" and "box" are overlaps (0..1), "objects" a number, "centered" and
    "cut" whether; "side" and "map" are packed level counts (see `unpacked`) of the cut's side and
    of the eigenvector, stretched to 0..1.
    """

    def one(image: np.ndarray, truth: Truth) -> dict[str, Any]:
        fed = _own_size(model, image) if as_published else size
        tokens = read_tokens(model, image, size=fed)
        return _scores(object_mask(tokens, tau=tau, center=False if as_published else None), truth)

    return each_masked(
        "object masks",
        {"size": size, "tau": tau, "as_published": as_published},
        model, source, masks, one, passing, f"Object masks of {model.spec}",
    )  # fmt: skip


def _own_size(model: Model, image: np.ndarray) -> int:
    """The short side of an image, in pixels; `UserError` where it makes too many patches."""
    height, width = image.shape[:2]
    tokens = plan(model, height, width, size=min(height, width)).tokens
    if tokens > MAX_TOKENS:
        raise UserError(
            f"{width} x {height} px: as published that makes {tokens:,} patches, and a cut "
            f"compares at most {MAX_TOKENS:,}; leave --as-published out, or shrink the images"
        )
    return min(height, width)


def _scores(cut: ObjectMask, truth: Truth) -> dict[str, Any]:
    """What one cut is worth, at the size of the mask."""
    shape = truth.labels.shape
    side, part = nearest(cut.foreground, *shape), nearest(cut.component, *shape)
    box = bounds(part)  # the same as of patches, but for a mask that is coarser than these
    boxes = np.array([bounds(one) for one in truth.objects()])
    fits = iou_by_label([part], truth.labels, truth.valid)[0]
    maps = {"side": cut.foreground.astype(np.float64), "map": relative(cut.y)}
    return {
        "union": float(iou(side, truth.foreground, truth.valid)),
        "object": float(fits.max()),
        "box": float(box_iou(np.array(box), boxes).max()) if box else 0.0,
        "objects": len(boxes),
        "centered": cut.centered,
        "cut": cut.seed is not None,
        **{name: packed(counted(soft, truth)) for name, soft in maps.items()},
    }


def counted(soft: np.ndarray, truth: Truth) -> np.ndarray:
    """The level counts, int64 [2, 256], of a map [h, w] of 0..1 enlarged to the mask's size."""
    levels = nearest(codes(soft), *truth.labels.shape)
    return level_counts(levels, truth.foreground, truth.valid)


def packed(counts: np.ndarray) -> list[list[int]]:
    """Level counts [2, 256] as JSON: [level, outside, inside] of each level that occurs."""
    return [[int(k), *map(int, counts[:, k])] for k in np.flatnonzero(counts.any(axis=0))]


def unpacked(rows: list[list[int]]) -> np.ndarray:
    """Level counts, int64 [2, 256], as they were before `packed`."""
    counts = np.zeros((2, LEVELS), np.int64)
    for level, outside, inside in rows:
        counts[:, level] = outside, inside
    return counts


def _score(
    model: Model,
    source: Source,
    masks: Masks,
    size: int | None,
    tau: float,
    as_published: bool,
    passing: Passing,
) -> ObjectsResult:
    """The protocol for one model."""
    scored = cuts(model, source, masks, size, tau, as_published, passing)
    values = scored.values
    return ObjectsResult(
        jaccard=float(np.mean([one["union"] for one in values])),
        object_jaccard=float(np.mean([one["object"] for one in values])),
        corloc=corloc(np.array([one["box"] for one in values])),
        images=len(values),
        objects=sum(one["objects"] for one in values),
        centered=sum(one["centered"] for one in values),
        uncut=sum(not one["cut"] for one in values),
        model=model.spec,
        model_hash=model.hash,
        data=source.spec,
        data_hash=source_hash(source),
        masks=masks.spec,
        masks_hash=masks.hash,
        tau=tau,
        size=size,
        as_published=as_published,
        images_scored=[(name, one["union"]) for name, one in zip(scored.ids, values, strict=True)],
        notes=scored.notes + cut_notes(values),
    )


def cut_notes(values: list[dict[str, Any]]) -> list[str]:
    """How many images had their keys centered, or nothing to cut."""
    total = f"of {len(values):,} images"
    centered = sum(one["centered"] for one in values)
    uncut = sum(not one["cut"] for one in values)
    told = f"the keys of {centered:,} {total} were nearly all alike and centered before the cut"
    empty = f"{uncut:,} {total} had nothing to cut, and count as nothing found"
    return ([told] if centered else []) + ([empty] if uncut else [])
