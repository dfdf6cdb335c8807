"""Attention as segmentation: how well heads that nobody trained on masks cover objects.

Published protocol (DINO, section 4.2.2): of each head of the last layer the patches that hold 60 %
of its mass; for every object the head with the largest intersection over union; the mean over
objects. Masks are scored at the mask file's own size, attention is enlarged to nearest neighbors.

    result = evaluate(load_model("starter"), open_source("photos"), Path("masks"))
    print(result.table())

`dino_core.evaluation.masks` says which mask files there may be.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dino_core.data import Source
from dino_core.errors import UserError
from dino_core.evaluation.masks import (
    Masks,
    Truth,
    best_and_worst,
    each_masked,
    find_masks,
)
from dino_core.evaluation.passes import Passing
from dino_core.gallery.images import source_hash
from dino_core.lenses.attention import look, mass_mask
from dino_core.lenses.render import nearest
from dino_core.measures.overlap import iou_by_label
from dino_core.models import Model, untrained


@dataclass(frozen=True)
class AttentionResult:
    """Mean intersection over union (0..1) of attention masks with objects."""

    jaccard: float  # best head per object, mean over objects: the published figure
    per_head: list[float]  # one head for all objects, mean over objects
    images: int
    objects: int
    model: str
    model_hash: str
    data: str
    data_hash: str
    masks: str
    masks_hash: str
    keep: float
    layer: int
    size: int | None
    images_scored: list[tuple[str, float]] = field(
        repr=False
    )  # id; best heads, mean of its objects
    notes: list[str]  # sentences: what was left out and why
    random_init: "AttentionResult | None" = None  # the same for the untrained backbone

    @property
    def best(self) -> int:
        """The head that does best alone."""
        return int(np.argmax(self.per_head))

    def best_and_worst(self, n: int = 6) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
        """(id, IoU) of the `n` images whose objects are covered best, and of the `n` worst."""
        return best_and_worst(self.images_scored, n)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> str:
        """A few lines for a terminal."""
        rows = [self] + ([self.random_init] if self.random_init else [])
        names = [self.model, "untrained"]
        width = max(len(name) for name in [*names, "model"])
        lines = [f"{'model':{width}}  best head per object  one head for all"]
        for name, row in zip(names, rows, strict=False):
            alone = f"{row.per_head[row.best]:.1%} (head {row.best})"
            lines.append(f"{name:{width}}  {row.jaccard:>20.1%}  {alone:>16}")
        lines.append(f"mean IoU over {self.objects:,} objects in {self.images:,} images")
        return "\n".join(lines + self.notes)


def evaluate(
    model: Model,
    source: Source,
    masks: Path | None = None,
    *,
    keep: float = 0.6,
    layer: int = -1,
    size: int | None = None,
    random_init: bool = True,
    passing: Passing = Passing(),
) -> AttentionResult:
    """Score `model`'s attention on every image of `source` that has a mask.

    `masks`: a folder (None: the source's own masks, as `scenes` have); `size`: short side in pixels
    (None: the lens's default); `random_init`: score the untrained backbone as well. Raises
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

    def overlaps(image: np.ndarray, truth: Truth) -> list[list[float]]:
        attention = look(model, image, size=size)
        return _head_overlaps(mass_mask(attention.maps[layer], keep), truth).tolist()

    scored = each_masked(
        "attention masks",
        {"keep": keep, "layer": layer, "size": size},
        model, source, masks, overlaps, passing, f"Attention of {model.spec}",
    )  # fmt: skip
    tables = [np.array(value) for value in scored.values]  # per image [objects, heads]
    table = np.concatenate(tables)
    return AttentionResult(
        jaccard=float(table.max(axis=1).mean()),
        per_head=[float(value) for value in table.mean(axis=0)],
        images=len(tables),
        objects=len(table),
        model=model.spec,
        model_hash=model.hash,
        data=source.spec,
        data_hash=source_hash(source),
        masks=masks.spec,
        masks_hash=masks.hash,
        keep=keep,
        layer=layer,
        size=size,
        images_scored=[
            (name, float(one.max(axis=1).mean()))
            for name, one in zip(scored.ids, tables, strict=True)
        ],
        notes=scored.notes,
    )


def _head_overlaps(heads: np.ndarray, truth: Truth) -> np.ndarray:
    """Intersection over union of each object with each head's mask: float64 [objects, heads].

    `heads`: bool [heads, h, w]. One head is enlarged at a time: photos have many pixels.
    """
    enlarged = (nearest(head, *truth.labels.shape) for head in heads)
    return iou_by_label(enlarged, truth.labels, truth.valid).T
