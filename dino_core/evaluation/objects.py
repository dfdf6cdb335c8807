"""TokenCut masks as segmentation and detection: does a cut of the patches find the object?

Published protocol (Wang et al., arXiv:2202.11539, sections 4.1 and 4.3): the patches of an image
are cut in two by the keys of the last layer (`dino_core.lenses.objects`). The side with the object
is scored as a mask, by intersection over union with all objects together; the box around what of it
hangs together with the strongest patch is scored by CorLoc, the share of images in which it
overlaps one of the objects' boxes by half (PASCAL's criterion). Both at the mask file's own size.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

Objects' boxes are the bounds of their masks. Unlike in the published scripts an image is resized to
the lens's size, and keys that are nearly all alike are centered first. `as_published` does neither:
as in the published object discovery each image is fed at its own size, normalized and then padded
with zeros at the right and bottom to whole patches; masks and boxes are those of the image alone.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

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
from dino_core.evaluation.passes import Passing
from dino_core.lenses.attention import plan
from dino_core.lenses.objects import MAX_TOKENS, TAU, ObjectMask, object_mask, padded_keys
from dino_core.lenses.render import relative
from dino_core.lenses.tokens import read_tokens
from dino_core.measures.overlap import bounds, box_iou, corloc, iou, iou_by_label
from dino_core.measures.saliency import LEVELS, codes, level_counts
from dino_core.models import Model, untrained
from dino_core.models.preprocess import by_band

# How images come to whole patches: resized to the lens's size or one that is asked for; as they
# are, padded (the published object discovery); to the nearest size (the published saliency).
Fit = Literal["lens", "padded", "rounded"]


@dataclass(frozen=True)
class Cutting:
    """How images are cut; `UserError` for settings that no cut can have."""

    tau: float = TAU  # the cosine that joins two patches
    size: int | None = None  # short side in pixels; None: the lens's default, or each image's own
    fit: Fit = "lens"

    def __post_init__(self) -> None:
        if not -1 < self.tau <= 1:
            raise UserError(
                f"tau {self.tau}: is a cosine; use more than -1, at most 1 (the paper has 0.2)"
            )
        if self.fit != "lens" and self.size is not None:
            raise UserError(
                f"size {self.size}: as published every image has its own; leave one of them out"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectsResult(MasksResult):
    """Shares (0..1) of what TokenCut finds; an image with nothing to cut counts as 0.

    `images_scored` have the IoU of the cut's side with all their objects.
    """

    jaccard: float  # IoU of the cut's side with all objects together, mean over images
    object_jaccard: float  # IoU of the found part with the object it fits best, mean over images
    corloc: float  # share of images whose box overlaps an object's box by half
    images: int
    objects: int
    centered: int  # images whose keys were centered, for they were nearly all alike
    uncut: int  # images without anything to cut
    tau: float
    as_published: bool

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(map(len, [*rows, "model"]))
        lines = [f"{'model':{width}}  IoU of the cut  IoU of its main part  CorLoc"]
        for name, row in rows.items():
            figures = f"{row.jaccard:>14.1%}  {row.object_jaccard:>20.1%}  {row.corloc:>6.1%}"
            lines.append(f"{name:{width}}  {figures}")
        lines.append(f"mean over {self.images:,} images, {self.objects:,} objects, {self.fed_at}")
        lines.append("cut: with all objects together; its main part: with the object it fits best")
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
    (None: the lens's default, 28 patches or what the model was trained at; long images get less);
    `tau`: the cosine that joins two patches; `as_published`: see the top of this file;
    `random_init`: score the untrained backbone as well. Raises `UserError` if nothing can be
    scored, or masks do not belong to the images.
    """
    found = find_masks(source, masks)
    how = Cutting(tau, size, "padded" if as_published else "lens")
    result = _score(model, source, found, how, passing)
    if not random_init:
        return result
    return replace(result, random_init=_score(untrained(model), source, found, how, passing))


def cut_image(model: Model, image: np.ndarray, how: Cutting) -> ObjectMask:
    """Cut one image, uint8 [H, W, C]. Raises `UserError` where it makes too many patches."""
    if how.fit == "lens":
        return object_mask(read_tokens(model, image, size=how.size), tau=how.tau)
    height, width = image.shape[:2]
    patch = model.backbone.patch_size
    if how.fit == "padded":
        _require_few(-(-height // patch) * -(-width // patch), height, width)
        return object_mask(padded_keys(model, image), tau=how.tau, center=False)
    whole = rounded(image, patch)
    _require_few(whole.shape[0] * whole.shape[1] // patch**2, height, width)
    tokens = read_tokens(model, whole, size=min(whole.shape[:2]))
    return object_mask(replace(tokens, source_size=(height, width)), tau=how.tau, center=False)


def rounded(image: np.ndarray, patch: int) -> np.ndarray:
    """`image` uint8 [H, W, C] at the nearest multiples of `patch` pixels, Lanczos as published."""
    height, width = (max(round(side / patch), 1) * patch for side in image.shape[:2])

    def lanczos(band: Image.Image) -> np.ndarray:
        return np.asarray(band.resize((width, height), Image.Resampling.LANCZOS))

    return by_band(lanczos, image)


def _require_few(patches: int, height: int, width: int) -> None:
    if patches > MAX_TOKENS:
        raise UserError(
            f"{width} x {height} px: as published that makes {patches:,} patches, and a cut "
            f"compares at most {MAX_TOKENS:,}; leave --as-published out, or shrink the images"
        )


def cuts(model: Model, source: Source, masks: Masks, how: Cutting, passing: Passing) -> Scored:
    """One pass of TokenCut; all that masks, boxes and saliency are scored by, of each image.

    Values: "union", "object" and "box" are overlaps (0..1), "objects" a number, "centered" and
    "cut" whether, "fed" the short side in pixels (None: the image's own); "side", "part" and "map"
    are packed level counts (see `unpacked`) of the cut's side, of what of it hangs together with
    the strongest patch, and of the eigenvector, stretched to 0..1.
    """

    def one(image: np.ndarray, truth: Truth) -> dict[str, Any]:
        scores = _scores(cut_image(model, image, how), truth)
        return scores | {"fed": _fed(model, image, how)}

    return each_masked(
        "object masks",
        asdict(how),
        model, source, masks, one, passing, f"Object masks of {model.spec}",
    )  # fmt: skip


def _fed(model: Model, image: np.ndarray, how: Cutting) -> int | None:
    """The short side in pixels that an image is fed at, None where it is the image's own."""
    if how.fit != "lens":
        return None
    fed = plan(model, image.shape[0], image.shape[1], size=how.size)
    return min(fed.height, fed.width)


def _scores(cut: ObjectMask, truth: Truth) -> dict[str, Any]:
    """What one cut is worth, at the size of the mask."""
    shape = truth.labels.shape
    side, part = cut.enlarged(cut.foreground, *shape), cut.enlarged(cut.component, *shape)
    box = bounds(part)  # the same as of patches, but for a mask that is coarser than these
    boxes = np.array([bounds(one) for one in truth.objects()])
    fits = iou_by_label([part], truth.labels, truth.valid)[0]
    levels = cut.enlarged(codes(relative(cut.y)), *shape)
    maps = {"side": codes(side), "part": codes(part), "map": levels}
    return {
        "union": float(iou(side, truth.foreground, truth.valid)),
        "object": float(fits.max()),
        "box": float(box_iou(np.array(box), boxes).max()) if box else 0.0,
        "objects": len(boxes),
        "centered": cut.centered,
        "cut": cut.seed is not None,
        **{name: packed(counted(levels, truth)) for name, levels in maps.items()},
    }


def counted(levels: np.ndarray, truth: Truth) -> np.ndarray:
    """The level counts, int64 [2, 256], of a map in 8 bits (see `codes`) of the mask's size."""
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
    how: Cutting,
    passing: Passing,
) -> ObjectsResult:
    """The protocol for one model."""
    scored = cuts(model, source, masks, how, passing)
    values = scored.values
    return ObjectsResult(
        jaccard=float(np.mean([one["union"] for one in values])),
        object_jaccard=float(np.mean([one["object"] for one in values])),
        corloc=corloc(np.array([one["box"] for one in values])),
        images=len(values),
        objects=sum(one["objects"] for one in values),
        centered=sum(one["centered"] for one in values),
        uncut=sum(not one["cut"] for one in values),
        tau=how.tau,
        as_published=how.fit != "lens",
        **common(
            model, source, masks, with_cut_notes(scored),
            [one["union"] for one in values], [one["fed"] for one in values],
        ),
    )  # fmt: skip


def with_cut_notes(scored: Scored) -> Scored:
    """The same, and how many images had their keys centered, or nothing to cut."""
    values = scored.values
    total = f"of {len(values):,} images"
    centered = sum(one["centered"] for one in values)
    uncut = sum(not one["cut"] for one in values)
    told = f"the keys of {centered:,} {total} were nearly all alike, and were taken from their mean"
    empty = f"{uncut:,} {total} had nothing to cut, and count as nothing found"
    notes = ([told] if centered else []) + ([empty] if uncut else [])
    return replace(scored, notes=scored.notes + notes)
