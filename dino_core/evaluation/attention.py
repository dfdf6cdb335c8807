"""Attention as segmentation: how well heads that nobody trained on masks cover objects.

Published protocol (DINO, section 4.2.2): of each head of the last layer the patches that hold 60 %
of its mass; for every object the head with the largest intersection over union; the mean over an
image's objects, then over images, as its author's code does it (`image_jaccard`). In the mean over
all objects (`jaccard`) images with many of them weigh more. Masks are scored at the mask file's own
size, attention is enlarged to nearest neighbors.

The protocol itself is told only in an issue of the published repository (number 54), and no size
with it. Ours is 480 px on the short side, in the image's own shape: the published script for
attention masks, `visualize_attention`, feeds 480 x 480 px, whatever the shape.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

`dino_core.evaluation.masks` says which mask files there may be.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.masks import Masks, MasksResult, Truth, common, each_masked, find_masks
from dino_core.evaluation.passes import Passing
from dino_core.lenses.attention import largest_size, look, mass_mask
from dino_core.lenses.render import nearest
from dino_core.measures.overlap import iou_by_label
from dino_core.models import Model, untrained

SIZE = 480  # pixels, short side
KEEP = 0.6  # share of a head's attention that makes its mask


@dataclass(frozen=True, kw_only=True)
class AttentionResult(MasksResult):
    """Mean intersection over union (0..1) of attention masks with objects.

    `images_scored` have the mean over their objects, each with its best head.
    """

    jaccard: float  # best head per object, mean over all objects
    image_jaccard: float  # mean over images of the means over their objects: the published figure
    per_head: list[float]  # one head for all objects, mean over objects
    images: int
    objects: int
    keep: float
    layer: int

    @property
    def best(self) -> int:
        """The head that does best alone."""
        return int(np.argmax(self.per_head))

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = self.rows()
        width = max(map(len, [*rows, "model"]))
        lines = [f"{'model':{width}}  best head per object  mean of images  one head for all"]
        for name, row in rows.items():
            alone = f"{row.per_head[row.best]:.1%} (head {row.best})"
            lines.append(
                f"{name:{width}}  {row.jaccard:>20.1%}  {row.image_jaccard:>14.1%}  {alone:>16}"
            )
        scored = f"mean IoU over {self.objects:,} objects in {self.images:,} images"
        lines.append(f"{scored}, {self.fed_at}")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    masks: Path | None = None,
    *,
    keep: float = KEEP,
    layer: int = -1,
    size: int | None = SIZE,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> AttentionResult:
    """Score `model`'s attention on every image of `source` that has a mask.

    `masks`: a folder (None: the source's own masks, as `scenes` have); `size`: short side in pixels
    (None: the lens's default, 28 patches or what the model was trained at); images that are too
    long for it get less, with a note; `random_init`: score the untrained backbone as well. Raises
    `UserError` if nothing can be scored, or masks do not belong to the images.
    """
    depth = model.backbone.depth
    if depth and not -depth <= layer < depth:
        raise UserError(f"layer {layer}: {model.spec} has layers 0 to {depth - 1}")
    if not 0 < keep <= 1:
        raise UserError(f"keep {keep}: is a share of the attention; use more than 0, at most 1")
    found = find_masks(source, masks)
    result = _score(model, source, found, keep, layer, size, passing)
    if not random_init:
        return result
    baseline = _score(untrained(model), source, found, keep, layer, size, passing)
    return replace(result, random_init=baseline)


def _score(
    model: Model,
    source: Source,
    masks: Masks,
    keep: float,
    layer: int,
    size: int | None,
    passing: Passing,
) -> AttentionResult:
    """The protocol for one model."""

    def overlaps(image: np.ndarray, truth: Truth) -> dict[str, Any]:
        fed = size and largest_size(model, image.shape[0], image.shape[1], size)
        attention = look(model, image, size=fed)
        found = _head_overlaps(mass_mask(attention.maps[layer], keep), truth)
        return {"overlaps": found.tolist(), "fed": min(attention.image_size)}

    scored = each_masked(
        "attention masks",
        {"keep": keep, "layer": layer, "size": size},
        model, source, masks, overlaps, passing, f"Attention of {model.spec}",
    )  # fmt: skip
    tables = [np.array(one["overlaps"]) for one in scored.values]  # per image [objects, heads]
    shares = [float(one.max(axis=1).mean()) for one in tables]
    table = np.concatenate(tables)
    return AttentionResult(
        jaccard=float(table.max(axis=1).mean()),
        image_jaccard=float(np.mean(shares)),
        per_head=[float(value) for value in table.mean(axis=0)],
        images=len(tables),
        objects=len(table),
        keep=keep,
        layer=layer,
        **common(model, source, masks, scored, shares, [one["fed"] for one in scored.values]),
    )


def _head_overlaps(heads: np.ndarray, truth: Truth) -> np.ndarray:
    """Intersection over union of each object with each head's mask: float64 [objects, heads].

    `heads`: bool [heads, h, w]. One head is enlarged at a time: photos have many pixels.
    """
    enlarged = (nearest(head, *truth.labels.shape) for head in heads)
    return iou_by_label(enlarged, truth.labels, truth.valid).T
