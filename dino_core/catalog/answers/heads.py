"""Where attention goes from a patch, and all layers taken together."""

from typing import Any

import numpy as np

from dino_core.catalog.answers.desk import Desk, encoded
from dino_core.catalog.questions import Question
from dino_core.lenses import Attention, LensPayload, look, plan
from dino_core.lenses.similarity import similarity


def patch(desk: Desk, question: Question) -> dict[str, Any]:
    """Every head's attention from one patch, and how alike its feature is to all others."""
    tokens = desk.tokens()
    height, width = tokens.grid
    row, column = question.whole("row", 0, height - 1), question.whole("column", 0, width - 1)
    attention = look(desk.model, desk.image, size=desk.scene.size, query=(row, column))
    return {
        "payload": encoded(LensPayload.from_attention(attention).to_bytes()),
        "similarity": coded(similarity(tokens, row, column)),
    }


def rollout(desk: Desk, question: Question) -> dict[str, Any]:
    """Attention of the class token rolled out over all layers, as one map."""
    from dino_core.lenses.rollout import rollout as rolled

    model, (height, width) = desk.model, desk.image.shape[:2]
    fed = plan(model, height, width, size=desk.scene.size)
    attention = Attention(
        maps=rolled(model, desk.image, size=desk.scene.size)[None, None],
        image_size=(fed.height, fed.width),
        source_size=(height, width),
        patch_size=model.backbone.patch_size,
        model=model.spec,
        model_hash=model.hash,
    )
    return {"payload": encoded(LensPayload.from_attention(attention).to_bytes())}


def coded(values: np.ndarray) -> dict[str, Any]:
    """A map float [h, w] for a browser: uint8 codes between its least and greatest value."""
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    codes = np.rint(255 * share).astype(np.uint8)
    return {"grid": list(values.shape), "low": low, "high": high, "codes": encoded(codes.tobytes())}
