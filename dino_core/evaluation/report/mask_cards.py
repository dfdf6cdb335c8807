"""Pictures of masks: what a model covers of the images that it did best and worst on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from dino_core.data import BadImage
from dino_core.errors import UserError
from dino_core.evaluation.attention import KEEP
from dino_core.evaluation.masks import DamagedMask, Masks, Truth, best_and_worst
from dino_core.evaluation.objects import Cutting, Fit, cut_image
from dino_core.evaluation.report.board import Record
from dino_core.evaluation.report.elements import Bar, bars, block, escaped
from dino_core.evaluation.report.opening import Here
from dino_core.evaluation.report.pictures import Pictures
from dino_core.evaluation.report.values import listed, number, scored, whole
from dino_core.lenses.attention import largest_size, look, mass_mask, plan, resized
from dino_core.lenses.objects import TAU
from dino_core.lenses.render import nearest, outline, relative
from dino_core.measures.overlap import iou_by_label
from dino_core.models import Model

MOST_MASKS = 6  # best, and as many worst
MASK_SIDE = 300  # pixels
FOUND, TRUE = (129, 140, 248), (255, 214, 10)  # colors: what a model covers, an object's outline
TINT, SHADE = 0.28, 0.38  # how much of FOUND lies inside, and how much light is left outside
LEGEND = "Bright and tinted: what the model covers. Yellow line: the objects."


def masks(record: Record, pictures: Pictures) -> list[str]:
    """The best and the worst images with what the model covers, and single heads."""
    best, worst = best_and_worst(scored(record.values.get("images_scored")), MOST_MASKS)
    opened = _opened(record, pictures) if best else None
    drawn: dict[str, str] = {}
    if opened is not None:  # by turns, so that both have some where there is no room for all
        for name, _ in [one for pair in zip_longest(best, worst) for one in pair if one]:
            drawn[name] = _masked(name, record, opened, pictures)
    shown = [_gallery("Best masks", best, drawn), _gallery("Worst masks", worst, drawn)]
    if any(drawn.values()):
        shown.append(f"<p class='legend'>{LEGEND}</p>")
    heads = [number(one) for one in listed(record.values.get("per_head"))]
    each = [Bar(f"head {n}", 100 * one) for n, one in enumerate(heads) if one is not None]
    return [*shown, bars("One head for all objects, IoU in %", each)]


@dataclass(frozen=True)
class _Opened:
    """What pictures of masks need."""

    model: Model
    here: Here
    masks: Masks


def _opened(record: Record, pictures: Pictures) -> _Opened | None:
    """Data, masks and model, in this order; None where one of them cannot be had."""
    here = pictures.data(record, "data")
    found = None if here is None else pictures.masks(record, here)
    model = None if found is None else pictures.model(record)
    if here is None or found is None or model is None:
        return None
    return _Opened(model, here, found)


def _gallery(title: str, scores: Sequence[tuple[str, float]], drawn: Mapping[str, str]) -> str:
    """Images with their scores: those with a picture, or all where there are no pictures."""
    some = [one for one in scores if drawn.get(one[0])] or scores
    figures = "".join(
        f"<figure>{drawn.get(name, '')}<figcaption><span title='{escaped(name)}'>{escaped(name)}"
        f"</span><em>{100 * score:.1f}</em></figcaption></figure>"
        for name, score in some
    )
    return block(f"{title}, IoU in %", f"<div class='masks'>{figures}</div>" if figures else "")


def _masked(name: str, record: Record, opened: _Opened, pictures: Pictures) -> str:
    """One image with what the model covers; "", noted, where that cannot be drawn."""
    place = opened.here.places.get(name)
    if place is None or place not in opened.masks.indices:
        return ""
    try:
        image = opened.here.source.image(place)
        truth = opened.masks.truth(place, (image.shape[0], image.shape[1]))
        found = COVERS[record.protocol](opened.model, image, truth, record.values)
    except (BadImage, DamagedMask, UserError) as error:
        pictures.notes.append(f"no picture of {name}: {error}")
        return ""
    scale = min(1.0, MASK_SIDE / max(image.shape[:2]))
    small = resized(image, *(max(1, round(side * scale)) for side in image.shape[:2]))
    return pictures.img(covered(small, found, truth.foreground), name)


def covered(photo: np.ndarray, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`photo` dark where nothing was found, tinted where something was, objects outlined.

    `photo`: uint8 [H, W, 3], which the result is too; `found` and `truth`: bool, of any size.
    """
    inside = nearest(found, photo.shape[0], photo.shape[1])[..., None]
    tinted = (1 - TINT) * photo + TINT * np.array(FOUND)
    mixed = np.where(inside, tinted, SHADE * photo.mean(axis=-1, keepdims=True))
    return outline(np.rint(mixed).astype(np.uint8), truth, TRUE)


def _by_attention(
    model: Model, image: np.ndarray, truth: Truth, values: Mapping[str, Any]
) -> np.ndarray:
    """Each object's best head, together."""
    size = _size(model, values)
    if size is not None:
        plan(model, 1, 1, size=size)  # raises for what no image was fed at, not even a square
        size = largest_size(model, image.shape[0], image.shape[1], size)
    attention = look(model, image, size=size)
    layer, keep = whole(values.get("layer")), number(values.get("keep"))
    layer = -1 if layer is None else layer
    if not -len(attention.maps) <= layer < len(attention.maps):
        raise UserError(f"layer {layer}: the model has {len(attention.maps)}")
    small = mass_mask(attention.maps[layer], KEEP if keep is None else keep)
    heads = np.stack([nearest(head, *truth.labels.shape) for head in small])
    best = iou_by_label(heads, truth.labels, truth.valid).argmax(axis=0)
    return heads[np.unique(best)].any(axis=0)


def _by_cut(model: Model, image: np.ndarray, truth: Truth, values: Mapping[str, Any]) -> np.ndarray:
    """The side of the cut with the object."""
    cut = cut_image(model, image, _cutting(model, values, "padded"))
    return cut.enlarged(cut.foreground, *truth.labels.shape)


def _by_map(model: Model, image: np.ndarray, truth: Truth, values: Mapping[str, Any]) -> np.ndarray:
    """A soft map at one half; as published a cut is what hangs together of its side."""
    how = _cutting(model, values, "rounded")
    if values.get("map") == "attention":
        size = how.size if how.fit == "lens" else min(image.shape[:2])
        soft = relative(look(model, image, size=size).head_mean())
        return nearest(soft >= 0.5, *truth.labels.shape)
    cut = cut_image(model, image, how)
    side = cut.foreground if how.fit == "lens" else cut.component
    return cut.enlarged(
        side if values.get("map") == "cut" else relative(cut.y) >= 0.5, *truth.labels.shape
    )


def _cutting(model: Model, values: Mapping[str, Any], published: Fit) -> Cutting:
    """How images were cut; `published` is how the published script fits them to whole patches."""
    tau = number(values.get("tau"))
    tau = TAU if tau is None else tau
    if values.get("as_published"):
        return Cutting(tau, None, published)
    return Cutting(tau, _size(model, values))


def _size(model: Model, values: Mapping[str, Any]) -> int | None:
    """The size to ask a lens for. Its default is asked for as such: long images get less then."""
    size = whole(values.get("size"))
    default = plan(model, model.info.image_size, model.info.image_size)
    return None if size == default.height else size


Covering = Callable[[Model, np.ndarray, Truth, Mapping[str, Any]], np.ndarray]
# What the model covers, bool [H, W] of the mask's size: of all that the image's truth says only
# attention needs more, for it chooses heads by the pixels that count, as they were scored.
COVERS: dict[str, Covering] = {
    "attention": _by_attention,
    "objects": _by_cut,
    "saliency": _by_map,
}
