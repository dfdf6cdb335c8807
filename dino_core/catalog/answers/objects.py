"""Masks to take away: the object by normalized cut, or where a head's attention lies."""

import io
from typing import Any

import numpy as np
from PIL import Image

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.questions import Question
from dino_core.errors import UserError
from dino_core.lenses import look, mass_mask, outlines
from dino_core.lenses.attention import resized
from dino_core.lenses.objects import object_mask
from dino_core.lenses.refine import refined
from dino_core.lenses.render import nearest

SHOWN_SIDE = 1400  # pixels on the long side of the mask that a page draws
CUTOUT_SIDE = 2800  # of a cutout that is downloaded: larger ones are tens of megabytes
TOLERANCE = 1.0  # pixels that an outline may be off


def object(desk: Desk, question: Question) -> dict[str, Any]:
    """A mask of the picture: shown, as polygons in its own pixels and, if wanted, as a cutout."""
    patches, told = _patches(desk, question)
    image = desk.image
    height, width = image.shape[:2]
    mask = refined(patches, image) if question.flag("refine") else nearest(patches, height, width)
    rings = outlines.polygons(mask, TOLERANCE)
    model = desk.model
    answer = {
        "mask": encoded(_png(Image.fromarray(_within(mask, SHOWN_SIDE)))),
        "polygons": outlines.to_json(
            rings, (height, width), model=model.spec, model_hash=model.hash
        ),
        "told": f"{told}; {mask.mean():.0%} of the picture",
        "empty": not mask.any(),
    }
    if question.flag("cutout"):
        small = _within(mask, CUTOUT_SIDE)
        cutout = outlines.rgba(resized(image, *small.shape), small)
        answer["cutout"] = encoded(_png(cutout))
    return answer


def _patches(desk: Desk, question: Question) -> tuple[np.ndarray, str]:
    """The mask on the patch grid, bool [h, w], and what it is."""
    kind = question.text("kind")
    if kind == "object":
        found = object_mask(desk.tokens())
        if found.seed is None:
            return found.foreground, "Nothing stands out: to this model all patches are alike"
        if question.flag("other"):
            return ~found.foreground, "The other side of the cut"
        if question.flag("whole"):
            return found.foreground, "All that lies on the object's side of the cut"
        return found.component, "The object, by normalized cut"
    if kind == "head":
        attention = look(desk.model, desk.image, size=desk.scene.size)
        layer = question.whole("layer", 0, attention.layers - 1)
        head = question.whole("head", -1, attention.heads - 1)
        keep = question.number("keep", 0, 1)
        chosen = attention.head_mean(layer) if head < 0 else attention.maps[layer, head]
        name = "mean of the heads" if head < 0 else f"head {head + 1}"
        told = f"Where {keep:.0%} of the attention lies: layer {layer + 1}, {name}"
        return mass_mask(chosen, keep), told
    raise UserError(f"{kind[:40]}: a mask is of the object or of a head")


def _within(mask: np.ndarray, side: int) -> np.ndarray:
    """`mask` bool [H, W] reduced to at most `side` pixels; by nearest neighbors, so still bool."""
    scale = min(1.0, side / max(mask.shape))
    height, width = (max(1, round(length * scale)) for length in mask.shape)
    return mask if scale == 1 else nearest(mask, height, width)


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
