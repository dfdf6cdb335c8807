"""How sound a model's heads and tokens are on this picture."""

from typing import Any

from dino_core.catalog.answers.desk import Desk
from dino_core.catalog.questions import Question
from dino_core.lenses import health as checks
from dino_core.lenses import look


def health(desk: Desk, question: Question) -> dict[str, Any]:
    """A row for each head, artifact tokens, and what it comes to in sentences."""
    size = desk.scene.size
    attention = look(desk.model, desk.image, size=size)
    norms = checks.residual_norms(desk.model, desk.image, size=size)
    found = checks.health(attention, desk.tokens(), norms)
    return {
        **found.to_json(),
        "layers": attention.layers,
        "grid": list(attention.grid),
    }
